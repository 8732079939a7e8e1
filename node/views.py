"""What a person or a program is shown: the frames of an answer and the state of a node, with readable names.

These are the shapes of ``mycelia ... --json`` and of the local API; the wire's own types stay on the wire.
"""

import msgspec

from mycelia.node.peer_id import peer_text
from mycelia.proto.wire.blocks import unpack_tokens
from mycelia.proto.wire.messages import (
    STILL_THERE,
    Answered,
    Begun,
    EntryFrame,
    Failed,
    Logprob,
    Route,
    Text,
    TokenLogprobs,
)

MAX_TIMEOUT_S = 86_400.0
"""Of one answer. A day: more is a slip of the pen."""


class CandidateView(msgspec.Struct, frozen=True):
    """One line of ``--explain``."""

    peer: str
    matched_tokens: int
    queued_requests: int
    cost: float
    """Seconds until the first token times load: lower is better."""
    round_trip_ms: int
    queue_ms: int
    prefill_ms: int
    load_factor: float
    precision: float
    lateness_ms: int
    recompute_ms: int


class RouteView(msgspec.Struct, frozen=True, tag="route"):
    """Where the prompt goes, and why; sent again when it moves."""

    chosen: str
    reason: str
    prompt_tokens: int
    candidates: list[CandidateView]
    namespace: str = ""
    """Of the model that answers, hexadecimal: its file, settings and swarm."""


class BegunView(msgspec.Struct, frozen=True, tag="begun"):
    """A node has begun; sent again when the request moved."""

    served_by: str
    cached_tokens: int


class LogprobView(msgspec.Struct, frozen=True):
    """A token and the natural logarithm of its probability."""

    token: int
    text: str
    """With U+FFFD for what is no whole character."""
    bytes: list[int]
    logprob: float


class TokenLogprobsView(LogprobView, frozen=True):
    """A token of the answer, and the likeliest ones at its place."""

    top: list[LogprobView]


class TextView(msgspec.Struct, frozen=True, tag="text", omit_defaults=True):
    text: str
    logprobs: list[TokenLogprobsView] = []
    """Left out unless they were asked for."""
    tokens: list[int] = []
    """Whose text this is."""


class AnsweredView(msgspec.Struct, frozen=True, tag="answered"):
    """The end of an answer. Times in ms, as measured: ttft at the entry node, the rest at the serving node."""

    served_by: str
    finish_reason: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    ttft_ms: int
    queue_ms: int
    prefill_ms: int
    decode_ms: int
    resumed: int


class FailedView(msgspec.Struct, frozen=True, tag="failed"):
    code: str
    message: str
    retryable: bool
    retry_after_s: float = 0.0
    """Of ``overloaded``: when to ask again; 0: unknown."""


FrameView = RouteView | BegunView | TextView | AnsweredView | FailedView


def frame_view(frame: EntryFrame) -> FrameView:
    """The readable form of a frame."""
    match frame:
        case Route():
            return RouteView(
                namespace=frame.namespace.hex(),
                chosen=peer_text(frame.chosen),
                reason=frame.reason,
                prompt_tokens=frame.prompt_tokens,
                candidates=[
                    CandidateView(
                        peer=peer_text(c.peer),
                        matched_tokens=c.matched_tokens,
                        queued_requests=c.queued_requests,
                        cost=c.cost,
                        round_trip_ms=c.round_trip_ms,
                        queue_ms=c.queue_ms,
                        prefill_ms=c.prefill_ms,
                        load_factor=c.load_factor,
                        precision=c.precision,
                        lateness_ms=c.lateness_ms,
                        recompute_ms=c.recompute_ms,
                    )
                    for c in frame.candidates
                ],
            )
        case Begun():
            return BegunView(peer_text(frame.served_by), frame.cached_tokens)
        case Text():
            logprobs = [_logprobs_view(entry) for entry in frame.logprobs]
            return TextView(frame.text, logprobs, unpack_tokens(frame.tokens))
        case Answered():
            usage = frame.usage
            return AnsweredView(
                served_by=peer_text(frame.served_by),
                finish_reason=frame.reason,
                prompt_tokens=usage.prompt_tokens,
                cached_tokens=usage.cached_tokens,
                completion_tokens=usage.completion_tokens,
                ttft_ms=frame.ttft_ms,
                queue_ms=usage.queue_ms,
                prefill_ms=usage.prefill_ms,
                decode_ms=usage.decode_ms,
                resumed=frame.resumed,
            )
        case Failed():
            return FailedView(frame.code, frame.message, frame.retryable, frame.retry_after_ms / 1000)


STILL_THERE_VIEW = frame_view(STILL_THERE)


def _logprobs_view(entry: TokenLogprobs) -> TokenLogprobsView:
    chosen, top = entry.chosen, [_logprob_view(other) for other in entry.top]
    return TokenLogprobsView(
        chosen.token, chosen.text.decode("utf-8", "replace"), list(chosen.text), chosen.logprob, top
    )


def _logprob_view(entry: Logprob) -> LogprobView:
    return LogprobView(entry.token, entry.text.decode("utf-8", "replace"), list(entry.text), entry.logprob)


