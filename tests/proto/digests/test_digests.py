"""Digest convergence: playbooks, and a stateful test under loss, duplication, reordering and restart."""

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mycelia.proto.config import DigestConfig, OverlayConfig
from mycelia.proto.digests.digest import (
    LOG,
    SNAPSHOT,
    OwnDigest,
    pack_entries,
    pack_hashes,
    root_of,
    unpack_entries,
    unpack_hashes,
)
from mycelia.proto.digests.estimate import Source
from mycelia.proto.digests.estimates import Equivocation, Estimates, Outcome, State
from mycelia.proto.effects import Disconnect, Emit
from mycelia.proto.events import Connected, Disconnected, Gossiped, Received
from mycelia.proto.wire.blocks import STRIDE, block_hashes
from mycelia.proto.wire.errors import RemoteError
from mycelia.proto.wire.messages import Announce, Delta, Head, Hello, Repair, RepairRequest
from tests.profiles import examples
from tests.proto.playbook import EPOCH_START, NAMESPACE, World, peer_id, sign_as, verify

CONFIG = OverlayConfig().digest
LARGE = CONFIG.push_bytes // 9 + 1
"""Blocks of the smallest leaf that is too large for a delta."""
OWNER, READER, THIRD = peer_id(0), peer_id(1), peer_id(2)


def tokens_of(number: int, num_blocks: int) -> list[int]:
    """Prompt ``number``: even and odd ones share their first block."""
    return [number % 2] * STRIDE + [number + 10] * (STRIDE * (num_blocks - 1))


def chain_of(number: int, num_blocks: int = 3) -> list[int]:
    return list(block_hashes(NAMESPACE, tokens_of(number, num_blocks)))


class Pair:
    """An owner's digest and a reader's estimate of it; the test passes the messages."""

    def __init__(self, epoch: int = int(EPOCH_START * 1000), has_states: bool = False) -> None:
        self.own = OwnDigest(OWNER, NAMESPACE, epoch, sign_as(OWNER), CONFIG, has_states)
        self.estimates = Estimates(READER, verify, CONFIG)
        self.estimates.follow(NAMESPACE, has_states=has_states)
        self.now = EPOCH_START

    def advance(self) -> Delta:
        self.now += 10
        message = self.own.advance(self.now)
        assert isinstance(message, Delta)
        return message

    def repaired(self) -> Outcome:
        repair = self.own.repair(self.estimates.request(OWNER, NAMESPACE))
        assert repair is not None
        return self.estimates.on_repair(repair, self.now)

    def assert_equal(self) -> None:
        assert self.estimates.entries(OWNER, NAMESPACE) == self.own.entries
        self.estimates.check_invariants()
        self.own.check_invariants()


def test_a_delta_brings_the_reader_to_the_owners_set() -> None:
    pair = Pair()
    pair.own.store(1, chain_of(1))
    assert pair.estimates.on_gossip(pair.advance(), pair.now) is Outcome.APPLIED
    pair.assert_equal()
    assert pair.estimates.matches(NAMESPACE, chain_of(1)) == {OWNER: 3}
    assert pair.estimates.matches(NAMESPACE, chain_of(3)) == {OWNER: 1}
    assert pair.estimates.matches(NAMESPACE, chain_of(2)) == {}


def test_with_states_only_lengths_that_can_be_restored_are_announced() -> None:
    pair = Pair(has_states=True)
    long = chain_of(1, 9)
    pair.own.store(1, long[:3])
    pair.own.store(2, long[:7])
    pair.own.store(3, chain_of(5, 2), num_open=1, tag=b"owner")
    assert pair.estimates.on_gossip(pair.advance(), pair.now) is Outcome.APPLIED
    pair.assert_equal()
    assert set(pair.own.entries) == {long[2], long[6]}, "what one owner may use as a whole is of use to no other"
    for num_blocks, restored in ((2, 0), (3, 3), (6, 3), (7, 7), (9, 7)):
        expected = {OWNER: restored} if restored else {}
        assert pair.estimates.matches(NAMESPACE, long[:num_blocks]) == expected
        assert pair.own.holds(long[:num_blocks], b"anybody") == restored
    assert pair.own.holds(chain_of(5, 4), b"owner") == 2 and not pair.own.holds(chain_of(5, 4), b"another")
    pair.own.evict(2)
    assert pair.estimates.on_gossip(pair.advance(), pair.now) is Outcome.APPLIED
    assert pair.estimates.matches(NAMESPACE, long) == {OWNER: 3}


