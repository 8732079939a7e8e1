"""One request at the node where it entered: dispatch, stream, resume, and each token to the client exactly once.

             +--> LOOKING, HELD, RESTING --+
             |                             |
    ROUTING -+--> SENT --> COMPUTING --> STREAMING --> OVER
       ^           |           |             |
       +-----------+-----------+-------------+    (stream lost, refused for now, handed back, or too slow)

``TRANSITIONS`` has every step. ROUTING lasts only while one event is handled: after it the request waits, is at a node,
or is over.

A stream that ends without its final frame is resumed at another node with prompt + tokens so far. Each token is
delivered exactly once because a frame is accepted only if it starts at the current position of the attempt, and frames
of earlier attempts are ignored. A node that failed a request is not tried again for it. A node that handed it back may
be, with what it reported.

Invariants: there is an attempt in SENT, COMPUTING and STREAMING and in no other state; ``len(generated) <=
max_tokens``; ``attempt.position`` counts the running attempt's tokens only.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import cached_property

import msgspec

from mycelia.proto.answers.frame_checks import check_logprobs, checked_tokens
from mycelia.proto.answers.spelling import Spelling
from mycelia.proto.cache.sharing import Salt
from mycelia.proto.config import RequestConfig
from mycelia.proto.planes.attempt import Attempt
from mycelia.proto.planes.failure import Failure
from mycelia.proto.wire.blocks import STRIDE, block_hashes, pack_tokens
from mycelia.proto.wire.errors import LocalError, RemoteError
from mycelia.proto.wire.messages import (
    Accepted,
    Bounced,
    Generate,
    PromptLogprobs,
    Sampling,
    Tokens,
    Usage,
)


class State(Enum):
    ROUTING = auto()
    """No node has it, and it waits for nothing."""
    LOOKING = auto()
    """It waits for a lookup of the ladder, or for the digests of the nodes that the lookup found."""
    HELD = auto()
    """It came at its retry time, and waits until a node has a place."""
    RESTING = auto()
    """The nodes that had it were lost: it waits until they may be back."""
    SENT = auto()
    """A node has it, and has not reported a start."""
    COMPUTING = auto()
    STREAMING = auto()
    """Tokens of this attempt have come."""
    OVER = auto()


class Step(Enum):
    """An action on a request; the comments name the methods."""

    LOOK_UP = auto()  # look_up
    HOLD = auto()  # hold
    REST = auto()  # rest
    WAKE = auto()  # wake
    SEND = auto()  # begin_attempt
    ACCEPT = auto()  # on_accepted
    TOKENS = auto()  # on_tokens
    HAND_BACK = auto()  # on_bounced
    FAIL = auto()  # fail_attempt
    END = auto()  # end


TRANSITIONS: Mapping[State, Mapping[Step, State]] = {
    State.ROUTING: {
        Step.LOOK_UP: State.LOOKING,
        Step.HOLD: State.HELD,
        Step.REST: State.RESTING,
        Step.SEND: State.SENT,
        Step.END: State.OVER,
    },
    State.LOOKING: {Step.WAKE: State.ROUTING, Step.END: State.OVER},
    State.HELD: {Step.WAKE: State.ROUTING, Step.END: State.OVER},
    State.RESTING: {Step.WAKE: State.ROUTING, Step.END: State.OVER},
    State.SENT: {
        Step.ACCEPT: State.COMPUTING,
        Step.TOKENS: State.STREAMING,
        Step.HAND_BACK: State.ROUTING,
        Step.FAIL: State.ROUTING,
        Step.END: State.OVER,
    },
    State.COMPUTING: {Step.TOKENS: State.STREAMING, Step.FAIL: State.ROUTING, Step.END: State.OVER},
    State.STREAMING: {Step.TOKENS: State.STREAMING, Step.FAIL: State.ROUTING, Step.END: State.OVER},
    State.OVER: {},
}
WAITING = frozenset({State.LOOKING, State.HELD, State.RESTING})
RUNNING = frozenset({State.SENT, State.COMPUTING, State.STREAMING})
"""A node has the request: there is an attempt."""

_NO_USAGE = Usage(prompt_tokens=0, cached_tokens=0, completion_tokens=0, queue_ms=0, prefill_ms=0, decode_ms=0)


@dataclass
class Setbacks:
    """Counts against a request, and against nodes for it, since its last token."""

    tries: int = 0
    """Attempts since the request last waited."""
    num_rests: int = 0
    num_engine_losses: int = 0
    failed_peers: set[bytes] = field(default_factory=set)
    """Nodes that are not tried again."""
    busy_peers: set[bytes] = field(default_factory=set)
    """Those of them that were only busy."""


@dataclass
class Request:
    """State of one request; ``RequestPlane`` drives it and turns what it returns into effects.

    Every method that takes a ``Step`` raises LocalError, and changes nothing, if ``TRANSITIONS`` does not allow it.
    """

    request_id: bytes
    namespace: bytes
    prompt: Sequence[int]
    sampling: Sampling
    client: bytes = b""
    """See ``RequestSubmitted`` for ``client``, ``salt`` and ``open_tokens``."""
    subnet: bytes = b""
    """The group in which its client is counted, see ``Membership.subnet``."""
    is_first: bool = False
    """Nothing else of its subnet was in flight here when it came."""
    salt: Salt = Salt()  # noqa: RUF009  immutable
    open_tokens: int = 0
    spelling: Spelling | None = None
    """Follows the text of the answer; None: the vocabulary is unknown."""
    generated: list[int] = field(default_factory=list)
    state: State = State.ROUTING
    num_attempts: int = 0
    setbacks: Setbacks = field(default_factory=Setbacks)
    resumed: int = 0
    """How often the request moved after its first token."""
    last_failure: Failure | None = None
    last_reason: str = ""
    """The same in words; empty: no attempt has failed."""
    num_bounces: int = 0
    num_moves: int = 0
    """How often the request was moved from a node that did not begin in time."""
    num_late_moves: int = 0
    """How often it was moved from a node that had begun."""
    truths: dict[bytes, int] = field(default_factory=dict)
    """Peer -> tokens of the prompt it holds, as it reported when it handed the request back."""
    sought: Set[bytes] = frozenset()
    """Nodes whose digests a lookup waits for; empty while it goes on."""
    may_be_held_until: float = 0.0
    """The request came at its retry time and until then waits instead of being refused; 0: it did not."""
    num_known: int = 1
    """Leading tokens of the prompt that are reported or need no report, if logprobs of the prompt are asked for."""
    is_doubted: bool = False
    """A peer called the request impossible: this node's own engine is asked next and decides."""
    _attempt: Attempt | None = None

    def __post_init__(self) -> None:
        self.num_known = max(self.num_known, self.sampling.logprobs_from)

    @property
    def attempt(self) -> Attempt:
        """The running attempt. Raises LocalError if none runs."""
        if self._attempt is None:
            raise LocalError(f"no attempt runs while a request is {self.state.name}")
        return self._attempt

    @property
    def peer(self) -> bytes:
        """The node of the running attempt; empty if none runs."""
        return self._attempt.peer if self._attempt is not None else b""

    @property
    def is_waiting(self) -> bool:
        return self.state in WAITING

    @property
    def is_running(self) -> bool:
        return self.state in RUNNING

    @property
    def has_begun(self) -> bool:
        """Whether the node of the running attempt has begun to compute."""
        return self.state in (State.COMPUTING, State.STREAMING)

    @cached_property
    def chain(self) -> Sequence[int]:
        return block_hashes(self.namespace, self.prompt)

    @cached_property
    def own_chain(self) -> list[int]:
        """``chain`` as the entry node remembers what it sent where: different for each owner."""
        return self._own(self.chain)

    @property
    def answered_chain(self) -> list[int]:
        """The same for prompt and answer."""
        return self._own(block_hashes(self.namespace, [*self.prompt, *self.generated]))

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt and of the answer so far: the next attempt's prompt."""
        return len(self.prompt) + len(self.generated)

    @property
    def is_complete(self) -> bool:
        """Whether every token that was asked for has come, at least one, though the final frame may be lost."""
        return bool(self.generated) and len(self.generated) >= self.sampling.max_tokens

    @property
    def lacks_logprobs(self) -> bool:
        """Whether logprobs of the prompt are asked for and did not come yet."""
        return self.sampling.prompt_logprobs > 0 and self.num_known < len(self.prompt)

    @property
    def num_reusable(self) -> int:
        """Most tokens whose cells may be reused: a token's logprobs need the computation of the token before it, and
        nodes compute some more rows so that the kernels are the same."""
        if not self.lacks_logprobs:
            return self.num_tokens
        return max(min(self.num_known - 1, self.num_tokens - STRIDE), 0)

    @property
    def max_withheld(self) -> int:
        """Tokens that may be held back because they may begin a stop string: one per byte of it."""
        return max((len(stop.encode()) for stop in self.sampling.stop), default=0)

    def is_last_attempt(self, config: RequestConfig) -> bool:
        """Whether no further attempt may follow."""
        return self.setbacks.tries >= config.max_attempts

    def may_rest(self, config: RequestConfig, is_busy: bool) -> bool:
        """Whether the request failed only because nodes were lost, which may be back soon, or, after its answer has
        begun, because they are busy. Never for a request that may be what kills engines."""
        if self.setbacks.num_engine_losses >= config.max_engine_losses or self.is_doubted:
            return False
        was_loss = self.last_failure is not None and self.last_failure.is_loss
        if self.generated:
            return (was_loss or is_busy) and self.setbacks.num_rests < config.begun_rests
        return was_loss and self.setbacks.num_rests < len(config.rest_s)

    # --- steps: all mutate -----------------------------------------------------------------------------------------

    def look_up(self) -> None:
        self._step(Step.LOOK_UP)
        self.sought = frozenset()

    def hold(self) -> None:
        """Wait until a node has a place; nodes that were busy may be tried again then."""
        self._step(Step.HOLD)
        self._forget_busy()

    def rest(self) -> None:
        """Wait until nodes that failed may be tried again. The number of rests is bounded."""
        self._step(Step.REST)
        self.setbacks.num_rests += 1
        self._forget_busy()
        self.setbacks.failed_peers.clear()

    def wake(self) -> None:
        self._step(Step.WAKE)

    def begin_attempt(self, attempt: Attempt) -> Generate:
        """Start ``attempt``, whose number is the next one. Returns what to send to its node."""
        if attempt.number != self.num_attempts + 1:
            raise LocalError(f"attempt {attempt.number} after {self.num_attempts}")
        self._step(Step.SEND)
        if self.generated:
            self.resumed += 1
        self.num_attempts += 1
        self.setbacks.tries += 1
        self._attempt = attempt
        if self.spelling is not None:
            self.spelling.begin_attempt()
        sampling = msgspec.structs.replace(self.sampling, max_tokens=self.sampling.max_tokens - len(self.generated))
        if sampling.prompt_logprobs:
            sampling = msgspec.structs.replace(sampling, logprobs_from=self.num_known)
        return Generate(
            request_id=self.request_id,
            namespace=self.namespace,
            prompt=pack_tokens(self.prompt) + pack_tokens(self.generated),
            sampling=sampling,
            promised_tokens=attempt.promised_tokens,
            resumed_tokens=len(self.generated),
            patience_ms=attempt.patience_ms,
            tag=self.salt.tag_at(attempt.peer),
            scope=self.salt.scope,
            open_tokens=self.open_tokens,
        )

    def on_accepted(self, frame: Accepted) -> None:
        """The node has begun. Raises RemoteError for a repeated frame, which could keep the attempt open for ever."""
        if self.has_begun:
            raise RemoteError("accepted in the middle of an answer")
        self._step(Step.ACCEPT)
        self.attempt.on_accepted(frame)

    def on_bounced(self, frame: Bounced, wait_s: float) -> None:
        """The node handed the request back: by its report the first token would come after ``wait_s``. Raises
        RemoteError, and changes nothing, if that is no reason or it began to serve."""
        if self.has_begun:
            raise RemoteError("handed back in the middle of an answer")
        patience_ms = self.attempt.patience_ms
        if not patience_ms or wait_s * 1000 <= patience_ms:
            raise RemoteError("handed back without a reason")
        self.truths[self.peer] = min(frame.cached_tokens, self.num_tokens)
        self._step(Step.HAND_BACK)
        self.num_bounces += 1

    def on_prompt_logprobs(self, frame: PromptLogprobs, is_own: bool = False) -> None:
        """The next tokens of the prompt are reported. Raises RemoteError, and changes nothing, if the frame is out of
        place, was not asked for or is about other tokens."""
        if self.attempt.position or not self.lacks_logprobs:
            raise RemoteError("logprobs of the prompt that were not asked for")
        if frame.position != self.num_known:
            raise RemoteError(f"logprobs of the prompt from {frame.position} on, expected {self.num_known}")
        end = frame.position + len(frame.logprobs)
        check_logprobs(frame.logprobs, self.prompt[frame.position : end], self.sampling.prompt_logprobs)
        if self.spelling is not None and not is_own:
            self.spelling.check_logprobs(frame.logprobs)
        self.num_known = end

    def on_tokens(self, frame: Tokens, is_own: bool = False) -> tuple[tuple[int, ...], bytes]:
        """The new tokens of a frame and their text. Raises RemoteError, and changes nothing, if the frame is out of
        place, has more than was asked for, or text that is not its tokens'. is_own: this node's engine sent it."""
        if frame.position != self.attempt.position:
            raise RemoteError(f"tokens at {frame.position}, expected {self.attempt.position}")
        if self.lacks_logprobs:
            raise RemoteError("tokens before the logprobs of the prompt")
        tokens = checked_tokens(frame, self.sampling.max_tokens - len(self.generated), self.sampling)
        text = frame.text
        if self.spelling is not None:
            text = self.spelling.add(tokens, text, frame.logprobs, is_own)
        self._step(Step.TOKENS)
        self.attempt.position += len(tokens)
        self.generated.extend(tokens)
        return tuple(tokens), text

    def fail_attempt(self, failure: Failure, reason: str) -> None:
        """The running attempt ended without an answer.

        If tokens came, all counts against the request and against nodes begin anew: the request kills no engine, and
        nodes that failed before may be back. Each such reset costs a token, so there is an end. If the tokens were only
        too slow, failed nodes stay excluded: they may be slow as well.
        """
        peer, position, setbacks = self.attempt.peer, self.attempt.position, self.setbacks
        self._step(Step.FAIL)
        if position:
            is_slow = failure is Failure.TOO_SLOW
            left = (setbacks.failed_peers, setbacks.busy_peers) if is_slow else (set[bytes](), set[bytes]())
            self.setbacks = setbacks = Setbacks(failed_peers=left[0], busy_peers=left[1])
        else:
            setbacks.num_engine_losses += failure.is_engine_loss
        setbacks.failed_peers.add(peer)
        if failure.is_busy:
            setbacks.busy_peers.add(peer)
        self.last_failure, self.last_reason = failure, reason

    def end(self) -> None:
        self._step(Step.END)

    # --- the end of an answer --------------------------------------------------------------------------------------

    def ends_short(self, reason: str, context_tokens: int) -> bool:
        """Whether the answer ended early because its node, whose context is ``context_tokens`` long, has no room for
        more. Raises RemoteError for an end that no honest node gives."""
        if self.spelling is not None and reason != "cancelled":
            self.spelling.end(reason)
        if self.lacks_logprobs and reason != "cancelled":
            raise RemoteError("an end before the logprobs of the prompt")
        if reason != "length" or len(self.generated) >= self.sampling.max_tokens:
            return False
        if self.num_tokens < context_tokens:
            raise RemoteError("an end by length before that length")
        return True

    def usage(self, last: Usage | None) -> Usage:
        """The usage of the whole request, from the serving node's account of its last attempt (None: it was lost)."""
        last = last or _NO_USAGE
        return msgspec.structs.replace(
            last,
            prompt_tokens=len(self.prompt),
            cached_tokens=min(last.cached_tokens, len(self.prompt)),
            completion_tokens=len(self.generated),
        )

    def check_invariants(self) -> None:
        assert self.is_running or self.is_waiting, self.state
        assert self.is_running == (self._attempt is not None)
        assert len(self.generated) <= self.sampling.max_tokens
        assert self.peer not in self.setbacks.failed_peers
        assert self.setbacks.busy_peers <= self.setbacks.failed_peers
        if self._attempt is not None:
            assert self._attempt.number == self.num_attempts
            assert (self._attempt.position > 0) == (self.state is State.STREAMING)

    def _step(self, step: Step) -> None:
        after = TRANSITIONS[self.state].get(step)
        if after is None:
            raise LocalError(f"no {step.name} for a request that is {self.state.name}")
        self.state = after
        if after not in RUNNING:
            self._attempt = None

    def _forget_busy(self) -> None:
        self.setbacks.tries = 0
        self.setbacks.failed_peers -= self.setbacks.busy_peers
        self.setbacks.busy_peers.clear()

    def _own(self, chain: Sequence[int]) -> list[int]:
        mask = self.salt.mask
        return [block ^ mask for block in chain]
