"""One request at the node where it entered: dispatch, stream, resume, and each token to the client exactly once.

    ROUTING --(Dispatch)--> STREAMING --(Final)--> done
                 ^              |
                 +--(stream lost, refused for now, or handed back)

A stream that ends without its final frame is resumed on another node with prompt + tokens so far. Exactly once holds
because a frame is accepted only if it starts at the position where this attempt stands, and frames of earlier
attempts are ignored. A node that failed a request is not tried again for it. One that handed it back may be, knowing
what it said.

Invariants: ``len(generated) <= max_tokens``; ``position`` counts the running attempt's tokens only.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import msgspec

from mycelia.proto.answers.spelling import Spelling
from mycelia.proto.answers.token_pace import TokenPace
from mycelia.proto.cache.sharing import Salt
from mycelia.proto.config import RequestConfig
from mycelia.proto.wire.blocks import block_hashes, pack_tokens, unpack_tokens
from mycelia.proto.wire.errors import RemoteError
from mycelia.proto.wire.messages import (
    MAX_SMALL,
    MAX_TEXT_BYTES_PER_TOKEN,
    Accepted,
    Bounced,
    Generate,
    Sampling,
    Tokens,
    Usage,
    Vitals,
)

LEAVING = "leaving"
"""The code of a refusal by a node that takes no new requests, for it is about to leave."""
LEAVING_MESSAGE = "this node is leaving"


@dataclass
class Request:
    """State of one request; ``RequestPlane`` drives it and turns what it returns into effects."""

    request_id: bytes
    namespace: bytes
    prompt: Sequence[int]
    chain: Sequence[int]
    """Block hashes of the prompt."""
    sampling: Sampling
    client: bytes = b""
    """Whose it is, see ``RequestSubmitted``."""
    household: bytes = b""
    """What counts where requests are counted by who asks, see ``Membership.household``."""
    is_first: bool = False
    """Nothing else of its household was in flight here when it came."""
    salt: Salt = Salt()  # noqa: RUF009  immutable
    open_tokens: int = 0
    """Likewise, both."""
    spelling: Spelling | None = None
    """Follows the text of the answer; None: the vocabulary is not known."""
    generated: list[int] = field(default_factory=list)
    attempt: int = 0
    """Number of the running attempt, from 1; 0 before the first dispatch."""
    tries: int = 0
    """Attempts since the last one that brought a token."""
    num_rests: int = 0
    """Likewise."""
    peer: bytes = b""
    """Who serves the running attempt."""
    sent_at: float = 0.0
    """When the running attempt began, in Unix seconds; what was expected of it:"""
    expected_s: float = 0.0
    promised_tokens: int = 0
    patience_ms: int = 0
    """0: it may not be handed back."""
    due_at: float = math.inf
    """When the running attempt is overdue: a node that did not hand the request back promised as much; infinity when
    it may take as long as it takes."""
    position: int = 0
    is_accepted: bool = False
    """Whether the running attempt was, and with what:"""
    uncached_tokens: int = 0
    vitals: Vitals | None = None
    resumed: int = 0
    """How often the request moved after its first token."""
    failed_peers: set[bytes] = field(default_factory=set)
    busy_peers: set[bytes] = field(default_factory=set)
    """Those of them that only were busy."""
    last_failure: str = ""
    was_loss: bool = False
    """Whether that was of a node or of its engine, which may be back soon."""
    num_bounces: int = 0
    num_moves: int = 0
    """How often it was taken away from a node where it was overdue."""
    prefill_s: float = 0.0
    """That the prompt was expected to take at the node of the running attempt; 0: its speed is not known."""
    pace: TokenPace = field(default_factory=lambda: TokenPace(math.inf, 1.0, 0))
    """Of the running attempt."""
    is_watched: bool = False
    """Whether it may move if that is slow."""
    num_late_moves: int = 0
    """How often it did after that node had begun."""
    truths: dict[bytes, int] = field(default_factory=dict)
    """Tokens of the prompt that nodes which handed it back hold, as they said."""
    num_engine_losses: int = 0
    may_be_held_until: float = 0.0
    """It came when told, and until then waits rather than being refused again; 0: it did not."""
    is_doubted: bool = False
    """A peer called the request impossible: this node's own engine is asked next, and its word is final."""

    @cached_property
    def own_chain(self) -> list[int]:
        """``chain``, as the entry node remembers what it sent where: apart for each owner."""
        return self._own(self.chain)

    @property
    def answered_chain(self) -> list[int]:
        """The same of prompt and answer."""
        return self._own(block_hashes(self.namespace, [*self.prompt, *self.generated]))

    def _own(self, chain: Sequence[int]) -> list[int]:
        mask = self.salt.mask
        return [block ^ mask for block in chain]

    @property
    def num_tokens(self) -> int:
        """Of the prompt and of the answer so far: what the next attempt's prompt has."""
        return len(self.prompt) + len(self.generated)

    @property
    def has_begun(self) -> bool:
        """Whether the node of the running attempt has begun to compute."""
        return self.is_accepted or self.position > 0

    @property
    def is_complete(self) -> bool:
        """Every token that was asked for has arrived, though the final frame may have been lost."""
        return len(self.generated) >= self.sampling.max_tokens

    def begin_attempt(
        self, peer: bytes, promised_tokens: int, expected_s: float, patience_s: float | None, now: float
    ) -> Generate:
        """Start the next attempt at ``peer``, which is believed to hold ``promised_tokens`` and to send the first token
        after ``expected_s``, and shall hand it back if it could not do so after ``patience_s`` (None: never); what to
        send it. Mutates."""
        if self.generated:
            self.resumed += 1
        self.attempt += 1
        self.tries += 1
        self.peer = peer
        self.sent_at, self.expected_s, self.promised_tokens = now, expected_s, promised_tokens
        self.patience_ms = 0 if patience_s is None else min(max(round(1000 * patience_s), 1), MAX_SMALL)
        self.due_at = math.inf
        self.position = 0
        self.is_accepted = self.is_watched = False
        self.vitals = None
        if self.spelling is not None:
            self.spelling.begin_attempt()
        done = len(self.generated)
        return Generate(
            request_id=self.request_id,
            namespace=self.namespace,
            prompt=pack_tokens(self.prompt) + pack_tokens(self.generated),
            sampling=msgspec.structs.replace(self.sampling, max_tokens=self.sampling.max_tokens - done),
            promised_tokens=promised_tokens,
            resumed_tokens=done,
            patience_ms=self.patience_ms,
            tag=self.salt.tag_at(peer),
            scope=self.salt.scope,
            open_tokens=self.open_tokens,
        )

    def on_accepted(self, frame: Accepted) -> None:
        """Raises RemoteError unless this is the first frame of the attempt: others could keep it open for ever.
        Mutates."""
        if self.has_begun:
            raise RemoteError("accepted in the middle of an answer")
        self.is_accepted = True
        self.uncached_tokens = max(self.num_tokens - frame.cached_tokens, 1)
        self.vitals = frame.vitals

    def prefill_expected_s(self) -> float:
        """What the prompt was expected to take at the node of the running attempt, which has begun with it, and may
        have found less of it in its cache."""
        return self.prefill_s * max(self.uncached_tokens / max(self.num_tokens - self.promised_tokens, 1), 1.0)

    def silence_s(self, config: RequestConfig) -> float:
        """How long the node of the running attempt may say nothing, by what it told when it began: while it computes
        the prompt, and then while it has tokens that it holds back, as they may be the beginning of a stop string, a
        token for each byte of it. Others that it works on share its rates. Who waits for a slot has told
        nothing but what it was chosen on."""

        def allowed_s(word_s: float) -> float:
            return config.min_silence_s + config.silence_factor * word_s

        vitals, told_s, most_s = self.vitals, 0.0, config.max_silence_s
        if self.position:
            num_tokens, rate = 1 + self.max_withheld, vitals.decode_rate if vitals else 0
        else:
            told_s = self.expected_s
            slowest_s = allowed_s(self.num_tokens / config.slowest_prefill_rate)
            most_s = min(max(most_s, slowest_s), config.longest_silence_s)
            num_tokens, rate = self.uncached_tokens, vitals.prefill_rate if vitals else 0
        if vitals is None or not rate:
            return min(max(config.max_silence_s, allowed_s(told_s)), most_s)
        return min(allowed_s(num_tokens * max(vitals.active_requests, vitals.slots, 1) / rate), most_s)

    def on_bounced(self, frame: Bounced, wait_s: float) -> None:
        """The node handed the request back: by what it says, the first token would come after ``wait_s``. Raises
        RemoteError, and changes nothing, if that is no reason or it began to serve. Mutates."""
        if self.has_begun:
            raise RemoteError("handed back in the middle of an answer")
        if not self.patience_ms or wait_s * 1000 <= self.patience_ms:
            raise RemoteError("handed back without a reason")
        self.num_bounces += 1
        self.truths[self.peer] = min(frame.cached_tokens, self.num_tokens)

    def on_tokens(self, frame: Tokens, is_own: bool = False) -> tuple[tuple[int, ...], bytes]:
        """The new tokens of a frame and their text. Raises RemoteError, and changes nothing, if it is out of place,
        more than was asked for, or says something else than its tokens. is_own: it is of this node's own engine.
        Mutates."""
        if frame.position != self.position:
            raise RemoteError(f"tokens at {frame.position}, expected {self.position}")
        tokens = unpack_tokens(frame.tokens)
        if not tokens:
            raise RemoteError("text without tokens")  # (which no max_tokens would bound)
        if len(self.generated) + len(tokens) > self.sampling.max_tokens:
            raise RemoteError("more tokens than were asked for")
        if len(frame.text) > len(tokens) * MAX_TEXT_BYTES_PER_TOKEN:
            raise RemoteError("more text than the tokens can have")
        if [entry.chosen.token for entry in frame.logprobs] != (tokens if self.sampling.logprobs else []):
            raise RemoteError("not the logprobs that were asked for")
        if any(len(entry.top) > self.sampling.logprobs for entry in frame.logprobs):
            raise RemoteError("more alternatives than were asked for")
        text = frame.text
        if self.spelling is not None:
            text = self.spelling.add(tokens, text, frame.logprobs, is_own)
        self.position += len(tokens)
        self.generated.extend(tokens)
        return tuple(tokens), text

    @property
    def max_withheld(self) -> int:
        """Tokens that may be held back, as they may be the beginning of a stop string: one for each byte of it."""
        return max((len(stop.encode()) for stop in self.sampling.stop), default=0)

    def fail_attempt(self, reason: str, is_engine_loss: bool, is_loss: bool, is_busy: bool, is_late: bool) -> None:
        """The running attempt is over without an answer: is_loss: because the node or its engine was lost; is_busy: as
        the node is overloaded. If tokens came, everything that was counted against the request and against nodes begins
        anew: it kills no engine, and who failed it before may be back. Each such beginning costs a token, so there is
        an end. is_late: its tokens were too slow, as may be those of nodes that were left before. Mutates."""
        if self.position:
            if not is_late:
                self.failed_peers.clear()
                self.busy_peers.clear()
            self.tries = self.num_rests = self.num_engine_losses = 0
        else:
            self.num_engine_losses += is_engine_loss
        self.failed_peers.add(self.peer)
        if is_busy:
            self.busy_peers.add(self.peer)
        self.last_failure = reason
        self.was_loss = is_loss

    def rest(self) -> None:
        """No attempt is running, and whoever failed may be tried again later. It counts. Mutates."""
        self.num_rests += 1
        self.pause()
        self.failed_peers.clear()

    def pause(self) -> None:
        """No attempt is running, and who was busy may be tried again later. Mutates."""
        self.tries = 0
        self.peer, self.due_at = b"", math.inf
        self.failed_peers -= self.busy_peers
        self.busy_peers.clear()

    def usage(self, last: Usage | None) -> Usage:
        """What the whole request took, from the serving node's account of its last attempt (None: it was lost)."""
        return Usage(
            prompt_tokens=len(self.prompt),
            cached_tokens=min(last.cached_tokens, len(self.prompt)) if last else 0,
            completion_tokens=len(self.generated),
            queue_ms=last.queue_ms if last else 0,
            prefill_ms=last.prefill_ms if last else 0,
            decode_ms=last.decode_ms if last else 0,
        )
