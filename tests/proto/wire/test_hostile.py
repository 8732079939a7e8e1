"""Peers that lie, flood and replay: their messages never raise, never cost others, and cost a bounded amount."""

import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mycelia.proto import WIRE_VERSION
from mycelia.proto.config import DigestConfig, OverlayConfig, RequestConfig
from mycelia.proto.digests.digest import (
    LOG,
    SAME,
    SNAPSHOT,
    OwnDigest,
    pack_entries,
    pack_hashes,
    root_of,
    signed_payload,
    snapshot,
)
from mycelia.proto.digests.estimates import Estimates, Outcome, State
from mycelia.proto.effects import Disconnect, Dispatch, Emit, Publish, Send
from mycelia.proto.events import (
    Connected,
    Disconnected,
    Event,
    FrameReceived,
    Gossiped,
    Malformed,
    Received,
    RequestSubmitted,
    RoundTripMeasured,
    StreamLost,
)
from mycelia.proto.routing.dispatches import Dispatches
from mycelia.proto.wire.blocks import STRIDE, block_hashes, pack_tokens
from mycelia.proto.wire.codec import decode, encode
from mycelia.proto.wire.errors import RemoteError
from mycelia.proto.wire.messages import (
    MAX_SMALL,
    Accepted,
    Announce,
    Bounced,
    Delta,
    Failed,
    Final,
    Head,
    Hello,
    Reconcile,
    Repair,
    RepairRequest,
    Sampling,
    Served,
    Subscribe,
    Tokens,
    Usage,
    Version,
    Vitals,
    VitalsUpdate,
)
from tests.profiles import examples
from tests.proto.playbook import EPOCH_START, IDLE, NAMESPACE, World, peer_id, sign_as, verify

ME, PEER, RELAY = peer_id(0), peer_id(1), peer_id(2)
EPOCH = int(EPOCH_START * 1000)
CONFIG = DigestConfig()


def signed(owner: bytes, entries: dict[int, int], epoch: int = EPOCH, seq: int = 1, issued_at: int = EPOCH) -> Head:
    unsigned = Head(
        owner=owner,
        namespace=NAMESPACE,
        epoch=epoch,
        seq=seq,
        count=len(entries),
        root=root_of(entries),
        issued_at=issued_at,
        signature=bytes(64),
    )
    return msgspec.structs.replace(unsigned, signature=sign_as(owner)(signed_payload(unsigned)))


def blocks_of(owner: int, count: int) -> dict[int, int]:
    return dict.fromkeys(range(owner * 1_000, owner * 1_000 + count), 0)


def reader(**changes: int) -> Estimates:
    estimates = Estimates(ME, verify, DigestConfig(**changes))  # type: ignore[arg-type]
    estimates.follow(NAMESPACE)
    return estimates


def take(estimates: Estimates, owner: int, count: int = 2, now: float = EPOCH_START) -> Outcome:
    entries = blocks_of(owner, count)
    outcome = estimates.on_repair(snapshot(signed(peer_id(owner), entries), entries), now)
    estimates.check_invariants()
    return outcome


# --- room ----------------------------------------------------------------------------------------------------------


def test_invented_owners_do_not_keep_a_connected_one_out() -> None:
    estimates = reader(max_owners=4)
    for owner in (10, 11, 12, 13):
        assert take(estimates, owner, now=EPOCH_START + owner) is Outcome.APPLIED
    assert take(estimates, 14) is Outcome.STALE, "all are live, and nobody knows this one either"
    estimates.reinstate(PEER, EPOCH_START)
    assert take(estimates, 1) is Outcome.APPLIED
    assert estimates.state(peer_id(10), NAMESPACE) is None, "the longest quiet made way"
    for owner in range(20, 30):
        assert take(estimates, owner) is Outcome.STALE
    estimates.sweep(EPOCH_START + 14 + CONFIG.suspect_s)
    for owner in range(20, 30):
        take(estimates, owner)
    assert estimates.state(PEER, NAMESPACE) is State.SUSPECT, "also a suspect one is kept while it is connected"


def test_all_owners_together_hold_a_bounded_number_of_entries() -> None:
    estimates = reader(max_entries=100)
    for owner in range(10, 20):
        assert take(estimates, owner, count=10) is Outcome.APPLIED
    assert take(estimates, 20, count=11) is Outcome.STALE, "all others hold less than this one would"
    estimates.reinstate(PEER, EPOCH_START)
    assert take(estimates, 1, count=18) is Outcome.APPLIED
    assert len(estimates.entries(PEER, NAMESPACE)) == 18
    assert sum(estimates.state(peer_id(owner), NAMESPACE) is not None for owner in range(10, 20)) == 8


