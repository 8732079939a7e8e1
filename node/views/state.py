"""The readable forms of a node's state, for users and programs: ``mycelia status --json`` and the local API."""

import msgspec

from mycelia.node.errors import Attempt


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


class PausedView(msgspec.Struct, frozen=True):
    paused: str
    """Why the node takes no prompts of others now; empty: it takes them."""


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
