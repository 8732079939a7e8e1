"""The protocol's tunables, parsed once by the caller. Every default has its cost or where it was measured."""

from dataclasses import dataclass

from mycelia.proto import WIRE_VERSION


@dataclass(frozen=True)
class DigestConfig:
    """Digests: how often to announce, when to doubt, what to refuse. Times in seconds, sizes in bytes."""

    delta_delay_s: float = 0.5
    """From a change to its delta, if the pace allows: stores come in bursts, and one message covers a burst."""
    delta_interval_s: float = 10.0
    """Between deltas under steady change. On real traces digests 10 s old cost under 0.1 points of hit ratio."""
    delta_burst: int = 3
    """Deltas that may go out ahead of that pace, so that the first changes after a quiet time are known at once."""
    delta_min_gap_s: float = 2.0
    """Least time between any two deltas of one owner."""
    push_bytes: int = 512
    """Largest change that is sent in the delta itself: a prompt of 3,600 tokens. Of a larger one only the head is
    announced, and each node fetches it once from the peer that announced it; a delta would arrive ``gossip_copies``
    times. At this size both take about as many bytes, and to fetch costs each node two messages more."""
    jitter: float = 0.2
    """Share by which every interval is varied at random, so that nodes do not send in step."""
    heartbeat_s: float = 30.0
    """Between heads without changes, each with the next seq, so that silence means absence."""
    reconcile_s: float = 30.0
    """Between reconciliations with one random peer, which repair what gossip lost."""
    repair_delay_s: tuple[float, float] = (0.2, 2.0)
    """Random wait (least, most) before a gap is repaired. What was only delayed arrives meanwhile and makes the repair
    smaller, and readers do not ask in step."""
    repair_attempts: int = 5
    """Questions for one gap; after them the next head or reconciliation starts over."""
    suspect_s: float = 90.0
    """Time without a head after which a digest is suspect: three heartbeats lost."""
    evict_s: float = 180.0
    """Time without a head after which a digest is forgotten. Heads issued longer ago are ignored."""
    floor_keep_s: float = 86_400.0
    """How long the version of a forgotten owner is kept, to refuse replays of older heads: a day."""
    max_clock_skew_s: float = 3_600.0
    """How far in the future a head may be. One further ahead would outrank every honest epoch."""
    advert_budget: int = 4_096
    """Entries that a node announces; a snapshot is then 37 kB."""
    max_version_burst: int = 5
    """Sets of one owner that a reader computes ahead of one per ``delta_min_gap_s``. Each costs a root over the whole
    set, about 10 ms at the hard limit, however few bytes the change has."""
    heads_per_s: float = 1.0
    """New versions of a digest a second that one peer may bring by gossip: twice what ``delta_min_gap_s`` allows."""
    heads_burst: float = 30.0
    """The same versions at once: gossip that was delayed for a minute arrives in one moment."""
    repairs_per_s: float = 20.0
    """Repairs a second that one peer may send without a question. A reconciliation brings at most 16 each 5 s."""
    repairs_burst: float = 200.0
    """The same repairs at once."""
    send_bytes_per_s: float = 131_072.0
    """Bytes of digests, repairs and questions sent a second: three default snapshots, a tenth of a home line."""
    send_burst_bytes: float = 4_194_304.0
    """The same bytes at once: a hundred snapshots, for a partition that heals or many nodes that start."""
    receive_bytes_per_s: float = 24_000.0
    """Bytes of digests a second that a node should receive. Above this measured rate it stretches the interval between
    its own deltas; all nodes that receive the same do so."""
    gossip_copies: float = 2.3
    """How often a gossip message is assumed to reach a node, which sees one copy. Simulated at a mesh degree of 4 with
    three messages a second or more; in a quiet swarm it is 3.1 times."""
    max_stretch: float = 3.0
    """Largest factor on ``delta_interval_s``. Digests 30 s old cost 0.6 points of hit ratio, 60 s old 3 points."""
    max_owners: int = 1_024
    """Number of digests of other nodes that are kept."""
    max_entries: int = 1_048_576
    """Entries kept of all digests together: a cell of 256 nodes at the default budget, a few hundred MB."""
    max_floors: int = 16_384
    """Versions of forgotten owners that are kept: 5 MB. A head is useless three minutes after it was issued, so an
    attacker who fills this table with invented owners can replay an older head for that long only."""
    repairs_per_minute: int = 12
    """Repairs with bytes sent to one reader about one owner, a minute. It bounds the bytes for a reader that keeps
    asking; nothing is packed for further questions."""
    repairs_per_reconcile: int = 16
    """Repairs sent in answer to one reconciliation."""
    requests_per_reconcile: int = 64
    """Repair requests sent in answer to one reconciliation."""
    min_reconcile_gap_s: float = 5.0
    """Least time between two reconciliations of one peer that are answered."""


