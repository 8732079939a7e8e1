"""The events of an overlay: past facts, given to ``Overlay.handle`` by the shell or the simulator."""

from collections.abc import Sequence
from dataclasses import dataclass

from mycelia.proto.admission.trust import Offender
from mycelia.proto.answers.spelling import Vocabulary
from mycelia.proto.cache.sharing import Salt
from mycelia.proto.cells.cells import ROOT, Cell
from mycelia.proto.digests.floors import Floor
from mycelia.proto.routing.observed import Observation
from mycelia.proto.wire.messages import Control, Gossip, Sampling, ServingFrame, Vitals
from mycelia.proto.wire.refusals import Refusal


@dataclass(frozen=True)
class Timer:
    """The name of one timer; setting it again moves it."""

    kind: str
    subject: bytes = b""
    namespace: bytes = b""


# --- of the network ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Connected:
    """The first connection with ``peer`` is up, or another one that leads to another address is now the best."""

    peer: bytes
    address: str
    """Multiaddr of the remote end as this side sees it, for display."""


@dataclass(frozen=True)
class Disconnected:
    """The last connection with ``peer`` is gone."""

    peer: bytes


@dataclass(frozen=True)
class Received:
    """A control message over a direct stream from ``peer``."""

    peer: bytes
    message: Control


@dataclass(frozen=True)
class Gossiped:
    """A message on a cell's gossip topic, signed by ``author``, last forwarded by ``forwarder``."""

    author: bytes
    forwarder: bytes
    namespace: bytes
    message: Gossip
    cell: Cell = ROOT


@dataclass(frozen=True)
class Malformed:
    """``peer`` sent bytes that are no message, or a kind on the wrong stream."""

    peer: bytes
    reason: str
    refusal: Refusal = Refusal.MALFORMED


@dataclass(frozen=True)
class RoundTripMeasured:
    """The round trip of a connection with ``peer``, at least each half minute."""

    peer: bytes
    seconds: float


NetworkEvent = Connected | Disconnected | Received | Gossiped | Malformed | RoundTripMeasured


@dataclass(frozen=True)
class ProvidersFound:
    """The peers that claim to provide one key of a FindProviders; none if the lookup found none or failed."""

    request_id: bytes
    key: bytes
    providers: Sequence[bytes]


# --- of this node --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TimerFired:
    timer: Timer


@dataclass(frozen=True)
class ModelServed:
    """This node's engine is ready to serve a model."""

    namespace: bytes
    model: str
    context_tokens: int
    vitals: Vitals
    epoch: int
    """Version epoch of this node's digest: larger than every earlier one, normally the Unix time in ms."""
    vocabulary: Vocabulary | None = None
    """The model's vocabulary, by which peers' answers are checked. None: they cannot be."""
    has_states: bool = False
    """Prompts of this model begin at saved states, see ``cache/checkpoints.py``: what the cache holds is of use as a
    whole only, and its digests list nothing but the last block of each."""


@dataclass(frozen=True)
class ModelWithdrawn:
    """This node serves a model no more. What it has begun goes on."""

    namespace: bytes


@dataclass(frozen=True)
class Leaving:
    """This node is about to leave: it ends what it has begun, here and for others, and takes nothing new."""


@dataclass(frozen=True)
class Paused:
    """This node takes no prompts of other nodes while ``is_paused``, because the owner of the machine needs it. Its own
    prompts are answered as usual. Repeat it every few minutes: peers forget old reports, see ``told_half_life_s``."""

    is_paused: bool


@dataclass(frozen=True)
class FloorsRestored:
    """The result of ``Overlay.floors`` before this node restarted. Must come before any event of the network."""

    floors: Sequence[Floor]


@dataclass(frozen=True)
class TrustRestored:
    """The results of ``Overlay.offenders`` and ``Overlay.observations`` before a restart. Must come as early."""

    offenders: Sequence[Offender]
    observations: Sequence[Observation]


@dataclass(frozen=True)
class CacheChanged:
    """The engine's prefix cache changed: forget all leaves if ``reset``, drop ``evicted`` ids, add ``stored`` leaves,
    given as paths (``sharing.py``)."""

    namespace: bytes
    stored: Sequence[tuple[int, Sequence[int]]]
    evicted: Sequence[int]
    reset: bool = False


@dataclass(frozen=True)
class VitalsChanged:
    namespace: bytes
    vitals: Vitals


# --- of requests that entered here ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class RequestSubmitted:
    """A client's prompt, in tokens."""

    request_id: bytes
    namespace: bytes
    prompt: Sequence[int]
    sampling: Sampling
    client: bytes = b""
    """The client: a light client's peer id; empty for this node's own clients, which share their places."""
    generated: Sequence[int] = ()
    """Tokens of the answer that the client already has, from another entry node."""
    salt: Salt = Salt()  # noqa: RUF009  immutable
    """Names the owner whose cached prefixes the request may reuse, at any node."""
    open_tokens: int = 0
    """Number of leading tokens that hold no secrets."""


@dataclass(frozen=True)
class FrameReceived:
    """The node serving attempt number ``attempt`` of a request sent a frame."""

    request_id: bytes
    attempt: int
    frame: ServingFrame


@dataclass(frozen=True)
class StreamLost:
    """The stream of an attempt broke before its final frame."""

    request_id: bytes
    attempt: int
    reason: str


@dataclass(frozen=True)
class RequestCancelled:
    request_id: bytes


NodeEvent = (
    TimerFired
    | FloorsRestored
    | TrustRestored
    | ModelServed
    | ModelWithdrawn
    | CacheChanged
    | VitalsChanged
    | Paused
    | Leaving
)
RequestEvent = ProvidersFound | RequestSubmitted | FrameReceived | StreamLost | RequestCancelled
Event = NetworkEvent | NodeEvent | RequestEvent
