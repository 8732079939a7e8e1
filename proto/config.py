"""The protocol's tunables, parsed once by the caller. Every default says what it costs or where it was measured."""

from dataclasses import dataclass

from mycelia.proto import WIRE_VERSION


@dataclass(frozen=True)
class DigestConfig:
    """The metadata plane: how often to tell, when to doubt, what to refuse."""

    delta_delay_s: float = 0.5
    """A change goes out this soon when the budget allows: stores come in bursts, one message covers a burst."""
    delta_interval_s: float = 10.0
    """Between deltas under steady change. On real traces digests 10 s old cost under 0.1 points of hit ratio against
    fresh ones."""
    delta_burst: int = 3
    """Deltas that may go out ahead of that pace: after a quiet time the first changes are seen at once."""
    delta_min_gap_s: float = 2.0
    """Between any two deltas of one owner."""
    push_bytes: int = 128
    """Larger changes are announced by their head, and each node fetches them once, from where it heard of them:
    pushed, they would arrive ``gossip_copies`` times."""
    jitter: float = 0.2
    """Share of every interval drawn at random, so that nodes do not speak in step."""
    heartbeat_s: float = 30.0
    """A head with a bumped seq when nothing changed, so that silence means absence."""
    reconcile_s: float = 30.0
    """Pairwise anti-entropy with one random peer: heals whatever gossip lost."""
    repair_delay_s: tuple[float, float] = (0.2, 2.0)
    """A gap is repaired after a random wait: what was only overtaken arrives meanwhile and makes the repair smaller,
    and readers do not ask in step."""
    repair_attempts: int = 5
    """Then the next head or reconciliation starts over."""
    suspect_s: float = 90.0
    """Three heartbeats lost."""
    evict_s: float = 180.0
    floor_keep_s: float = 86_400.0
    """How long a forgotten owner's version still refuses replays of older heads."""
    max_clock_skew_s: float = 3_600.0
    """Heads from further in the future than this are refused: they would outrank every honest epoch."""
    advert_budget: int = 4_096
    """Entries a node tells of; a snapshot is then 37 kB."""
    max_version_burst: int = 5
    """Sets of one owner that are taken ahead of one per ``delta_min_gap_s``: each costs a root over the whole set,
    about 10 ms at the hard cap, however few bytes the change has."""
    heads_per_s: float = 1.0
    """New versions of one owner in one namespace that one peer may bring by gossip: twice what
    ``delta_min_gap_s`` lets out."""
    heads_burst: float = 30.0
    """And ahead of that: what a mesh held back for a minute arrives at once."""
    repairs_per_s: float = 20.0
    """Repairs that one peer may send unasked: a reconciliation brings 16 of them each 5 s at most."""
    repairs_burst: float = 200.0
    send_bytes_per_s: float = 131_072.0
    """Digests, repairs and questions together: three snapshots of the default size a second, a tenth of a home line."""
    send_burst_bytes: float = 4_194_304.0
    """A hundred snapshots at once: a partition that heals, many nodes that start."""
    receive_bytes_per_s: float = 24_000.0
    """Of digests, as measured. Above it the interval between own deltas is stretched; all who hear the same do the
    same."""
    gossip_copies: float = 3.0
    """Times that a gossip message reaches a node; the node sees one of them. Simulated at a mesh degree of 4."""
    max_stretch: float = 3.0
    """Of ``delta_interval_s``: digests 30 s old cost 0.6 points of hit ratio, digests 60 s old 3."""
    max_owners: int = 1_024
    """Estimates kept."""
    max_entries: int = 1_048_576
    """Kept of all owners together: a cell of 256 nodes at the default budget, a few hundred MB."""
    max_floors: int = 16_384
    """5 MB. A head says when it was issued and is of no use three minutes later: whoever crowds a floor out with
    invented owners can show an older head for so long."""
    repairs_per_minute: int = 12
    """With bytes, to one reader, of one owner: a reader that keeps asking costs bounded bytes, and nothing is packed
    for one that asks more often."""
    repairs_per_reconcile: int = 16
    requests_per_reconcile: int = 64
    min_reconcile_gap_s: float = 5.0
    """Reconciliations that one peer may start with us."""