def test_a_copy_and_an_older_delta_change_nothing() -> None:
    pair = Pair()
    pair.own.store(1, chain_of(1))
    first = pair.advance()
    pair.own.evict(1)
    second = pair.advance()
    assert pair.estimates.on_gossip(first, pair.now) is Outcome.APPLIED
    assert pair.estimates.on_gossip(second, pair.now) is Outcome.APPLIED
    assert pair.estimates.on_gossip(first, pair.now) is Outcome.STALE
    assert pair.estimates.on_gossip(second, pair.now) is Outcome.STALE
    assert pair.estimates.entries(OWNER, NAMESPACE) == {}


def test_a_gap_is_repaired_from_the_log_and_says_so() -> None:
    pair = Pair()
    for leaf in range(4):
        pair.own.store(leaf, chain_of(leaf, 4))
    pair.estimates.on_gossip(pair.advance(), pair.now)
    pair.own.evict(0)
    pair.advance()
    pair.own.store(9, chain_of(9))
    late = pair.advance()
    assert pair.estimates.on_gossip(late, pair.now) is Outcome.GAP
    assert pair.estimates.state(OWNER, NAMESPACE) is State.SYNCING
    repair = pair.own.repair(pair.estimates.request(OWNER, NAMESPACE))
    assert repair is not None and repair.mode == LOG
    assert pair.estimates.on_repair(repair, pair.now) is Outcome.APPLIED
    assert pair.estimates.state(OWNER, NAMESPACE) is State.LIVE
    pair.assert_equal()


def test_an_add_and_its_remove_between_two_versions_do_not_diverge() -> None:
    """A delta must name a key that was added and removed inside its range: the reader may hold it."""
    pair = Pair()
    pair.estimates.on_gossip(pair.advance(), pair.now)
    pair.own.store(1, chain_of(1))
    pair.estimates.on_gossip(pair.advance(), pair.now)
    held = pair.estimates.request(OWNER, NAMESPACE)
    pair.own.evict(1)
    pair.advance()
    pair.own.store(1, chain_of(1))
    pair.advance()
    pair.own.evict(1)
    pair.advance()
    repair = pair.own.repair(held)
    assert repair is not None
    pair.estimates.on_repair(repair, pair.now)
    pair.assert_equal()


def test_a_restarted_owner_with_the_same_cache_answers_same() -> None:
    pair = Pair()
    pair.own.store(1, chain_of(1))
    pair.estimates.on_gossip(pair.advance(), pair.now)
    pair.own = OwnDigest(OWNER, NAMESPACE, int(pair.now * 1000) + 1, sign_as(OWNER), CONFIG)
    pair.own.store(1, chain_of(1))
    pair.advance()
    repair = pair.own.repair(pair.estimates.request(OWNER, NAMESPACE))
    assert repair is not None and repair.mode == 0 and not repair.upserts
    assert pair.estimates.on_repair(repair, pair.now) is Outcome.APPLIED
    pair.assert_equal()


def test_a_same_that_comes_late_is_a_gap_and_no_offence() -> None:
    pair = Pair()
    pair.estimates.on_gossip(pair.advance(), pair.now)
    held = pair.estimates.request(OWNER, NAMESPACE)
    pair.own.store(1, chain_of(1))
    newer = pair.advance()
    pair.own.evict(1)
    pair.advance()
    same = pair.own.repair(held)
    assert same is not None and same.mode == 0
    assert pair.estimates.on_gossip(newer, pair.now) is Outcome.APPLIED
    assert pair.estimates.on_repair(same, pair.now) is Outcome.GAP
    pair.repaired()
    pair.assert_equal()


