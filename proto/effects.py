"""The effects that an overlay wants: imperatives, performed by the shell or the simulator in the given order."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from mycelia.proto.cells.cells import ROOT, Cell
from mycelia.proto.events import Timer
from mycelia.proto.routing.choose import Decision
from mycelia.proto.wire.messages import Control, Generate, Gossip, TokenLogprobs, Usage

MAX_SENDS_PER_PEER = 32
"""``Send`` effects that are under way to one peer. Further ones are dropped, and the protocol recovers what they
carried."""


@dataclass(frozen=True)
class Publish:
    """Send to the gossip topic of a joined cell of ``namespace``. May be lost."""

    namespace: bytes
    message: Gossip
    cell: Cell = ROOT


@dataclass(frozen=True)
class JoinCell:
    """Subscribe to the gossip of a cell of ``namespace``, be found by its nodes and look for them. ROOT was joined with
    the namespace; a node can always be found under the namespace itself."""

    namespace: bytes
    cell: Cell


@dataclass(frozen=True)
class LeaveCell:
    """End what JoinCell began; for ROOT only the subscription."""

    namespace: bytes
    cell: Cell


@dataclass(frozen=True)
class Send:
    """One control message over a direct stream. May be lost; nothing waits for it."""

    peer: bytes
    message: Control


@dataclass(frozen=True)
class SetTimer:
    """Fire ``timer`` at ``at`` (same clock as ``now``); replaces an earlier setting of the same timer."""

    timer: Timer
    at: float


@dataclass(frozen=True)
class CancelTimer:
    timer: Timer


@dataclass(frozen=True)
class Disconnect:
    """Close every connection with ``peer`` and refuse new ones until ``banned_until``."""

    peer: bytes
    reason: str
    banned_until: float


@dataclass(frozen=True)
class Connect:
    """Dial a peer named in ProvidersFound. May fail; nothing waits for it."""

    peer: bytes


@dataclass(frozen=True)
class Provide:
    """Announce to the DHT that this node provides ``key`` (16 bytes, see ``ladder.py``), for half an hour."""

    namespace: bytes
    key: bytes


@dataclass(frozen=True)
class FindProviders:
    """Look up all ``keys`` in the DHT at once. Report each as ProvidersFound when done, also without providers."""

    request_id: bytes
    namespace: bytes
    keys: tuple[bytes, ...]


@dataclass(frozen=True)
class Dispatch:
    """Open attempt number ``attempt`` of a request at ``peer`` (which may be this node) with ``generate``.

    Report what comes as FrameReceived and StreamLost of the same attempt.
    """

    request_id: bytes
    attempt: int
    peer: bytes
    generate: Generate
    decision: Decision


@dataclass(frozen=True)
class Begin:
    """A node has begun with the request; again when it moved. cached_tokens: prompt tokens in its cache."""

    request_id: bytes
    served_by: bytes
    cached_tokens: int


@dataclass(frozen=True)
class Deliver:
    """Generated tokens for the client, each exactly once and in order; ``text`` is their UTF-8."""

    request_id: bytes
    tokens: tuple[int, ...]
    text: bytes
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One per token if the request asks for them, else none."""


@dataclass(frozen=True)
class DeliverPromptLogprobs:
    """Logprobs of the prompt's tokens from ``position`` on, each exactly once, in order and before any ``Deliver``."""

    request_id: bytes
    position: int
    logprobs: tuple[TokenLogprobs, ...]


@dataclass(frozen=True)
class Finish:
    """The request is answered. ``resumed``: how often it moved after its first token."""

    request_id: bytes
    served_by: bytes
    reason: str
    usage: Usage
    resumed: int


@dataclass(frozen=True)
class Fail:
    """The request will not be answered; fields as in ``messages.Failed``."""

    request_id: bytes
    code: str
    message: str
    retryable: bool
    retry_after_ms: int = 0


@dataclass(frozen=True)
class Abandon:
    """Cancel the running attempt of a request at the node that serves it."""

    request_id: bytes
    attempt: int


@dataclass(frozen=True)
class Emit:
    """An event for a log line or a counter."""

    event: str
    fields: Mapping[str, object] = field(default_factory=dict)


NetworkEffect = Publish | JoinCell | LeaveCell | Send | Disconnect | Connect | Provide | FindProviders
TimerEffect = SetTimer | CancelTimer
RequestEffect = Dispatch | Begin | DeliverPromptLogprobs | Deliver | Finish | Fail | Abandon
Effect = NetworkEffect | TimerEffect | RequestEffect | Emit