@dataclass(frozen=True)
class CellConfig:
    """When a namespace splits into cells and when they merge again, see ``cells.py``."""

    max_cell_nodes: int = 256
    """Above it a cell splits: what its nodes receive grows with it, about 25 kB/s at this size under busy change."""
    min_cell_nodes: int = 80
    """Below it a cell merges with its neighbour. Halves of a split have about 128, and two that merge about 160: far
    enough from either limit that chance does not undo what was just done."""
    min_cell_peers: int = 4
    """A node goes deeper only while it is connected to so many nodes of the smaller cell: owners can be invented,
    connections cannot."""
    split_hold_s: float = 30.0
    """A count over the limit must last so long, and up to half as much again at random: nodes that were only late to
    be forgotten are gone by then."""
    merge_hold_s: float = 120.0
    """Longer: small cells cost some hits, cells that change their minds cost whole digests."""
    cell_grace_s: float = 180.0
    """How long a node listens and publishes in a cell that it leaves: until whoever goes as well has gone, and whoever
    stays has forgotten nobody who did not leave (``evict_s``)."""
    newcomer_s: float = 60.0
    """How long a node that starts does what most of its connected peers do: two heartbeats, and then it can count."""


@dataclass(frozen=True)
class LadderConfig:
    """Records of long prefixes in the DHT, for requests whose prefix another cell may hold, see ``ladder.py``."""

    ladder_keys: int = 64
    """That a node provides: one each 19 s. Simulated, one costs about 100 kB, so this many 6 kB/s; four times as many
    find hardly more (docs/scale.md)."""
    republish_s: float = 1_200.0
    """A record must be said again before readers and holders take it for stale, 30 minutes."""
    min_prompt_tokens: int = 2_048
    """Shorter ones are computed in about the time that a lookup takes."""
    known_share: float = 0.5
    """Of a prompt. Above it a lookup could save less than it may delay."""
    lookup_wait_s: float = 0.3
    """That a request waits where it is not known how fast this node computes prompts."""
    lookup_wait_share: float = 0.25
    """Of the time that this node would take for the tokens that nobody is known to hold: where it is known."""
    max_lookup_wait_s: float = 4.0
    """Simulated between homes all over the world, a lookup takes 2 s and a connection and a digest 1 to 2 s more."""
    lookup_over_s: float = 10.0
    """Then a lookup is over; what it found until then is dialled for the requests to come."""
    max_lookups: int = 8
    """In flight."""
    lookups_per_s: float = 0.5
    """A lookup of four keys costs some 40 messages at other nodes."""
    lookups_burst: float = 8.0
    max_dials: int = 2
    """Nodes that one lookup may make this one connect with: all that a false record costs."""
    ladder_peers: int = 16
    """Connections kept that lookups led to."""


@dataclass(frozen=True)
class RequestConfig:
    """Requests that entered at this node."""

    max_in_flight: int = 1_024
    max_waiting_per_slot: float = 4.0
    """Of a node's slots, above which nothing new goes there: whoever is let in waits for about as many requests to end,
    however fast the node is. Nodes of a swarm that is asked 0.9 of what it can answer have up to 4 waiting. A node that
    serves alone takes what its engine does: nobody else would be sooner."""
    max_attempts: int = 8
    """Nodes tried for one request without a token of an answer before it fails."""
    rest_s: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    """Pauses after which a request whose nodes were all lost is tried again: a process that died is soon back."""
    begun_rests: int = 16
    """Pauses without a token, two minutes in all, of a request whose answer has begun: its client has waited for its
    place once, and is not sent away in the middle because all others are busy or gone for now."""
    max_engine_losses: int = 2
    """Engines that died on one request, as their nodes say, before only this node's own is tried: it may be the
    request that kills them, and a liar must not be able to say so for everybody."""
    min_silence_s: float = 5.0
    """A node that works on a request is given up when it is silent for longer than this and what its next word may take
    by its own rates, ``silence_factor`` times, but not before ``max_silence_s`` when those are not known."""
    max_silence_s: float = 120.0
    """However slow it says that it is, but before the first token of a long prompt: that may take ``silence_factor``
    times as long as at ``slowest_prefill_rate``. So claims alone make nobody wait for much longer."""
    silence_factor: float = 3.0
    slowest_prefill_rate: float = 20.0
    """Tokens/s: a laptop without a GPU and a model of 8 thousand million parameters."""
    longest_silence_s: float = 3_600.0
    """However long the prompt is."""
    own_dispatch_s: float = 60.0
    private_dispatch_s: float = 600.0
    """How long a prompt sent to a peer counts as held there before the peer's digest says so itself."""


