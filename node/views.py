"""The readable forms of an answer's frames and of a node's state, for users and programs.

They are the shapes of ``mycelia ... --json`` and of the local API; the wire has its own types.
"""

import msgspec

from mycelia.node.errors import Attempt
from mycelia.node.peer_id import peer_text
from mycelia.proto.wire.blocks import unpack_tokens
from mycelia.proto.wire.messages import (
    Answered,
    Begun,
    EntryFrame,
    Failed,
    Logprob,
    PromptLogprobs,
    Route,
    Text,
    TokenLogprobs,
)

MAX_TIMEOUT_S = 86_400.0
"""A day: a longer timeout is a typing error."""
PUBLIC_SUFFIX = "@public"
"""Ends the name of a model that is asked for in the open network, at a node that is in a private one as well."""


class CandidateView(msgspec.Struct, frozen=True):
    """A candidate node: one line of ``--explain``."""

    peer: str
    matched_tokens: int
    queued_requests: int
    cost: float
    """The seconds until the first token, weighed with the load (``proto/routing/choose.py``): lower is better."""
    round_trip_ms: int
    queue_ms: int
    prefill_ms: int
    load_factor: float
    precision: float
    lateness_ms: int
    recompute_ms: int


class RouteView(msgspec.Struct, frozen=True, tag="route"):
    """Where the prompt goes, and why. Sent again when the request moves."""

    chosen: str
    reason: str
    prompt_tokens: int
    candidates: list[CandidateView]
    namespace: str = ""
    """Namespace of the answering model in hexadecimal. It stands for the model's file, its settings and the swarm."""
    format: str = ""
    opened: str = ""
    """See ``Route``; empty unless requested."""


class BegunView(msgspec.Struct, frozen=True, tag="begun"):
    """A node has begun to answer. Sent again when the request moved."""

    served_by: str
    cached_tokens: int


class LogprobView(msgspec.Struct, frozen=True):
    """A token and the natural logarithm of its probability."""

    token: int
    text: str
    """With U+FFFD for incomplete characters."""
    bytes: list[int]
    logprob: float


class TokenLogprobsView(LogprobView, frozen=True):
    """A token of the answer, with the likeliest tokens at its place."""

    top: list[LogprobView]


class TextView(msgspec.Struct, frozen=True, tag="text", omit_defaults=True):
    text: str
    logprobs: list[TokenLogprobsView] = []
    """Omitted unless requested."""
    tokens: list[int] = []
    thought: str = ""
    """What the model wrote for itself, before ``text``. The node sends all as text; clients split it."""


class PromptLogprobsView(msgspec.Struct, frozen=True, tag="prompt_logprobs"):
    position: int
    logprobs: list[TokenLogprobsView]


class AnsweredView(msgspec.Struct, frozen=True, tag="answered"):
    """The end of an answer. Times in ms: ``ttft_ms`` was measured at the entry node, the rest at the serving node."""

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
    """Seconds after which to ask again, as in the header Retry-After; 0: unknown."""


FrameView = RouteView | BegunView | PromptLogprobsView | TextView | AnsweredView | FailedView


def frame_view(frame: EntryFrame) -> FrameView:
    """The readable form of a frame."""
    match frame:
        case Route():
            return RouteView(
                namespace=frame.namespace.hex(),
                format=frame.format,
                opened=frame.opened,
                chosen=peer_text(frame.chosen),
                reason=frame.reason,
                prompt_tokens=frame.prompt_tokens,
                candidates=[
                    CandidateView(**msgspec.structs.asdict(one) | {"peer": peer_text(one.peer)})
                    for one in frame.candidates
                ],
            )
        case Begun():
            return BegunView(peer_text(frame.served_by), frame.cached_tokens)
        case PromptLogprobs():
            return PromptLogprobsView(frame.position, [_logprobs_view(entry) for entry in frame.logprobs])
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


def is_keep_alive(frame: EntryFrame | FrameView) -> bool:
    """Whether the frame says only that the answer is still in work, see ``KEEP_ALIVE``."""
    return isinstance(frame, Text | TextView) and not (frame.text or frame.tokens or frame.logprobs)


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
    """Requests that the peer runs at once; 0: not reported yet."""
    prefill_rate: int
    """Measured by the peer, tokens/s; 0 before its first request."""
    round_trip_ms: float | None
    connected_s: float
    path: str = ""
    """direct, punched (both sides opened their routers for it), relayed, or LAN."""
    relay: str = ""
    """The peer through which a relayed connection leads."""
    version: str = ""
    """The version of Mycelia that the peer reports, which may be any; empty: none, as of another program."""