@dataclass(frozen=True)
class CellConfig:
    """When a namespace splits into cells, and when they merge again; see ``cells.py``. Times in seconds."""

    max_cell_nodes: int = 256
    """Number of nodes above which a cell splits. What a node receives grows with it: about 25 kB/s here when busy."""
    min_cell_nodes: int = 80
    """Number of nodes below which a cell merges with its neighbour. Halves of a split have about 128 nodes and merged
    cells about 160: far enough from both limits that random changes do not undo a move."""
    min_cell_peers: int = 4
    """Connected nodes of a smaller cell needed to move there: owners can be invented, connections cannot."""
    split_hold_s: float = 30.0
    """How long a count must exceed its limit before a split; up to half as long again, at random. Nodes that left are
    forgotten by then."""
    merge_hold_s: float = 120.0
    """The same before a merge. Longer, because small cells cost some hits, while frequent moves cost whole digests."""
    cell_grace_s: float = 180.0
    """How long a node still listens and publishes in a cell that it leaves: until the nodes that also leave have moved,
    and the nodes that stay have forgotten only those that left (``evict_s``)."""
    newcomer_s: float = 60.0
    """How long a starting node follows the depth of most connected peers: two heartbeats, after which it can count."""


@dataclass(frozen=True)
class LadderConfig:
    """DHT records of long prefixes, for requests that another cell may know: ``ladder.py``. Times in seconds."""

    ladder_keys: int = 64
    """Keys that a node provides, one each 19 s. Simulated, one costs about 100 kB, so this many cost 6 kB/s; four times
    as many find hardly more (docs/scale.md)."""
    republish_s: float = 1_200.0
    """When a record is provided again: before readers and holders take it for stale, which is after 30 minutes."""
    min_prompt_tokens: int = 2_048
    """Least length of a prompt that is looked up. A shorter one is computed in about the time of a lookup."""
    known_share: float = 0.5
    """Share of a prompt that a known node may hold; above it a lookup could save less time than it may cost."""
    lookup_wait_s: float = 0.3
    """How long a request waits for its lookup if this node's prefill rate is unknown."""
    lookup_wait_share: float = 0.25
    """The same if the rate is known: as a share of the time to compute the tokens that no known node holds."""
    max_lookup_wait_s: float = 4.0
    """Longest such wait. Simulated between homes worldwide, a lookup takes 2 s, connection and digest 1 to 2 s."""
    lookup_over_s: float = 10.0
    """When a lookup ends. What it found by then is connected to for later requests."""
    max_lookups: int = 8
    """Lookups in flight."""
    lookups_per_s: float = 0.5
    """Lookups begun a second. A lookup of four keys costs some 40 messages at other nodes."""
    lookups_burst: float = 8.0
    """The same lookups at once."""
    max_dials: int = 2
    """Nodes that one lookup may make this one connect to: a false record costs no more."""
    ladder_peers: int = 16
    """Connections kept that lookups led to."""


@dataclass(frozen=True)
class RequestConfig:
    """Requests that entered at this node. Times in seconds."""

    max_in_flight: int = 1_024
    """Requests in flight; the subnets of the clients share them (``EntryPlaces``)."""
    max_waiting_per_slot: float = 4.0
    """Requests waiting at a node, per slot, above which an entry node sends it nothing new: a new request then waits
    for about as many others to end, however fast the node is. Nodes of a swarm at load 0.9 have up to 4 waiting. A node
    that serves alone takes what its engine takes: no other node would be sooner. Infinity: no prompt waits at its entry
    node, and none is refused there because nodes are busy."""
    max_attempts: int = 8
    """Nodes tried for one request without a token of an answer, before it fails."""
    rest_s: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    """Pauses after which a request is tried again whose nodes were all lost: a process that died is soon back."""
    begun_rests: int = 16
    """Pauses without a token, two minutes in total, of a request whose answer has begun. Its client has waited for its
    place once, and is not refused in the middle because other nodes are busy or gone for now."""
    max_engine_losses: int = 2
    """Engines that died on one request, as their nodes say, before only this node's own is tried. The request may be
    the cause, but one dishonest node must not keep it from all others."""
    min_silence_s: float = 5.0
    """Least silence before a working node is given up; ``silence_factor`` x its time for the next tokens is added."""
    max_silence_s: float = 120.0
    """The silence allowed if the node's rates are unknown, and the most otherwise: claims alone make no request wait
    much longer. The first token of a long prompt may take ``silence_factor`` times as long as at
    ``slowest_prefill_rate``."""
    silence_factor: float = 3.0
    """How many times as long as by its own rates a node may take before it is given up."""
    slowest_prefill_rate: float = 20.0
    """Tokens/s of the slowest node that is waited for: a laptop without a GPU and a model of 8 billion parameters."""
    longest_silence_s: float = 3_600.0
    """Longest silence before the first token, for a prompt of any length."""
    own_dispatch_s: float = 60.0
    """How long a prompt sent to a peer counts as held there, before the peer's digest contains it."""
    private_dispatch_s: float = 600.0
    """The same, with the answer, for a prompt that no digest will contain because only its client may reuse it."""