@dataclass(frozen=True)
class RoutingConfig:
    """The cost of ``routing/choose.py`` and what is observed for it."""

    load_exponent: float = 0.7
    """Of the load factor while the load is fresh."""
    recompute_weight: float = 0.5
    """Of the time that the swarm's usual node takes for what would be computed again: what it costs others, if nobody
    has anything to do."""
    crowd_weight: float = 7.0
    """And so much more where all are busy: times (1 + n) ** 2 - 1, for n requests a slot. At 0 hit ratios are 4 points
    lower there."""
    spread: float = 0.7
    """How much more than the best a node may cost and be chosen by luck, where the swarm is busy."""
    spread_load: float = 0.25
    """Requests a slot from which on the swarm counts as busy; below it, by its share."""
    load_half_life_s: float = 15.0
    """In which the exponent halves: load told 30 s ago says little."""
    told_half_life_s: float = 60.0
    """In which half of a queue that a node told of counts as done, if it tells nothing more."""
    keep_factor: float = 1.25
    keep_s: float = 0.01
    """A conversation stays where it is unless another node costs less than this share, and this much, of it."""
    default_prefill_rate: float = 500.0
    """Tokens/s, when no candidate's is known: a small model on a processor."""
    min_prefill_rate: float = 1.0
    max_prefill_rate: float = 200_000.0
    """Clamp what peers claim, as the next."""
    max_hold_s: float = 3_600.0
    default_round_trip_s: float = 0.1
    """Until it is measured, seconds after the connection is up."""
    observation_weight: float = 0.2
    """Of the newest observation of a peer's precision or lateness."""
    observation_half_life_s: float = 120.0
    """In which what was observed fades: who is avoided for it gets another chance."""
    max_bounces: int = 2
    """Nodes that may hand a request back because it would wait longer there than it was sent for."""
    max_moves: int = 2
    """Nodes that a request is taken away from because it is overdue there."""
    bounce_factor: float = 0.75
    bounce_s: float = 0.05
    """A request is handed back when its wait is longer than was expected, or than this share of what the next best node
    would take, and this much: less is within what nobody knows exactly."""
    pace_factor: float = 3.0
    """How many times as long as expected a prompt or a token may take before it is late: nodes that answer others
    beside are slower by as much."""
    late_s: float = 2.0
    """How late it may be before starting anew elsewhere is thought of, and twice as late each time after: a machine
    that does something else for a moment is not left for it."""
    default_token_s: float = 0.25
    """Expected between two tokens before any were seen: a laptop and a large model."""
    max_slowness: float = 4.0
    """Times the usual time between two tokens, at most, that is expected of a node which was as slow before; and times
    that of a prefill where it is not known how fast the node is."""
    max_lateness_s: float = 600.0
    """Bounds one observation."""
    failure_s: float = 4.0
    """How late an attempt that failed counts at least."""
    max_observed: int = 4_096


@dataclass(frozen=True)
class VitalsConfig:
    """Who tells whom how loaded it is, see ``planes/vitals.py``."""

    vitals_interval_s: float = 1.0
    """Load travels at most this often: routing on load 1 s old is near routing on fresh load, 30 s old is far."""
    vitals_fanout: int = 16
    """Peers told of one change of load unless more subscribed; bounds messages a second."""
    max_subscribers: int = 64
    """A node that everybody routes to sends so many messages of 60 bytes a second."""
    subscriptions: int = 16
    """Held by one node."""
    rivals: int = 4
    """Nodes that a decision is taken to be between."""
    lease_s: float = 20.0
    settled_s: float = 2.0
    """A subscription used within this time is not given up for another."""


@dataclass(frozen=True)
class TrustConfig:
    """What misbehaviour costs."""

    offences_to_quarantine: int = 10
    offence_decay_s: float = 60.0
    """One offence is forgiven in this time."""
    quarantine_s: float = 600.0
    max_tracked: int = 4_096


@dataclass(frozen=True)
class OverlayConfig:
    """Everything ``Overlay`` needs to know beforehand."""

    digest: DigestConfig = DigestConfig()
    cells: CellConfig = CellConfig()
    ladder: LadderConfig = LadderConfig()
    request: RequestConfig = RequestConfig()
    routing: RoutingConfig = RoutingConfig()
    trust: TrustConfig = TrustConfig()
    vitals: VitalsConfig = VitalsConfig()
    hello_timeout_s: float = 10.0
    """A connection that has not said hello by then is no node of ours (a client, a relay) and is not routed to."""
    hello_repeats: int = 3
    """Hellos sent again to a silent connection: either side's may have been lost, and a repeated one is answered."""
    max_peers: int = 512
    agent: str = "mycelia"
    wire_version: int = WIRE_VERSION
    """Another one only where a test plays an older or newer node."""