def test_a_refused_set_leaves_no_empty_estimate_behind() -> None:
    estimates = reader()
    head = signed(PEER, blocks_of(1, 2))
    with pytest.raises(RemoteError, match="hash"):
        estimates.on_repair(snapshot(head, blocks_of(1, 3)), EPOCH_START)
    assert estimates.state(PEER, NAMESPACE) is None


# --- versions ------------------------------------------------------------------------------------------------------


def test_a_version_between_the_one_held_and_the_one_wanted_is_taken() -> None:
    """Gossip reorders, and a relay may be behind the newest head: every version newer than the held one is progress."""
    estimates = reader()
    first, second, third = blocks_of(1, 1), blocks_of(1, 2), blocks_of(1, 3)
    estimates.on_repair(snapshot(signed(PEER, first), first), EPOCH_START)
    assert estimates.on_gossip(Announce(head=signed(PEER, third, seq=3)), EPOCH_START) is Outcome.GAP
    assert estimates.on_repair(snapshot(signed(PEER, second, seq=2), second), EPOCH_START) is Outcome.APPLIED
    assert estimates.version(PEER, NAMESPACE) == (EPOCH, 2)
    assert estimates.needs_repair(PEER, NAMESPACE)
    new = {key: 0 for key in third if key not in second}
    late = Delta(head=signed(PEER, third, seq=3), from_seq=2, upserts=pack_entries(new), removes=b"")
    assert estimates.on_gossip(late, EPOCH_START) is Outcome.APPLIED
    assert estimates.state(PEER, NAMESPACE) is State.LIVE


def test_an_owner_that_changes_all_the_time_costs_one_root_per_gap_and_still_converges() -> None:
    estimates = reader()
    outcomes = []
    for seq in range(1, 21):
        entries = blocks_of(1, seq)
        outcomes.append(estimates.on_repair(snapshot(signed(PEER, entries, seq=seq), entries), EPOCH_START))
    assert outcomes == [Outcome.APPLIED] * CONFIG.max_version_burst + [Outcome.GAP] * 15
    assert estimates.version(PEER, NAMESPACE) == (EPOCH, CONFIG.max_version_burst)
    later = EPOCH_START + CONFIG.delta_min_gap_s
    assert estimates.on_repair(snapshot(signed(PEER, entries, seq=20), entries), later) is Outcome.APPLIED
    assert estimates.state(PEER, NAMESPACE) is State.LIVE


# --- blame ---------------------------------------------------------------------------------------------------------


def offences(world: World, me: bytes = ME) -> list[object]:
    return [e.fields["peer"] for e in world.nodes[me].take(Emit) if isinstance(e, Emit) and e.event == "peer_offence"]


def test_a_relay_does_not_pay_for_an_owner_whose_clock_is_ahead() -> None:
    """By the relay's clock, a little ahead of this one, the head was valid."""
    world = World(3)
    world.deliver_all()
    ahead = int((world.now + CONFIG.max_clock_skew_s) * 1000)
    for offset in range(20):
        entries = blocks_of(7, 1)
        head = signed(peer_id(7), entries, epoch=ahead + 1 + offset, issued_at=ahead + 1 + offset)
        world.handle(ME, Received(RELAY, snapshot(head, entries)))
    assert offences(world) == [] and not world.nodes[ME].take(Disconnect)


def test_equivocation_costs_the_owner_and_not_the_relay_that_proves_it() -> None:
    world = World(3)
    world.deliver_all()
    for count in (1, 2):
        entries = blocks_of(7, count)
        world.handle(ME, Received(RELAY, snapshot(signed(peer_id(7), entries), entries)))
    assert offences(world) == [peer_id(7)]


def test_a_refused_hello_changes_nothing() -> None:
    world = World(2)
    world.deliver_all()
    world.store(PEER, 1, [1] * STRIDE)
    world.advance(15)
    world.handle(ME, Disconnected(PEER))
    world.in_flight.clear()
    world.handle(ME, Received(PEER, Hello(wire_version=WIRE_VERSION + 2, agent="", served=())))
    assert world.nodes[ME].overlay.estimates.state(PEER, NAMESPACE) is State.SUSPECT
    assert not world.in_flight