class PeerRow(msgspec.Struct, frozen=True):
    """One line of ``mycelia peers``."""

    peer: str
    address: str
    models: list[str]
    digest: str
    """live, syncing, suspect or none."""
    digest_blocks: int
    active_requests: int
    waiting_requests: int
    slots: int
    """Requests that it works on at once; 0: not told yet."""
    prefill_rate: int
    """Measured there, tokens/s; 0 before the first request."""
    round_trip_ms: float | None
    connected_s: float


class ModelRow(msgspec.Struct, frozen=True):
    """One line of ``mycelia models``."""

    model: str
    nodes: int
    """That serve it, this one included: at least so many, as far as peers tell the truth."""
    context_tokens: int
    """Of a prompt with its answer, the most that any of them takes."""
    connected: int = 0
    """Of these nodes: this one, and those that it is connected with; 0: it has the model from hearsay alone."""


class TreeRowView(msgspec.Struct, frozen=True):
    """One edge of the radix tree, parents before children."""

    level: int
    tokens: int
    """On this edge."""
    depth_tokens: int
    """From the root to the edge's end."""
    is_leaf: bool
    text: str
    """Beginning of the edge's text."""


class TrafficView(msgspec.Struct, frozen=True):
    """Bytes of the overlay's messages, without the transport's own."""

    received_bytes: dict[str, int]
    """Plane (digests, vitals, requests) -> since the start; of gossip the first copy only."""
    received_bytes_per_s: dict[str, float]
    """Lately."""
    received_kinds: dict[str, int]
    """The same by the kind of the message."""
    digests_sent_bytes: int
    digests_sent_kinds: dict[str, int]
    deltas_postponed: int
    """They waited for the budget of sent bytes, and then told the newest state."""
    repairs_dropped: int
    """Repairs and questions that the budget did not allow; they are asked for again."""


class StatsView(msgspec.Struct, frozen=True):
    """What a node did since its start."""

    entered: dict[str, int]
    """Requests that entered here: answered, cancelled, or the code of the failure -> how many."""
    served: dict[str, int]
    """Requests of anybody that were served here, likewise, and ``handed_back``."""
    entered_prompt_tokens: int
    """Of the answered ones that entered here."""
    entered_cached_tokens: int
    served_prompt_tokens: int
    served_cached_tokens: int
    generated_tokens: int
    """Here, for anybody."""
    promised_tokens: int
    """What digests promised of the prompts that entered here."""
    found_tokens: int
    """And what of that was there."""
    moves: int
    """Attempts after a request's first."""
    evictions: int
    """Prefixes that left the KV cache."""
    ttft_ms_p50: int | None
    """Of the last 256 answers to prompts that entered here; None: there was none."""
    ttft_ms_p99: int | None


class RequestRow(msgspec.Struct, frozen=True):
    """A request that entered at this node."""

    id: str
    """In hexadecimal, 32 digits."""
    started_at: float
    """Seconds since 1970."""
    model: str
    client: str
    """A peer's id, or what stands for an API key; empty: this machine."""
    status: str = "running"
    """running, answered, failed, cancelled, or interrupted: the node ended before the answer did."""
    code: str = ""
    """Why it ended: stop or length, or the failure's code."""
    served_by: str = ""
    reason: str = ""
    """Why that node."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    ttft_ms: int | None = None
    total_ms: int | None = None
    resumed: int = 0


class TraceRow(msgspec.Struct, frozen=True):
    """A step of a request, at whichever node."""

    at_ms: float
    """Since the request came to the node that was asked. At other nodes, since it was sent there plus half of the round
    trip: clocks are not compared."""
    node: str
    name: str
    detail: str
    peer: str
    """The other node that has to do with it; empty: none."""


class TraceView(msgspec.Struct, frozen=True):
    """A request's way."""

    id: str
    steps: list[TraceRow]
    """In the order of time."""
    silent: list[str]
    """Nodes that had to do with it and did not tell."""


class LinkRow(msgspec.Struct, frozen=True):
    peer: str
    round_trip_ms: float | None


class LinksRow(msgspec.Struct, frozen=True):
    """Whom a peer says that it is connected to."""

    peer: str
    links: list[LinkRow]


class NodeState(msgspec.Struct, frozen=True):
    """What a running node tells of itself."""

    peer: str
    version: str
    addresses: list[str]
    model: str
    namespace: str
    cell_bits: int
    """Depth of the node's cell: 0 while all nodes of the model are one, see ``proto/cells/cells.py``."""
    context_tokens: int
    reuse: str
    active_requests: int
    waiting_requests: int
    slots: int
    exchanges: int
    """Open streams of requests with peers, in both directions."""
    tasks: int
    """Of the node's event loop."""
    cached_tokens: int
    cells: int
    """What the KV cache holds at most, in tokens."""
    uptime_s: float
    stats: StatsView
    peers: list[PeerRow]
    traffic: TrafficView
    refused: dict[str, int]
    """What of peers was not used: reason (see ``proto/wire/refusals.py``) -> how often since the start."""
    circuits: int = 0
    """Connections of others that this node passes on as their relay."""