class UpgradeView(msgspec.Struct, frozen=True):
    """What ``mycelia upgrade`` prints."""

    version: str
    """The version of the running node or, without --check, of this program."""
    installed: str
    """The version of this program."""
    newest: str
    """The newest version that a connected peer reports; empty: none does."""
    is_newer: bool
    """Whether ``newest`` is newer than ``version``."""
    peers: int
    """Connected peers that report a version."""
    newer_peers: int
    newer_networks: int
    """The networks (an IPv4 /24 or IPv6 /48, say) of those peers: one stranger can be many peers in few of them."""
    kind: str
    """archive, image, pipx, uv, checkout or wheel."""
    upgrade: str
    """What to do, as the end of a sentence."""


class ReloadView(msgspec.Struct, frozen=True):
    """What ``mycelia config reload`` prints."""

    changed: list[str]
    """Keys of the section [node] whose new values the node uses from now on."""
    needs_restart: list[str]
    """Keys whose new values it uses from its next start on."""


class ModelRow(msgspec.Struct, frozen=True):
    """One line of ``mycelia models``."""

    model: str
    nodes: int
    """Nodes that serve it, this one included. A lower bound, if the peers' reports are true."""
    context_tokens: int
    """The longest prompt with its answer that any of these nodes accepts."""
    connected: int = 0
    """Those of ``nodes`` that are this node or connected to it; 0: the model is known only from other nodes' reports.
    """
    reuse: str = ""
    """How prompts of the model reuse what is cached, see ``ModelInfo``; empty: unknown, as of others' models."""
    kind: str = ""
    """text, embedding or rerank; empty: unknown, as of models of nodes that do not say it."""


class ServedRow(msgspec.Struct, frozen=True):
    """A model that the node serves."""

    model: str
    namespace: str
    """In hexadecimal."""
    context_tokens: int
    reuse: str
    state: str
    """loaded, loading, unloading or unloaded: then the next request loads it."""
    active_requests: int
    waiting_requests: int
    slots: int
    cells: int
    """Capacity of the KV cache in tokens."""
    cached_tokens: int
    load_s: float = 0.0
    """Seconds that loading it takes; 0: not measured."""
    memory_bytes: int = 0
    """The most that its engine took; 0: not measured, as of a node with one model."""
    kept_bytes: int = 0
    """Room for prefixes beside the KV cells, also while it is not loaded; 0: not counted."""
    kind: str = "text"
    """text, embedding or rerank."""


class TreeRowView(msgspec.Struct, frozen=True):
    """One edge of the radix tree, parents before children."""

    level: int
    tokens: int
    depth_tokens: int
    """From the root to the edge's end."""
    is_leaf: bool
    text: str
    """Beginning of the edge's text."""
    model: str = ""
    """The model whose cache it is; empty: the node serves only one."""


class TrafficView(msgspec.Struct, frozen=True):
    """Bytes of the overlay's messages, without the transport's overhead."""

    received_bytes: dict[str, int]
    """By plane (digests, vitals, requests), since the start; of gossip only the first copies."""
    received_bytes_per_s: dict[str, float]
    received_kinds: dict[str, int]
    """By kind of message."""
    digests_sent_bytes: int
    digests_sent_kinds: dict[str, int]
    deltas_postponed: int
    """They waited for the budget of sent bytes, and then carried the newest state."""
    repairs_dropped: int
    """Repairs and questions that exceeded the budget; nodes ask for them again."""


class StatsView(msgspec.Struct, frozen=True):
    """A node's counters since its start."""

    entered: dict[str, int]
    """Requests that entered here, by outcome: answered, cancelled, or the code of the failure."""
    served: dict[str, int]
    """Requests served here for any client, by the same outcomes and ``handed_back``."""
    entered_prompt_tokens: int
    """Prompt tokens of the answered requests that entered here."""
    entered_cached_tokens: int
    served_prompt_tokens: int
    served_cached_tokens: int
    generated_tokens: int
    promised_tokens: int
    """Cached tokens that digests promised for the prompts that entered here."""
    found_tokens: int
    """Those of ``promised_tokens`` that were found."""
    moves: int
    evictions: int
    ttft_ms_p50: int | None
    """Median of the last 256 answers to prompts that entered here; None: there was none."""
    ttft_ms_p99: int | None


class RequestRow(msgspec.Struct, frozen=True):
    id: str
    """In hexadecimal, 32 digits."""
    started_at: float
    """Seconds since 1970."""
    model: str
    client: str
    """A peer id, or the id that stands for an API key; empty: this machine."""
    status: str = "running"
    """running, answered, failed, cancelled, or interrupted: the node ended before the answer did."""
    code: str = ""
    """The reason for the end: stop, length, or the code of the failure."""
    served_by: str = ""
    reason: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    ttft_ms: int | None = None
    total_ms: int | None = None
    resumed: int = 0