def test_log_and_snapshot_lead_to_the_same_bytes() -> None:
    pair = Pair()
    for leaf in range(6):
        pair.own.store(leaf, chain_of(leaf, 2 + leaf))
        pair.advance()
    other = Estimates(THIRD, verify, CONFIG)
    other.follow(NAMESPACE)
    nothing = RepairRequest(owner=OWNER, namespace=NAMESPACE, epoch=0, seq=0, count=0, root=bytes(16))
    snapshot = pair.own.repair(nothing)
    from_log = pair.own.repair(msgspec.structs.replace(nothing, epoch=int(EPOCH_START * 1000)))
    assert snapshot is not None and snapshot.mode == SNAPSHOT
    assert from_log is not None and from_log.mode == LOG
    pair.estimates.on_repair(from_log, pair.now)
    other.on_repair(snapshot, pair.now)
    assert pack_entries(other.entries(OWNER, NAMESPACE)) == pack_entries(pair.estimates.entries(OWNER, NAMESPACE))


def corrupted(data: bytes) -> bytes:
    return bytes((data[0] ^ 1,)) + data[1:]


@pytest.mark.parametrize("field", ["upserts", "count", "root", "epoch", "seq", "issued_at", "signature", "owner"])
def test_any_corrupted_repair_is_refused_and_changes_nothing(field: str) -> None:
    pair = Pair()
    pair.own.store(1, chain_of(1))
    pair.advance()
    repair = pair.own.repair(pair.estimates.request(OWNER, NAMESPACE))
    assert repair is not None
    if field == "upserts":
        bad = msgspec.structs.replace(repair, upserts=corrupted(repair.upserts))
    else:
        value = getattr(repair.head, field)
        value = corrupted(value) if isinstance(value, bytes) else value + 1
        bad = msgspec.structs.replace(repair, head=msgspec.structs.replace(repair.head, **{field: value}))
    with pytest.raises(RemoteError):
        pair.estimates.on_repair(bad, pair.now)
    assert pair.estimates.version(OWNER, NAMESPACE) == (0, 0)
    assert pair.repaired() is Outcome.APPLIED
    pair.assert_equal()


def test_an_expired_head_never_makes_an_estimate() -> None:
    pair = Pair()
    pair.own.store(1, chain_of(1))
    delta = pair.advance()
    assert pair.estimates.on_gossip(delta, pair.now + CONFIG.evict_s + 1) is Outcome.STALE
    assert pair.estimates.state(OWNER, NAMESPACE) is None


def test_a_head_from_the_future_is_not_believed() -> None:
    pair = Pair(epoch=int((EPOCH_START + 7200) * 1000))
    assert pair.estimates.on_gossip(pair.advance(), pair.now) is Outcome.STALE
    assert pair.estimates.state(OWNER, NAMESPACE) is None


def test_silence_suspects_then_forgets_but_keeps_the_floor() -> None:
    pair = Pair()
    pair.own.store(1, chain_of(1))
    delta = pair.advance()
    pair.estimates.on_gossip(delta, pair.now)
    heard = pair.now
    pair.estimates.sweep(heard + CONFIG.suspect_s)
    assert pair.estimates.state(OWNER, NAMESPACE) is State.SUSPECT
    assert pair.estimates.sweep(heard + CONFIG.evict_s) == [(OWNER, NAMESPACE)]
    assert pair.estimates.matches(NAMESPACE, chain_of(1)) == {}
    pair.estimates.check_invariants()
    assert pair.estimates.on_gossip(delta, heard + 1) is Outcome.STALE, "a replay below the floor"
    pair.now = heard + CONFIG.evict_s
    pair.advance()
    assert pair.repaired() is Outcome.APPLIED


def test_a_restarted_reader_takes_the_newest_version_again_and_no_older_one() -> None:
    pair = Pair()
    deltas = []
    for number in range(2):
        pair.own.store(number, chain_of(number))
        deltas.append(pair.advance())
        pair.estimates.on_gossip(deltas[-1], pair.now)
    floors = pair.estimates.floors()
    pair.estimates = Estimates(READER, verify, CONFIG)
    pair.estimates.follow(NAMESPACE)
    pair.estimates.restore(floors)
    assert pair.estimates.on_gossip(deltas[0], pair.now) is Outcome.STALE, "a replay below the floor"
    assert pair.estimates.on_gossip(deltas[1], pair.now) is Outcome.GAP
    assert pair.repaired() is Outcome.APPLIED
    pair.assert_equal()