@dataclass(frozen=True)
class RoutingConfig:
    """The terms of the cost in ``routing/choose.py``, and what is observed for it. Times in seconds."""

    load_exponent: float = 0.6
    """Exponent of the load factor while the load report is fresh. From 0.5 to 0.7 results are the same within chance;
    at 0 and at 1.5 the median wait is a tenth to a fifth longer."""
    spread: float = 0.7
    """Random spread of costs where the swarm is busy: the time until a usual prompt's first token is multiplied by 1 to
    1 + this."""
    spread_load: float = 0.25
    """Requests per slot from which on the swarm counts as busy; below it the spread is proportionally smaller."""
    load_half_life_s: float = 15.0
    """Age of a load report at which the exponent is halved: a load reported 30 s ago says little."""
    told_half_life_s: float = 60.0
    """Age of a load report at which half of the reported queue counts as done."""
    keep_factor: float = 1.25
    """A conversation stays at its node while that costs at most this times the least cost, and ``keep_s`` more."""
    keep_s: float = 0.01
    """See ``keep_factor``."""
    default_prefill_rate: float = 500.0
    """Tokens/s if no candidate's rate is known: a small model on a processor."""
    min_prefill_rate: float = 1.0
    """Lower bound on claimed rates, in tokens/s."""
    max_prefill_rate: float = 200_000.0
    """Upper bound on claimed and observed rates, in tokens/s."""
    max_hold_s: float = 3_600.0
    """Upper bound on the claimed time for which a request holds its slot."""
    default_round_trip_s: float = 0.1
    """Round trip to a peer until it is measured, seconds after the connection is up."""
    observation_weight: float = 0.2
    """Weight of the newest observation of a peer's precision or lateness in their moving averages."""
    observation_half_life_s: float = 120.0
    """In this time an observation loses half its effect: a node avoided for it gets another chance."""
    max_bounces: int = 2
    """Nodes that may hand one request back because it would wait longer there than expected."""
    max_moves: int = 2
    """Nodes that one request is taken away from because it is overdue there."""
    bounce_factor: float = 0.75
    """A request is handed back if it would wait longer than expected, or than this share of the time at the next best
    node if that is more, and ``bounce_s`` longer."""
    bounce_s: float = 0.05
    """See ``bounce_factor``. Smaller differences are within what no node knows exactly."""
    pace_factor: float = 3.0
    """How many times as long as expected a prompt or a token may take before it is late. Nodes that answer other
    requests at the same time are slower by as much."""
    late_s: float = 2.0
    """How late it may be before a move is considered, twice as much after each move: a machine that pauses for a moment
    keeps its requests."""
    default_token_s: float = 0.25
    """Expected time between two tokens before any were seen: a laptop and a large model."""
    max_slowness: float = 4.0
    """Largest factor on the usual time between two tokens that is expected of a node which was slow before; and on the
    usual prefill time at a node whose rate is unknown."""
    max_lateness_s: float = 600.0
    """Upper bound on one observation of lateness."""
    failure_s: float = 4.0
    """Least lateness that a failed attempt counts as."""
    max_observed: int = 4_096
    """Number of nodes of which observations are kept."""


@dataclass(frozen=True)
class VitalsConfig:
    """Which nodes report their load to which; see ``planes/vitals.py``. Times in seconds."""

    vitals_interval_s: float = 1.0
    """Least time between two reports of load. Routing on load 1 s old is near that on fresh load, 30 s old is far."""
    vitals_fanout: int = 16
    """Peers that get a report of one change, unless more subscribed. Bounds messages a second."""
    max_subscribers: int = 64
    """Subscriptions that a node grants: a popular node sends this many messages of 60 bytes a second."""
    subscriptions: int = 16
    """Subscriptions that a node holds."""
    rivals: int = 4
    """The cheapest candidates of a decision, to which it subscribes."""
    lease_s: float = 20.0
    """How long a subscription lasts; it is renewed after half of that while it is used."""
    settled_s: float = 2.0
    """A subscription used within this time is not given up for another."""


@dataclass(frozen=True)
class TrustConfig:
    offences_to_quarantine: int = 10
    """Number of offences at which a peer is cut off."""
    offence_decay_s: float = 60.0
    """Time after which one offence is forgiven."""
    quarantine_s: float = 600.0
    """How long a peer is cut off, in seconds."""
    max_tracked: int = 4_096
    """Peers whose offences are remembered."""


@dataclass(frozen=True)
class OverlayConfig:
    digest: DigestConfig = DigestConfig()
    cells: CellConfig = CellConfig()
    ladder: LadderConfig = LadderConfig()
    request: RequestConfig = RequestConfig()
    routing: RoutingConfig = RoutingConfig()
    trust: TrustConfig = TrustConfig()
    vitals: VitalsConfig = VitalsConfig()
    hello_timeout_s: float = 10.0
    """Seconds without a hello after which a connection counts as a client's or relay's and gets no requests."""
    hello_repeats: int = 3
    """Hellos sent again to a silent connection: either side's may be lost, and a repeated one is answered."""
    max_peers: int = 512
    """Connected peers of which the overlay keeps state."""
    agent: str = "mycelia"
    """Name of the software in hellos."""
    wire_version: int = WIRE_VERSION
    """Different only in tests, which play an older or newer node."""