class UsageRow(msgspec.Struct, frozen=True):
    """What an API key used of a model in one day."""

    day: str
    """A day of UTC, such as 2026-01-31."""
    key: str
    """The key's name; ``local``: the programs on this machine."""
    model: str
    """As the client named it, or what an alias means; ``(others)``: further models of this key; empty: refused
    requests."""
    requests: int
    """Without the refused ones. Of a request with several choices each counts, with its prompt."""
    failed: int
    refused: int
    """For the key's limits."""
    prompt_tokens: int
    cached_tokens: int
    """Those of ``prompt_tokens`` that were found computed."""
    completion_tokens: int


class PausedView(msgspec.Struct, frozen=True):
    paused: str
    """Why the node takes no prompts of others now; empty: it takes them."""


class DayRow(msgspec.Struct, frozen=True):
    """What a node gave to others and received from them in one day, by its local clock."""

    day: str
    """Such as 2026-01-31."""
    given_requests: int = 0
    """Prompts of others that were answered here."""
    given_tokens: int = 0
    """Tokens computed for them: of prompts, without cached ones, and of answers."""
    given_s: float = 0.0
    """Time of the engine for them: one answer takes a slot, and several may share the time."""
    received_requests: int = 0
    """Prompts of this machine and its API keys that other nodes answered."""
    received_tokens: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    """Traffic with peers outside the local network, of all kinds."""


class TraceRow(msgspec.Struct, frozen=True):
    """A step of a request, at any node."""

    at_ms: float
    """Time since the request came to the node that was asked for the trace. At other nodes: since the request was sent
    there, plus half of the round trip, because clocks are not compared."""
    node: str
    name: str
    detail: str
    peer: str
    """The other node of this step; empty: none."""


class TraceView(msgspec.Struct, frozen=True):
    """The way of a request through the swarm."""

    id: str
    steps: list[TraceRow]
    silent: list[str]
    """Nodes of this request that sent no steps."""


class LinkRow(msgspec.Struct, frozen=True):
    peer: str
    round_trip_ms: float | None


class LinksRow(msgspec.Struct, frozen=True):
    """The connections that a peer reports."""

    peer: str
    links: list[LinkRow]


class RelayedView(msgspec.Struct, frozen=True):
    """What a node passes on for others as their relay, and its limits; see ``Relayed`` in ``network/network.py``."""

    circuits: int = 0
    max_circuits: int = 0
    places: int = 0
    max_places: int = 0
    bytes: int = 0
    max_bytes_per_s: int = 0


class PublicPart(msgspec.Struct, frozen=True):
    """The part of a node in the open network, if the node is in a private one as well. Fields: see ``NodeState``."""

    peer: str
    addresses: list[str]
    peers: list[PeerRow]
    attempts: list[Attempt]


class NodeState(msgspec.Struct, frozen=True):
    """The state that a running node reports of itself."""

    peer: str
    version: str
    addresses: list[str]
    model: str
    namespace: str
    cell_bits: int
    """Depth of the node's cell; 0 while all nodes of the model form one cell, see ``proto/cells/cells.py``."""
    context_tokens: int
    reuse: str
    active_requests: int
    waiting_requests: int
    slots: int
    exchanges: int
    """Open streams of requests with peers, in both directions."""
    tasks: int
    cached_tokens: int
    cells: int
    """Capacity of the KV cache in tokens."""
    uptime_s: float
    stats: StatsView
    peers: list[PeerRow]
    traffic: TrafficView
    refused: dict[str, int]
    """Things from peers that were not used, since the start: count by reason (see ``proto/wire/refusals.py``)."""
    served: list[ServedRow] = []
    """The models that the node serves, first the one of ``model`` to ``reuse``. The numbers of requests, slots, cells
    and tokens above are sums."""
    relayed: RelayedView = RelayedView()
    swarm: str = ""
    """Name of the private swarm in which the node runs; empty: the open network."""
    attempts: list[Attempt] = []
    """What was tried to find a first peer, and what came of it, while no peer is connected."""
    paused: str = ""
    """Why the node takes no prompts of others now; empty: it takes them."""
    auto: str = ""
    """The model that the node chose itself, and why; empty: it does not choose."""
    public: PublicPart | None = None
    """The same node in the open network; all else but the engine's load and ``stats`` is of the private one then."""