def test_a_hello_read_after_its_connection_is_gone_makes_no_lasting_node() -> None:
    world = World(1)
    served = Served(namespace=NAMESPACE, model="model", context_tokens=2048, vitals=IDLE)
    world.handle(ME, Received(PEER, Hello(wire_version=1, agent="", served=(served,))))
    assert [view.peer for view in world.nodes[ME].overlay.peers(world.now)] == [PEER]
    world.advance(OverlayConfig().hello_timeout_s + 1)
    assert world.nodes[ME].overlay.peers(world.now) == []
    world.handle(ME, Received(PEER, Hello(wire_version=1, agent="", served=(served,))))
    world.handle(ME, Connected(PEER, "/memory"))
    world.advance(OverlayConfig().hello_timeout_s + 1)
    assert [view.peer for view in world.nodes[ME].overlay.peers(world.now)] == [PEER]


# --- cost ----------------------------------------------------------------------------------------------------------


def test_a_reader_that_keeps_asking_gets_a_bounded_number_of_repairs() -> None:
    world = World(2)
    world.deliver_all()
    for number in range(4):
        world.store(ME, number, [number] * STRIDE)
        world.advance(15)
    head = world.nodes[ME].own_digest.head
    assert head is not None
    for mode, seq in ((LOG, head.seq - 1), (SNAPSHOT, 0)):
        world.advance(61)
        request = RepairRequest(
            owner=ME, namespace=NAMESPACE, epoch=head.epoch if seq else 1, seq=seq, count=0, root=bytes(16)
        )
        answers = []
        for _ in range(50):
            answers += [e for e in world.handle(ME, Received(PEER, request)) if isinstance(e, Send)]
        assert len(answers) == CONFIG.repairs_per_minute
        assert all(isinstance(e.message, Repair) and e.message.mode == mode for e in answers)


# --- requests ------------------------------------------------------------------------------------------------------


def submit(world: World, request_id: bytes = b"r" * 16, prompt: list[int] | None = None) -> list[Dispatch]:
    prompt = [1] * (STRIDE * 2) if prompt is None else prompt
    effects = world.handle(ME, RequestSubmitted(request_id, NAMESPACE, prompt, Sampling(max_tokens=8)))
    return [e for e in effects if isinstance(e, Dispatch)]


def test_a_claimed_load_never_leaves_the_bounds_of_the_wire() -> None:
    world = World(2, config=OverlayConfig(request=RequestConfig(max_waiting_per_slot=math.inf)))
    world.deliver_all()
    absurd = Vitals(queued_tokens=MAX_SMALL, active_requests=MAX_SMALL, waiting_requests=MAX_SMALL, slots=1)
    world.handle(ME, Received(PEER, VitalsUpdate(namespace=NAMESPACE, vitals=absurd)))
    (dispatch,) = submit(world)
    assert max(rated.candidate.num_requests for rated in dispatch.decision.rated) == MAX_SMALL


def test_a_node_whose_context_is_too_small_is_not_asked() -> None:
    world = World(3)
    world.deliver_all()
    for peer, context in ((PEER, 2 * STRIDE), (RELAY, 2 * STRIDE + 1)):
        served = Served(namespace=NAMESPACE, model="model", context_tokens=context, vitals=IDLE)
        world.handle(ME, Received(peer, Hello(wire_version=1, agent="", served=(served,))))
    (dispatch,) = submit(world)
    assert {rated.candidate.peer for rated in dispatch.decision.rated} == {ME, RELAY}


def test_a_prompt_that_no_message_can_carry_stays_here() -> None:
    world = World(2)
    world.deliver_all()
    served = Served(namespace=NAMESPACE, model="model", context_tokens=MAX_SMALL, vitals=IDLE)
    world.handle(ME, Received(PEER, Hello(wire_version=1, agent="", served=(served,))))
    (dispatch,) = submit(world, prompt=[1] * 131_073)
    assert [rated.candidate.peer for rated in dispatch.decision.rated] == [ME]


def test_an_empty_prompt_and_an_unknown_model_fail_in_words() -> None:
    world = World(1)
    assert not submit(world, prompt=[])
    world.handle(ME, RequestSubmitted(b"s" * 16, b"other namespace!", [1], Sampling(max_tokens=1)))
    world.nodes[ME].overlay.check_invariants()


