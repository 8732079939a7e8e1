"""The queue of texts to embed or to rank: their order, the bounds, and the work in steps.

One text is computed at a time, a piece per step. After it comes the first text in the order of ``proto.fair_queue``:
the owner's first, then fair among subnets and among their clients. A request keeps its place until its last text is
done, so the pace of the queue is the pace of finished requests, and the retry time of a refused client follows from it.
``Precedence`` and ``TextPace`` decide whether a step may run beside the answers.

A text is finished before another begins, because it uses the only context. So its steps are also taken for the requests
behind it: none of them waits for longer than one text because another client is ahead of its share.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from mycelia.node.engine import ipc
from mycelia.node.engine.prompts import TooLongError, over_context
from mycelia.proto.admission.fair_queue import FairQueue, share_of
from mycelia.proto.admission.shares import has_room
from mycelia.proto.wire.blocks import token_array, unpack_tokens
from mycelia.proto.wire.errors import LocalError

MAX_REQUEST_TOKENS = 2**21
"""Maximum number of tokens of one request: 256 of the longest texts."""
MAX_WAITING_TOKENS = 2**23
"""Maximum number of tokens of all waiting texts: 32 MiB, four times the largest request."""
TOKEN_BYTES = 4


class Embeds(Protocol):
    max_tokens: int
    step_tokens: int

    def begin(self, tokens: list[int]) -> None: ...

    def step(self) -> NDArray[np.float32] | None: ...

    def close(self) -> None: ...


@dataclass(eq=False)
class EmbeddingRequest:
    """A request that waits or has a text in progress."""

    message: ipc.Embed
    texts: deque[bytes]
    """Texts not begun yet, packed."""
    num_left: int
    """Tokens not computed yet, including those of the text in progress."""
    vectors: list[bytes] = field(default_factory=list)

    @property
    def client(self) -> bytes:
        return self.message.client

    @property
    def subnet(self) -> str:
        return self.message.subnet


class EmbeddingStep(NamedTuple):
    """The result of a step: its request, the number of tokens, and the reply if the request is done."""

    request: EmbeddingRequest
    num_tokens: int
    reply: ipc.Embedded | None


class EmbeddingQueue:
    """Requests for embeddings. For the engine's main thread."""

    def __init__(self, embedder: Embeds, num_places: int, num_vocab: int) -> None:
        self._embedder = embedder
        self._num_vocab = num_vocab
        self._waiting = FairQueue[EmbeddingRequest](num_places, slack=0.0)  # (a text is slack enough)
        self._current: EmbeddingRequest | None = None
        self._current_left = 0
        """Tokens of the text in progress that are not computed yet."""

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[EmbeddingRequest]:
        """The requests in the order in which their texts should begin."""
        return iter(self._waiting)

    @property
    def queued_tokens(self) -> int:
        return sum(request.num_left for request in self._waiting)

    @property
    def step_tokens(self) -> int:
        return self._embedder.step_tokens

    def has_any_of(self, client: bytes, subnet: str) -> bool:
        return self._waiting.num_of(client, subnet) > 0

    def add(self, message: ipc.Embed, now: float, tokens_per_s: float) -> ipc.Embedded | None:
        """Queue a request; returns the refusal if it cannot be served. tokens_per_s: the assumed rate while none is
        measured. Mutates."""
        try:
            self._check(message)
        except LocalError as exc:
            return ipc.Embedded(message.key, [], str(exc), is_too_long=isinstance(exc, TooLongError))
        size = sum(map(len, message.texts)) // TOKEN_BYTES
        request = EmbeddingRequest(message, deque(message.texts), size)
        queued, own = self.queued_tokens, self.tokens_of(request)
        if queued and not has_room(own + size, queued + size, MAX_WAITING_TOKENS):
            wait_s = max(own, size) / tokens_per_s
        else:
            wait_s = self._waiting.join(request, now, (queued + size) / tokens_per_s / (len(self) + 1))
        if wait_s:
            waiting = f"{len(self)} requests for embeddings with {queued} tokens are waiting already"
            return ipc.Embedded(message.key, [], waiting, True, wait_s)
        self._waiting.blocked(now)
        return None

    def cancel(self, key: int) -> bool:
        """Remove the request with this key. False: there is none. Mutates."""
        for request in self._waiting:
            if request.message.key == key:
                if request is self._current:
                    self._current = None
                self._waiting.withdraw(request)
                self._rest()
                return True
        return False

    def step(self, request: EmbeddingRequest, now: float) -> EmbeddingStep:
        """Compute a piece of the text in progress or, if there is none, of the next text of the waiting ``request``.
        Mutates."""
        try:
            if self._current is None:
                text = list(unpack_tokens(request.texts.popleft()))
                self._embedder.begin(text)
                self._current, self._current_left = request, len(text)
            request = self._current
            vector = self._embedder.step()
        except LocalError as exc:
            return EmbeddingStep(request, 0, self._end(request, [], str(exc), now))
        num_tokens = min(self._embedder.step_tokens, self._current_left)
        self._current_left -= num_tokens
        request.num_left -= num_tokens
        self._waiting.charge(request.client, num_tokens, request.subnet)
        if vector is None:
            return EmbeddingStep(request, num_tokens, None)
        request.vectors.append(vector.tobytes())
        self._current = None
        reply = None if request.texts else self._end(request, request.vectors, "", now)
        return EmbeddingStep(request, num_tokens, reply)

    def charge(self, client: bytes, subnet: str, service: float) -> None:
        """Charge a client for other work. Mutates."""
        self._waiting.charge(client, service, subnet)

    def _end(self, request: EmbeddingRequest, vectors: list[bytes], error: str, now: float) -> ipc.Embedded:
        self._current = None
        self._waiting.start(request, 0, now)
        self._rest()
        return ipc.Embedded(request.message.key, vectors, error)

    def _rest(self) -> None:
        if not self._waiting:  # (to open it again takes 1 to 2 ms)
            self._embedder.close()

    def _check(self, message: ipc.Embed) -> None:
        """Raises LocalError for a request that cannot be served, as TooLongError for a text that does not fit."""
        if not message.texts or not all(message.texts):
            raise LocalError("there is no text to embed")
        most = self._embedder.max_tokens
        for place, text in enumerate(message.texts):
            length = len(text) // TOKEN_BYTES
            if length > most:
                raise TooLongError(over_context(most, f"{length} tokens (in text {place} of the input)"))
            if max(token_array(text)) >= self._num_vocab:
                raise LocalError(f"token ids of this model are below {self._num_vocab}")
        if (total := sum(map(len, message.texts)) // TOKEN_BYTES) > MAX_REQUEST_TOKENS:
            most = MAX_REQUEST_TOKENS
            raise LocalError(f"the texts have {total} tokens, and one request may have {most}: send fewer at once")

    def tokens_of(self, request: EmbeddingRequest) -> int:
        """Waiting tokens of all requests of the same share as ``request``."""
        return sum(other.num_left for other in self._waiting if share_of(other) == share_of(request))
