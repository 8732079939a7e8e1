"""Texts that wait to be embedded, one after the other, in steps between those of the answers."""

from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mycelia.node.engine import ipc
from mycelia.proto.admission.shares import has_room
from mycelia.proto.wire.blocks import unpack_tokens
from mycelia.proto.wire.errors import LocalError


class Embeds(Protocol):
    """See ``Embedder``."""

    max_tokens: int

    def begin(self, tokens: list[int]) -> None: ...

    def step(self) -> NDArray[np.float32] | None: ...

    def close(self) -> None: ...


@dataclass
class _Work:
    message: ipc.Embed
    texts: deque[list[int]]
    """Not begun yet."""
    num_left: int
    """Tokens, of the text under way too."""
    vectors: list[bytes] = field(default_factory=list)


class EmbedDesk:
    """Requests for embeddings, in the order in which they came. Each client may take its share of the places."""

    def __init__(self, embedder: Embeds, num_places: int, num_vocab: int) -> None:
        self._embedder = embedder
        self._num_places = num_places
        self._num_vocab = num_vocab
        self._waiting: deque[_Work] = deque()
        self._text: list[int] | None = None
        """The one under way."""

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def queued_tokens(self) -> int:
        return sum(work.num_left for work in self._waiting)

    def add(self, message: ipc.Embed) -> ipc.Embedded | None:
        """Take a request; the refusal if it cannot be served."""
        texts = deque(list(unpack_tokens(text)) for text in message.texts)
        num_own = sum(1 for work in self._waiting if work.message.client == message.client)
        most = self._embedder.max_tokens
        if not has_room(num_own, len(self._waiting), self._num_places):
            waiting = f"{len(self._waiting)} requests for embeddings are waiting already"
            return ipc.Embedded(message.key, [], waiting, is_busy=True)
        if not texts or not all(texts):
            return ipc.Embedded(message.key, [], "there is no text to embed")
        for place, text in enumerate(texts):
            if len(text) > most:
                error = f"text {place} has {len(text)} tokens, at most {most} are embedded"
                return ipc.Embedded(message.key, [], error)
            if max(text) >= self._num_vocab:
                return ipc.Embedded(message.key, [], f"token ids of this model are below {self._num_vocab}")
        self._waiting.append(_Work(message, texts, sum(map(len, texts))))
        return None

    def cancel(self, key: int) -> bool:
        """Whether there was such a request."""
        for work in self._waiting:
            if work.message.key == key:
                if work is self._waiting[0]:
                    self._text = None
                self._waiting.remove(work)
                return True
        return False

    def step(self) -> ipc.Embedded | None:
        """A bounded piece of the oldest request's work; the reply once it is done. Not without a request."""
        work = self._waiting[0]
        try:
            if self._text is None:
                self._text = work.texts.popleft()
                self._embedder.begin(self._text)
            vector = self._embedder.step()
        except LocalError as exc:
            return self._end(ipc.Embedded(work.message.key, [], str(exc)))
        if vector is not None:
            work.vectors.append(vector.tobytes())
            work.num_left -= len(self._text)
            self._text = None
            if not work.texts:
                return self._end(ipc.Embedded(work.message.key, work.vectors, ""))
        return None

    def _end(self, reply: ipc.Embedded) -> ipc.Embedded:
        self._waiting.popleft()
        self._text = None
        if not self._waiting:
            self._embedder.close()
        return reply