def test_a_node_that_refuses_is_not_believed_to_hold_what_it_refused() -> None:
    world = World(3)
    world.deliver_all()
    world.store(PEER, 1, [1] * STRIDE)
    world.advance(15)
    world.handle(ME, RoundTripMeasured(PEER, 0.01))
    (dispatch,) = submit(world)
    assert dispatch.peer == PEER
    world.handle(ME, FrameReceived(b"r" * 16, 1, Failed(code="internal", message="no", retryable=True)))
    (again,) = submit(world, b"s" * 16)
    matched = {rated.candidate.peer: rated.candidate.matched_tokens for rated in again.decision.rated}
    assert matched[PEER] == STRIDE, "what its digest says, and no more"


def test_of_a_prompt_too_long_to_remember_the_beginning_is_kept() -> None:
    dispatches = Dispatches(max_blocks=4)
    dispatches.remember(PEER, [1, 2, 3, 4, 5, 6], 60.0)
    assert dispatches.matches([1, 2, 3, 4, 5, 6], 1.0) == {PEER: 4}


def test_every_move_after_the_first_token_counts_as_resumed() -> None:
    world = World(4)
    world.deliver_all()
    request_id = b"r" * 16
    submit(world)
    world.handle(ME, FrameReceived(request_id, 1, Tokens(position=0, tokens=pack_tokens([5]), text=b"")))
    world.handle(ME, StreamLost(request_id, 1, "reset"))
    world.handle(ME, StreamLost(request_id, 2, "reset before any token"))
    usage = Usage(prompt_tokens=1, cached_tokens=0, completion_tokens=1, queue_ms=0, prefill_ms=0, decode_ms=0)
    world.handle(ME, FrameReceived(request_id, 3, Final(reason="stop", usage=usage, vitals=IDLE)))
    (finish,) = [e for e in world.nodes[ME].effects if type(e).__name__ == "Finish"]
    assert finish.resumed == 2  # type: ignore[union-attr]


def test_text_without_end_and_endless_acceptance_are_offences() -> None:
    for frames in (
        [Tokens(position=0, tokens=pack_tokens([1]), text=b"x" * 1_025)],
        [Accepted(cached_tokens=0, vitals=IDLE), Accepted(cached_tokens=0, vitals=IDLE)],
        [Bounced(cached_tokens=0, vitals=IDLE)],
    ):
        world = World(2)
        world.deliver_all()
        world.store(PEER, 1, [1] * STRIDE * 2)
        world.advance(15)
        (dispatch,) = submit(world)
        assert dispatch.peer == PEER
        world.nodes[ME].take(Emit)
        for frame in frames:
            world.handle(ME, FrameReceived(b"r" * 16, 1, frame))
        assert offences(world) == [PEER]


# --- anything at all -----------------------------------------------------------------------------------------------

_peers = st.sampled_from([ME, PEER, RELAY, peer_id(3)])
_spaces = st.sampled_from([NAMESPACE, NAMESPACE, b"other namespace!"])
_counts = st.sampled_from([0, 1, 2, MAX_SMALL])
_counters = st.sampled_from([0, 1, 2, EPOCH - 1, EPOCH, EPOCH + 1, 2**63 - 1])
_seqs = st.sampled_from([0, 1, 2, 3, 4, 2**63 - 1])
_sets = st.dictionaries(st.sampled_from([*block_hashes(NAMESPACE, [1] * STRIDE * 2), 0, 2**64 - 1]), st.integers(0, 1))
_vitals = st.builds(
    Vitals,
    queued_tokens=_counts,
    active_requests=_counts,
    waiting_requests=_counts,
    slots=_counts,
    prefill_rate=_counts,
    hold_ms=_counts,
)
_packed = _sets.map(pack_entries) | st.binary(max_size=20)
_removes = _sets.map(pack_hashes) | st.binary(max_size=20)
_usage = st.builds(
    Usage,
    prompt_tokens=_counts,
    cached_tokens=_counts,
    completion_tokens=_counts,
    queue_ms=_counts,
    prefill_ms=_counts,
    decode_ms=_counts,
)


@st.composite
def _heads(draw: st.DrawFn) -> Head:
    entries = draw(_sets)
    head = signed(draw(_peers), entries, draw(_counters), draw(_seqs), draw(st.sampled_from([0, EPOCH, 2**63 - 1])))
    if draw(st.integers(0, 9)) == 0:
        head = msgspec.structs.replace(head, namespace=draw(_spaces))
    return head