def test_two_sets_under_one_version_are_proof_of_equivocation() -> None:
    pair = Pair()
    pair.own.store(1, chain_of(1))
    pair.estimates.on_gossip(pair.advance(), pair.now)
    twin = OwnDigest(OWNER, NAMESPACE, int(EPOCH_START * 1000), sign_as(OWNER), CONFIG)
    twin.store(2, chain_of(2))
    lie = twin.advance(pair.now)
    with pytest.raises(Equivocation):
        pair.estimates.on_gossip(lie, pair.now)


def test_a_change_too_large_for_gossip_is_announced_and_fetched() -> None:
    pair = Pair()
    for leaf in range(64):
        pair.own.store(leaf, block_hashes(NAMESPACE, [leaf] * STRIDE * 40))
    message = pair.own.advance(pair.now)
    assert isinstance(message, Announce)
    assert pair.estimates.on_gossip(message, pair.now) is Outcome.GAP
    assert pair.repaired() is Outcome.APPLIED
    pair.assert_equal()


def test_the_budget_keeps_the_newest_and_stays_prefix_closed() -> None:
    own = OwnDigest(OWNER, NAMESPACE, 1, sign_as(OWNER), CONFIG)
    per_leaf = 40
    chains = [
        block_hashes(NAMESPACE, [leaf] * STRIDE * per_leaf) for leaf in range(CONFIG.advert_budget // per_leaf + 9)
    ]
    for leaf, chain in enumerate(chains):
        own.store(leaf, chain)
    own.advance(EPOCH_START)
    own.check_invariants()
    assert len(own.entries) == CONFIG.advert_budget
    assert all(key in own.entries for key in chains[-1])
    for chain in chains:
        held = [key in own.entries for key in chain]
        assert held == sorted(held, reverse=True)


def test_packed_hashes_must_be_sorted_and_whole() -> None:
    data = pack_hashes([9, 5])
    assert unpack_hashes(data) == [5, 9]
    for bad in (data[:-1], data[8:] + data[:8], data[:8] * 2):
        with pytest.raises(RemoteError):
            unpack_hashes(bad)


def test_packed_entries_must_be_sorted_and_whole() -> None:
    data = pack_entries({5: 0, 9: 1})
    assert unpack_entries(data) == {5: 0, 9: 1}
    for bad in (data[:-1], data[9:] + data[:9], data[:9] * 2):
        with pytest.raises(RemoteError):
            unpack_entries(bad)


# --- whole overlays ------------------------------------------------------------------------------------------------


def sent_by(event: object) -> bytes | None:
    return event.peer if isinstance(event, Received) else None


def assert_converged(world: World) -> None:
    """Every node's estimate of every other one equals that node's published set, at its version."""
    for owner, node in world.nodes.items():
        truth = node.own_digest
        assert not truth.is_behind()
        for reader, other in world.nodes.items():
            if reader != owner:
                estimates = other.overlay.estimates
                assert estimates.entries(owner, NAMESPACE) == truth.entries
                assert estimates.state(owner, NAMESPACE) is State.LIVE


def test_a_store_is_visible_everywhere_within_a_second_of_a_quiet_time() -> None:
    world = World(3)
    world.deliver_all()
    world.advance(20)
    world.store(OWNER, 1, tokens_of(1, 3))
    world.advance(1)
    for reader in (READER, THIRD):
        estimates = world.nodes[reader].overlay.estimates
        assert estimates.matches(NAMESPACE, chain_of(1)) == {OWNER: 3}


def test_steady_change_is_told_once_per_interval_on_average() -> None:
    world = World(2)
    world.deliver_all()
    world.advance(1)
    head = world.nodes[OWNER].own_digest
    assert head.head is not None
    start = head.head.seq
    for number in range(100):
        world.store(OWNER, number, [number] * STRIDE)
        world.advance(1)
    told = head.head.seq - start
    assert 100 / (CONFIG.delta_interval_s * 1.2) <= told <= 100 / (CONFIG.delta_interval_s * 0.8) + CONFIG.delta_burst


def test_what_gossip_lost_comes_back_by_the_next_heartbeat() -> None:
    world = World(3, seed=4)
    world.deliver_all()
    world.advance(20)
    world.store(OWNER, 1, tokens_of(1, 3))
    world.advance(1, deliver=False)
    world.in_flight.clear()
    world.advance(2 * CONFIG.heartbeat_s)
    assert_converged(world)


def test_a_lost_hello_is_asked_for_again() -> None:
    world = World(2)
    world.in_flight = [(to, event) for to, event in world.in_flight if (to, sent_by(event)) != (READER, OWNER)]
    world.deliver_all()
    assert [view.peer for view in world.nodes[OWNER].overlay.peers(world.now)] == [READER]
    assert world.nodes[READER].overlay.peers(world.now) == []
    world.advance(2 * world.config.hello_timeout_s)
    assert [view.peer for view in world.nodes[READER].overlay.peers(world.now)] == [OWNER]


def test_a_peer_that_never_says_hello_is_asked_a_few_times_only() -> None:
    world = World(1)
    world.handle(OWNER, Connected(READER, "/memory"))
    world.advance(600, deliver=False)
    hellos = [to for to, event in world.in_flight if to == READER]
    assert 1 < len(hellos) <= 1 + world.config.hello_repeats


def test_reconciliation_alone_converges_when_gossip_is_dead() -> None:
    world = World(4, seed=7)
    world.deliver_all()
    world.advance(20)
    for number in range(4):
        world.store(peer_id(number), 1, tokens_of(number, 3))
    for _ in range(6 * 40):
        world.in_flight = [(to, event) for to, event in world.in_flight if not isinstance(event, Gossiped)]
        world.deliver_all()
        world.advance(1, deliver=False)
    for owner, node in world.nodes.items():
        truth = node.own_digest
        for reader, other in world.nodes.items():
            if reader != owner:
                entries = other.overlay.estimates.entries(owner, NAMESPACE)
                assert entries == truth.entries and len(entries) == 3


def test_a_relay_serves_the_digest_of_an_owner_it_does_not_own() -> None:
    world = World(3)
    world.deliver_all()
    world.store(OWNER, 1, tokens_of(1, 3))
    world.advance(15)
    request = RepairRequest(owner=OWNER, namespace=NAMESPACE, epoch=0, seq=0, count=0, root=bytes(16))
    world.handle(READER, Received(THIRD, request))
    ((receiver, event),) = world.in_flight
    assert receiver == THIRD and isinstance(event, Received) and isinstance(event.message, Repair)
    assert root_of(unpack_entries(event.message.upserts)) == event.message.head.root


def test_gossip_about_another_owner_costs_its_author_and_ten_times_cuts_it_off() -> None:
    world = World(3)
    world.deliver_all()
    head = Head(
        owner=OWNER,
        namespace=NAMESPACE,
        epoch=1,
        seq=1,
        count=0,
        root=bytes(16),
        issued_at=int(world.now * 1000),
        signature=bytes(64),
    )
    for _ in range(10):
        world.handle(READER, Gossiped(THIRD, THIRD, NAMESPACE, Announce(head=head)))
    (cut,) = world.nodes[READER].take(Disconnect)
    assert isinstance(cut, Disconnect) and cut.peer == THIRD
    offences = [e for e in world.nodes[READER].take(Emit) if isinstance(e, Emit) and e.event == "peer_offence"]
    assert len(offences) == 10
    world.handle(READER, Gossiped(THIRD, THIRD, NAMESPACE, Announce(head=head)))
    assert not world.nodes[READER].take(Emit), "nothing of a quarantined peer is looked at"


def test_a_lost_connection_suspects_at_once_and_a_return_reinstates() -> None:
    world = World(2)
    world.deliver_all()
    world.store(OWNER, 1, tokens_of(1, 3))
    world.advance(15)
    estimates = world.nodes[READER].overlay.estimates
    world.handle(READER, Disconnected(OWNER))
    assert estimates.state(OWNER, NAMESPACE) is State.SUSPECT
    assert not world.nodes[READER].overlay.peers(world.now)
    hello = Hello(wire_version=1, agent="", served=())
    world.handle(READER, Connected(OWNER, "/memory"))
    assert estimates.state(OWNER, NAMESPACE) is State.SUSPECT
    world.handle(READER, Received(OWNER, hello))
    assert estimates.state(OWNER, NAMESPACE) is State.LIVE


def test_what_a_peer_announced_before_its_hello_counts_after_it() -> None:
    """A head may overtake the hello of the peer that forwards it. It counted as a stranger's for good."""
    pair, is_node = Pair(), False
    estimates = Estimates(READER, verify, CONFIG, source_of=lambda peer: Source(peer, "192.168.0.0", is_node))
    estimates.follow(NAMESPACE)
    estimates.on_gossip(pair.advance(), pair.now, THIRD)
    assert not estimates.live(NAMESPACE)
    is_node = True
    estimates.reinstate(THIRD, pair.now)
    assert [owner.peer for owner in estimates.live(NAMESPACE)] == [OWNER]
    estimates.suspect(THIRD)
    assert estimates.state(OWNER, NAMESPACE) is State.LIVE, "the owner itself is not lost"
    estimates.check_invariants()


def leaf_of(number: int, num_blocks: int = LARGE) -> list[int]:
    """A leaf that is too large for a delta."""
    return [1_000 + number] * STRIDE * num_blocks


def settled(num_nodes: int) -> World:
    world = World(num_nodes, seed=2)
    world.deliver_all()
    world.advance(40)
    return world


def test_a_relay_serves_a_reader_that_is_a_little_behind_from_its_log() -> None:
    world = settled(3)
    relay = world.nodes[THIRD].overlay.estimates
    behind = []
    for number in range(3):
        behind.append(relay.request(OWNER, NAMESPACE))
        world.store(OWNER, number, leaf_of(number, 20))
        world.advance(15)
    repair = relay.relay(behind[2])
    assert repair is not None and repair.mode == LOG and len(unpack_entries(repair.upserts)) == 20
    repair = relay.relay(behind[1])
    assert repair is not None and repair.mode == LOG and len(unpack_entries(repair.upserts)) == 40
    assert relay.relay(behind[1]) is repair, "made once for all neighbours"
    world.evict(OWNER, 1)
    world.advance(15)
    repair = relay.relay(behind[1])
    assert repair is not None and repair.mode == LOG and len(unpack_hashes(repair.removes)) == 20
    assert len(unpack_entries(repair.upserts)) == 20
    world.nodes[READER].overlay.estimates.check_invariants()


def announced_change(world: World) -> Announce:
    """The owner's announcement of a large change; no other message stays in flight."""
    world.store(OWNER, 1, leaf_of(1))
    world.advance(1, deliver=False)
    announced = [event.message for _, event in world.in_flight if isinstance(event, Gossiped)]
    world.in_flight.clear()
    assert announced and all(isinstance(message, Announce) for message in announced)
    first = announced[0]
    assert isinstance(first, Announce)
    return first


def test_an_announced_change_is_asked_for_at_once_where_it_was_heard() -> None:
    world = settled(3)
    world.handle(READER, Gossiped(OWNER, THIRD, NAMESPACE, announced_change(world)))
    ((receiver, event),) = world.in_flight
    assert receiver == THIRD and isinstance(event, Received) and isinstance(event.message, RepairRequest)


def test_a_node_that_fetches_a_change_itself_answers_when_it_has_it() -> None:
    world = settled(3)
    announce = announced_change(world)
    world.handle(THIRD, Gossiped(OWNER, OWNER, NAMESPACE, announce))
    world.handle(READER, Gossiped(OWNER, THIRD, NAMESPACE, announce))
    to_owner, to_relay = world.in_flight
    world.in_flight = [to_relay]
    world.deliver_all()
    assert not world.in_flight, "the relay has nothing yet, and keeps the question"
    world.in_flight = [to_owner]
    world.deliver_all()
    truth = world.nodes[OWNER].overlay.own_digest(NAMESPACE)
    assert truth is not None and truth.head is not None and len(truth.entries) == LARGE
    assert world.nodes[THIRD].overlay.estimates.holds(truth.head)
    assert world.nodes[READER].overlay.estimates.holds(truth.head)


def test_an_answer_that_never_comes_is_asked_for_elsewhere() -> None:
    world = settled(3)
    announce = announced_change(world)
    world.handle(READER, Gossiped(OWNER, THIRD, NAMESPACE, announce))
    world.in_flight.clear()
    world.advance(3)
    truth = world.nodes[OWNER].overlay.own_digest(NAMESPACE)
    assert truth is not None and truth.head is not None
    assert world.nodes[READER].overlay.estimates.holds(truth.head)


def test_a_restarted_node_shows_its_kept_cache_in_its_first_head() -> None:
    world = settled(2)
    world.store(OWNER, 1, leaf_of(1))
    world.advance(15)
    before = world.nodes[READER].overlay.estimates.entries(OWNER, NAMESPACE)
    world.handle(READER, Disconnected(OWNER))
    world.start(OWNER)
    world.store(OWNER, 1, leaf_of(1))
    requests = []
    for _ in range(20):
        requests += [event for _, event in world.in_flight if isinstance(event, Received)]
        world.deliver_all()
        world.advance(0.1, deliver=False)
    estimates = world.nodes[READER].overlay.estimates
    assert estimates.state(OWNER, NAMESPACE) is State.LIVE
    assert estimates.entries(OWNER, NAMESPACE) == before and len(before) == LARGE
    repairs = [event.message for event in requests if isinstance(event.message, Repair)]
    assert not any(repair.head.owner == OWNER and repair.upserts for repair in repairs), "nothing had to be sent again"


def test_the_pace_slows_down_when_everybody_has_much_to_say() -> None:
    """Announced and fetched changes count like pushed ones: the interval stretches as far as it may."""

    settled_s, length_s = 120, 210

    def deltas(receive_bytes_per_s: float) -> int:
        config = DigestConfig(receive_bytes_per_s=receive_bytes_per_s)
        world = World(6, config=OverlayConfig(digest=config))
        world.check_every = 50  # (each check compares all entries of six digests)
        own = world.nodes[OWNER].overlay.own_digest(NAMESPACE)
        assert own is not None
        told = []
        for second in range(length_s):
            for number in range(6):
                world.store(peer_id(number), second % 3, [second * 6 + number] * STRIDE * 5)
            world.advance(1)
            told.append(own.head.seq if own.head else 0)
        return told[-1] - told[settled_s]

    unbounded, bounded = deltas(1e9), deltas(200.0)
    assert (length_s - settled_s) / (CONFIG.delta_interval_s * 1.2) - 1 <= unbounded
    longest = CONFIG.delta_interval_s * CONFIG.max_stretch
    assert bounded <= (length_s - settled_s) / (longest * 0.8) + 1 < unbounded


class History(RuleBasedStateMachine):
    """One owner, one reader, few keys: the reader always holds a true historical state at exactly its version."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair()
        self.bag: list[Delta | Repair] = []
        self.history: dict[tuple[int, int], dict[int, int]] = {(0, 0): {}}

    def record(self) -> None:
        head = self.pair.own.head
        assert head is not None
        self.history[head.epoch, head.seq] = dict(self.pair.own.entries)

    @rule(prompt=st.integers(0, 2), blocks=st.integers(1, 2))
    def store(self, prompt: int, blocks: int) -> None:
        self.pair.own.store(prompt, chain_of(prompt, blocks))

    @rule(prompt=st.integers(0, 2))
    def evict(self, prompt: int) -> None:
        self.pair.own.evict(prompt)

    @rule(arrives=st.booleans())
    def publish(self, arrives: bool) -> None:
        delta = self.pair.advance()
        self.record()
        if arrives:
            self.bag.append(delta)

    @rule()
    def restart(self) -> None:
        self.pair.now += 1
        self.pair.own = OwnDigest(OWNER, NAMESPACE, int(self.pair.now * 1000), sign_as(OWNER), CONFIG)

    @rule()
    def ask_for_repair(self) -> None:
        repair = self.pair.own.repair(self.pair.estimates.request(OWNER, NAMESPACE))
        if repair is not None:
            self.bag.append(repair)

    @precondition(lambda self: self.bag)
    @rule(data=st.data(), keep=st.booleans())
    def deliver(self, data: st.DataObject, keep: bool) -> None:
        index = data.draw(st.integers(0, len(self.bag) - 1))
        message = self.bag[index] if keep else self.bag.pop(index)
        if isinstance(message, Repair):
            self.pair.estimates.on_repair(message, self.pair.now)
        else:
            self.pair.estimates.on_gossip(message, self.pair.now)

    @invariant()
    def holds_a_true_state(self) -> None:
        version = self.pair.estimates.version(OWNER, NAMESPACE)
        assert self.pair.estimates.entries(OWNER, NAMESPACE) == self.history[version]
        self.pair.estimates.check_invariants()
        self.pair.own.check_invariants()


TestHistory = pytest.mark.properties(History.TestCase)
TestHistory.settings = settings(max_examples=examples(100), stateful_step_count=40, deadline=None)


class Convergence(RuleBasedStateMachine):
    """Stores, evictions, restarts, and a network that loses, repeats and reorders; then quiet, then equality."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(3)
        self.versions: dict[tuple[bytes, bytes], tuple[int, int]] = {}
        self.restarted: set[bytes] = set()

    @rule(node=st.integers(0, 2), prompt=st.integers(0, 3), blocks=st.integers(1, 3))
    def store(self, node: int, prompt: int, blocks: int) -> None:
        self.world.store(peer_id(node), prompt, tokens_of(prompt, blocks))

    @rule(node=st.integers(0, 2), prompt=st.integers(0, 3))
    def evict(self, node: int, prompt: int) -> None:
        self.world.evict(peer_id(node), prompt)

    @rule(seconds=st.sampled_from([0.1, 1.0, 11.0, 31.0]))
    def pass_time(self, seconds: float) -> None:
        self.world.advance(seconds, deliver=False)

    @rule(node=st.integers(0, 2))
    def restart(self, node: int) -> None:
        me = peer_id(node)
        self.world.now += 0.001
        for other in self.world.nodes:
            if other != me:
                self.world.handle(other, Disconnected(me))
        self.versions = {key: version for key, version in self.versions.items() if key[0] != me}
        self.world.start(me)

    @precondition(lambda self: self.world.in_flight)
    @rule(data=st.data(), action=st.sampled_from(["deliver", "deliver", "lose", "repeat"]))
    def network(self, data: st.DataObject, action: str) -> None:
        index = data.draw(st.integers(0, min(len(self.world.in_flight), 8) - 1))
        if action == "lose":
            self.world.in_flight.pop(index)
        elif action == "repeat":
            self.world.in_flight.append(self.world.in_flight[index])
        else:
            self.world.deliver(index)

    @invariant()
    def nobody_honest_offends(self) -> None:
        for node in self.world.nodes.values():
            told = [e for e in node.effects if isinstance(e, Emit) and e.event == "peer_offence"]
            assert not told

    @invariant()
    def versions_never_decrease(self) -> None:
        for reader, node in self.world.nodes.items():
            estimates = node.overlay.estimates
            for owner, other in self.world.nodes.items():
                if owner == reader or estimates.state(owner, NAMESPACE) is None:
                    continue
                version = estimates.version(owner, NAMESPACE)
                assert version >= self.versions.get((reader, owner), (0, 0))
                self.versions[reader, owner] = version
                head = other.own_digest.head
                assert head is None or version <= (head.epoch, head.seq)  # (None: restarted a moment ago)

    def teardown(self) -> None:
        """After updates stop: one batch interval, one heartbeat, and three reconciliation rounds are enough."""
        self.world.deliver_all()
        self.world.advance(3 * CONFIG.heartbeat_s * (1 + CONFIG.jitter))
        assert_converged(self.world)


TestConvergence = pytest.mark.properties(Convergence.TestCase)
TestConvergence.settings = settings(max_examples=examples(40), stateful_step_count=40, deadline=None)