@st.composite
def _true_repairs(draw: st.DrawFn) -> Repair:
    entries = draw(_sets)
    return snapshot(signed(draw(_peers), entries, EPOCH, draw(_seqs)), entries)


_controls = st.one_of(
    st.builds(
        Hello,
        wire_version=st.sampled_from([1, 1, 2, 3]),
        agent=st.text(max_size=64),
        served=st.lists(
            st.builds(
                Served, namespace=_spaces, model=st.text(min_size=1, max_size=9), context_tokens=_counts, vitals=_vitals
            ),
            max_size=3,
        ).map(tuple),
    ),
    st.builds(VitalsUpdate, namespace=_spaces, vitals=_vitals),
    st.builds(Subscribe, namespace=_spaces, seconds=_counts),
    st.builds(
        RepairRequest,
        owner=_peers,
        namespace=_spaces,
        epoch=_counters,
        seq=_seqs,
        count=st.integers(0, 2),
        root=_sets.map(root_of),
    ),
    st.builds(
        Repair,
        head=_heads(),
        mode=st.sampled_from([SAME, LOG, SNAPSHOT]),
        from_seq=_seqs,
        upserts=_packed,
        removes=_removes,
    ),
    _true_repairs(),
    st.builds(
        Reconcile,
        versions=st.lists(
            st.builds(Version, owner=_peers, namespace=_spaces, epoch=_counters, seq=_seqs), max_size=4
        ).map(tuple),
    ),
)
_gossip = st.builds(Delta, head=_heads(), from_seq=_seqs, upserts=_packed, removes=_removes) | st.builds(
    Announce, head=_heads()
)
_frames = st.one_of(
    st.builds(Accepted, cached_tokens=_counts, vitals=_vitals),
    st.builds(Bounced, cached_tokens=_counts, vitals=_vitals),
    st.builds(Tokens, position=_counts, tokens=st.binary(min_size=4, max_size=12), text=st.binary(max_size=9)),
    st.builds(Final, reason=st.sampled_from(["stop", "length", "cancelled"]), usage=_usage, vitals=_vitals),
    st.builds(
        Failed,
        code=st.sampled_from(["too_long", "engine_lost", "?"]),
        message=st.text(max_size=9),
        retryable=st.booleans(),
    ),
)
_events = st.one_of(
    st.builds(Received, peer=_peers, message=_controls),
    st.builds(Gossiped, author=_peers, forwarder=_peers, namespace=_spaces, message=_gossip),
    st.builds(FrameReceived, request_id=st.just(b"r" * 16), attempt=st.integers(0, 3), frame=_frames),
    st.builds(StreamLost, request_id=st.just(b"r" * 16), attempt=st.integers(0, 3), reason=st.just("lost")),
    st.builds(Malformed, peer=_peers, reason=st.text(max_size=9)),
    st.builds(Connected, peer=_peers, address=st.just("/memory")),
    st.builds(Disconnected, peer=_peers),
)


@pytest.mark.properties
@given(st.lists(st.tuples(_events, st.sampled_from([0.0, 0.0, 0.0, 3.0, 95.0])), max_size=25))
@settings(max_examples=examples(120), deadline=None)
def test_nothing_that_a_peer_says_raises_or_breaks_an_invariant(steps: list[tuple[Event, float]]) -> None:
    """Every message that this node sends in return is one that others accept."""
    world = World(1)
    world.store(ME, 1, [1] * STRIDE * 2)
    world.advance(3, deliver=False)
    submit(world)
    for event, wait_s in steps:
        effects = world.handle(ME, event)
        for effect in effects:
            if isinstance(effect, Send | Publish):
                assert decode(encode(effect.message)) == effect.message
            elif isinstance(effect, Dispatch):
                assert decode(encode(effect.generate)) == effect.generate
        world.advance(wait_s, deliver=False)


def test_an_own_digest_is_never_learned_from_others() -> None:
    estimates = reader()
    own = OwnDigest(ME, NAMESPACE, EPOCH, sign_as(ME), CONFIG)
    assert estimates.on_gossip(own.advance(EPOCH_START), EPOCH_START) is Outcome.STALE
    assert estimates.state(ME, NAMESPACE) is None
