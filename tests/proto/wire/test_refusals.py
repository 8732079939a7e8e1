"""Each kind of bad input has its own counter, costs its sender where that is just, and changes nothing else."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import pytest

from mycelia.proto import WIRE_VERSION
from mycelia.proto.admission.limits import Limits
from mycelia.proto.cells.cells import Cell, cell_of
from mycelia.proto.config import DigestConfig, OverlayConfig
from mycelia.proto.digests.digest import LOG, OwnDigest, pack_entries, snapshot
from mycelia.proto.digests.estimates import State
from mycelia.proto.effects import Disconnect, Emit, Send
from mycelia.proto.events import Event, Gossiped, Malformed, Received
from mycelia.proto.overlay import Overlay
from mycelia.proto.planes.membership import QUESTIONS_BURST, QUESTIONS_PER_S
from mycelia.proto.wire.blocks import STRIDE, block_hashes
from mycelia.proto.wire.messages import Announce, Delta, Head, Hello, Reconcile, Repair, RepairRequest
from mycelia.proto.wire.refusals import Refusal
from tests.proto.playbook import NAMESPACE, World, peer_id, sign_as
from tests.proto.wire.test_hostile import signed

ME, PEER, RELAY, STRANGER = (peer_id(number) for number in range(4))
CONFIG = DigestConfig()


def quiet_world() -> World:
    """ME holds a digest of PEER (version 2 or more) and knows RELAY; STRANGER is not connected."""
    world = World(3)
    world.deliver_all()
    world.advance(1)  # (its first head shows nothing)
    world.store(PEER, 1, [1] * STRIDE)
    world.advance(15)
    world.nodes[ME].effects.clear()
    return world


def true_head(world: World) -> Head:
    head = world.nodes[PEER].own_digest.head
    assert head is not None
    return head


def next_head(world: World, owner: bytes = PEER, entries: dict[int, int] | None = None, **changes: int) -> Head:
    """A head that PEER could sign next."""
    head, now_ms = true_head(world), int(world.now * 1000)
    fields = {"epoch": head.epoch, "seq": head.seq + 1, "issued_at": now_ms, **changes}
    return signed(owner, entries or {}, **fields)


def gossip(message: Delta | Announce, author: bytes = PEER, namespace: bytes = NAMESPACE) -> Event:
    return Gossiped(author, author, namespace, message)


def forged(world: World) -> Head:
    return msgspec.structs.replace(next_head(world), signature=b"x" * 64)


def elsewhere(world: World) -> Head:
    return msgspec.structs.replace(next_head(world), namespace=b"other namespace!")


def far(world: World) -> int:
    return int((world.now + CONFIG.max_clock_skew_s + 1) * 1000)


def late_delta(world: World) -> Delta:
    """A delta from the version that ME holds, but not to the set of its head."""
    head = next_head(world, entries={5: 0})
    return Delta(head=head, from_seq=true_head(world).seq, upserts=pack_entries({6: 0}), removes=b"")


def wrong_log(world: World) -> Repair:
    delta = late_delta(world)
    return Repair(head=delta.head, mode=LOG, from_seq=delta.from_seq, upserts=delta.upserts, removes=b"")


def other_cell() -> Cell:
    """A cell that PEER is not in."""
    return Cell(1, cell_of(NAMESPACE, PEER, 1).prefix ^ 1)


def unsorted_delta(world: World) -> Delta:
    return msgspec.structs.replace(late_delta(world), upserts=bytes(18))


@dataclass
class Case:
    name: str
    event: Callable[[World], Event]
    refusal: Refusal
    pays: bytes | None
    """The peer whose offence it is."""


CASES = [
    Case("bytes", lambda w: Malformed(RELAY, "not a message"), Refusal.MALFORMED, RELAY),
    Case("claims 16 MB", lambda w: Malformed(RELAY, "claims", Refusal.OVERSIZED), Refusal.OVERSIZED, RELAY),
    Case("records out of order", lambda w: gossip(unsorted_delta(w)), Refusal.MALFORMED, PEER),
    Case("wrong signature", lambda w: gossip(Announce(head=forged(w))), Refusal.WRONG_SIGNATURE, PEER),
    Case(
        "wrong signature, relayed",
        lambda w: Received(RELAY, snapshot(forged(w), {})),
        Refusal.WRONG_SIGNATURE,
        RELAY,
    ),
    Case("wrong namespace", lambda w: gossip(Announce(head=elsewhere(w))), Refusal.WRONG_NAMESPACE, PEER),
    Case(
        "unasked namespace",
        lambda w: Received(RELAY, snapshot(elsewhere(w), {})),
        Refusal.WRONG_NAMESPACE,
        None,
    ),
    Case(
        "wrong cell", lambda w: Gossiped(PEER, PEER, NAMESPACE, late_delta(w), other_cell()), Refusal.WRONG_CELL, PEER
    ),
    Case("another's head", lambda w: gossip(Announce(head=next_head(w)), RELAY), Refusal.WRONG_OWNER, RELAY),
    Case("future epoch", lambda w: gossip(Announce(head=next_head(w, epoch=far(w)))), Refusal.FUTURE, None),
    Case("future time", lambda w: gossip(Announce(head=next_head(w, issued_at=far(w)))), Refusal.FUTURE, None),
    Case(
        "future epoch, relayed",
        lambda w: Received(RELAY, snapshot(next_head(w, epoch=far(w)), {})),
        Refusal.FUTURE,
        None,
    ),
    Case("replayed head", lambda w: gossip(Announce(head=true_head(w))), Refusal.REPLAYED, None),
    Case("older head", lambda w: gossip(Announce(head=next_head(w, seq=1))), Refusal.REPLAYED, None),
    Case("own head", lambda w: Received(RELAY, snapshot(signed(ME, {}), {})), Refusal.REPLAYED, None),
    Case("expired head", lambda w: gossip(Announce(head=next_head(w, issued_at=9))), Refusal.EXPIRED, None),
    Case("delta that does not apply", lambda w: gossip(late_delta(w)), Refusal.WRONG_DELTA, PEER),
    Case("log that does not apply", lambda w: Received(PEER, wrong_log(w)), Refusal.WRONG_DELTA, PEER),
    Case(
        "snapshot of another root",
        lambda w: Received(RELAY, snapshot(next_head(w, entries={5: 0}), {6: 0})),
        Refusal.WRONG_SNAPSHOT,
        RELAY,
    ),
]


def held(overlay: Overlay) -> object:
    """Everything in ``overlay`` that a refused message could have changed."""
    estimates = overlay.estimates
    known = {key: (e.head, dict(e.entries), e.wanted, e.suspect) for key, e in estimates.items()}
    return known, estimates.floors(), overlay.digests.repairs.num_pending, overlay.peers(0.0)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input_is_counted_costs_its_sender_and_changes_nothing_else(case: Case) -> None:
    world = quiet_world()
    node = world.nodes[ME]
    before, refusals = held(node.overlay), Counter(node.overlay.refusals)
    effects = world.handle(ME, case.event(world))
    assert node.overlay.refusals - refusals == Counter({case.refusal: 1})
    assert held(node.overlay) == before
    assert [e.event for e in effects if isinstance(e, Emit)] == ["peer_offence"] * (case.pays is not None)
    paying = [e.fields["peer"] for e in effects if isinstance(e, Emit)]
    assert paying == [case.pays] * (case.pays is not None)
    assert len(effects) == len(paying), "nothing is sent, and no timer set"


@pytest.mark.parametrize("case", [case for case in CASES if case.pays], ids=lambda case: case.name)
def test_ten_times_cut_the_sender_off_and_nobody_else(case: Case) -> None:
    world = quiet_world()
    cut: list[bytes] = []
    for _ in range(12):
        cut += [e.peer for e in world.handle(ME, case.event(world)) if isinstance(e, Disconnect)]
    assert cut == [case.pays]
    honest = RELAY if case.pays == PEER else PEER
    assert world.nodes[ME].overlay.estimates.state(honest, NAMESPACE) is State.LIVE


@pytest.mark.parametrize("case", [case for case in CASES if not case.pays], ids=lambda case: case.name)
def test_what_an_honest_node_may_cause_never_cuts_it_off(case: Case) -> None:
    world = quiet_world()
    for _ in range(150):
        assert not [e for e in world.handle(ME, case.event(world)) if isinstance(e, Disconnect | Emit | Send)]


def test_equivocation_and_quarantine_are_counted() -> None:
    world = quiet_world()
    for entries in ({5: 0}, {6: 0}):
        world.handle(ME, Received(RELAY, snapshot(next_head(world, STRANGER, entries), entries)))
    world.handle(ME, Received(RELAY, snapshot(next_head(world, STRANGER, seq=9), {})))
    refusals = world.nodes[ME].overlay.refusals
    assert refusals[Refusal.EQUIVOCATION] == 1 and refusals[Refusal.QUARANTINED] == 1


def test_asking_too_often_and_another_version_are_counted() -> None:
    world = quiet_world()
    nothing = RepairRequest(owner=ME, namespace=NAMESPACE, epoch=0, seq=0, count=0, root=b"x" * 16)
    for _ in range(CONFIG.repairs_per_minute + 3):
        world.handle(ME, Received(PEER, nothing))
    for _ in range(3):
        world.handle(ME, Received(PEER, Reconcile(versions=())))
    world.handle(ME, Received(PEER, Hello(wire_version=WIRE_VERSION + 2, agent="", served=())))
    refusals = world.nodes[ME].overlay.refusals
    assert refusals[Refusal.TOO_SOON] >= 3 + 2 and refusals[Refusal.WRONG_VERSION] == 1


# --- floods --------------------------------------------------------------------------------------------------------


class Flood:
    """PEER's valid heads, each newer than the one before, without end."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.seq = true_head(world).seq

    def head(self) -> Head:
        self.seq += 1
        return next_head(self.world, seq=self.seq, entries={self.seq: 0})


@pytest.mark.parametrize("direct", [False, True], ids=["gossip", "repairs"])
def test_a_thousand_heads_a_second_are_cut_off_without_hurting_the_others(direct: bool) -> None:
    world = quiet_world()
    node, flood = world.nodes[ME], Flood(world)
    node.checked.clear()
    cut_after = None
    for number in range(5_000):  # (five seconds)
        if number % 2_500 == 0:
            world.store(RELAY, number, [number + 7] * STRIDE)
        head = flood.head()
        event = Received(PEER, Repair(head=head, mode=0, from_seq=0, upserts=b"", removes=b""))
        effects = world.handle(ME, event if direct else gossip(Announce(head=head)))
        if any(isinstance(e, Disconnect) for e in effects):
            cut_after = cut_after or number + 1
        world.advance(0.001, deliver=False)
        world.in_flight = [(to, event) for to, event in world.in_flight if to != PEER]
        world.deliver_all()
    assert cut_after is not None and cut_after < 250, "a quarter of a second"
    assert node.checked.count(PEER) <= CONFIG.repairs_burst + CONFIG.repairs_per_s, "what is over costs no signature"
    assert [e.peer for e in node.take(Disconnect) if isinstance(e, Disconnect)] == [PEER]
    limit = OverlayConfig().trust.offences_to_quarantine
    assert limit <= node.overlay.refusals[Refusal.TOO_MANY] <= limit + 1, "(they decay a little meanwhile)"
    assert node.overlay.refusals[Refusal.QUARANTINED] > 4_700
    world.advance(31)
    estimates = node.overlay.estimates
    assert estimates.state(RELAY, NAMESPACE) is State.LIVE
    assert estimates.entries(RELAY, NAMESPACE) == world.nodes[RELAY].own_digest.entries
    assert all(block in estimates.entries(RELAY, NAMESPACE) for block in block_hashes(NAMESPACE, [7] * STRIDE))


def test_a_flood_through_a_relay_costs_neither_the_relay_nor_what_else_it_brings() -> None:
    world = quiet_world()
    flood, checked = Flood(world), world.nodes[ME].checked
    checked.clear()
    other = OwnDigest(STRANGER, NAMESPACE, int(world.now * 1000), sign_as(STRANGER), CONFIG)
    for _ in range(1_000):
        effects = world.handle(ME, Gossiped(PEER, RELAY, NAMESPACE, Announce(head=flood.head())))
        assert not [e for e in effects if isinstance(e, Disconnect | Emit)]
    assert len(checked) == CONFIG.heads_burst
    world.handle(ME, Gossiped(STRANGER, RELAY, NAMESPACE, other.advance(world.now)))
    world.handle(ME, Gossiped(PEER, PEER, NAMESPACE, Announce(head=flood.head())))
    assert checked[-2:] == [STRANGER, PEER], "also what the owner says itself is still heard"


def test_what_was_asked_for_is_never_too_much() -> None:
    """After a partition one neighbour may get hundreds of questions, and answer as fast as they come."""
    world = quiet_world()
    world.check_every = 50
    overlay = world.nodes[ME].overlay
    owners = {b"owner%d" % number for number in range(300)}
    first_asked: list[int] = []
    for second in range(30):
        for owner in sorted(owners):  # (each heartbeat announces them again)
            head = signed(owner, {5: 0}, seq=second + 1, issued_at=int(world.now * 1000))
            world.handle(ME, Gossiped(owner, RELAY, NAMESPACE, Announce(head=head)))
        sent = [event.message for to, event in world.in_flight if to == RELAY and isinstance(event, Received)]
        asked = {message.owner for message in sent if isinstance(message, RepairRequest)}
        first_asked.append(len(asked))
        for owner in asked:
            head = signed(owner, {5: 0}, seq=second + 1, issued_at=int(world.now * 1000))
            world.handle(ME, Received(RELAY, snapshot(head, {5: 0})))
            owners.discard(owner)
        world.in_flight.clear()
        world.advance(1.0, deliver=False)
    assert first_asked[0] <= QUESTIONS_BURST and sum(first_asked) <= QUESTIONS_BURST + 30 * QUESTIONS_PER_S
    assert not owners, "all of them within 30 s"
    assert overlay.refusals[Refusal.TOO_MANY] == 0


def test_repeated_old_heads_use_up_nothing() -> None:
    world = quiet_world()
    old = Announce(head=true_head(world))
    for _ in range(1_000):
        world.handle(ME, Gossiped(PEER, RELAY, NAMESPACE, old))
    checked = world.nodes[ME].checked
    checked.clear()
    world.handle(ME, Gossiped(PEER, RELAY, NAMESPACE, Announce(head=next_head(world))))
    assert checked == [PEER]


def test_limits_are_kept_for_a_bounded_number_of_keys() -> None:
    limits: Limits[int] = Limits(rate=1.0, burst=2.0, max_keys=3)
    for key in range(10):
        assert limits.take(key, 0.0)
    assert len(limits) == 3
    assert limits.take(9, 0.0) and not limits.take(9, 0.0)
    assert limits.take(9, 1.0)


# --- wire versions -------------------------------------------------------------------------------------------------


def versions(ours: int, theirs: int) -> World:
    """Two nodes of different wire versions, connected, after their hellos."""
    world = World(1, config=OverlayConfig(wire_version=ours))
    world.config = OverlayConfig(wire_version=theirs)
    world.start(PEER)
    world.deliver_all()
    return world


@pytest.mark.parametrize(("ours", "theirs"), [(1, 2), (2, 1), (2, 2)])
def test_nodes_of_neighbouring_versions_talk(ours: int, theirs: int) -> None:
    world = versions(ours, theirs)
    assert [view.peer for view in world.nodes[ME].overlay.peers(world.now)] == [PEER]
    assert [view.peer for view in world.nodes[PEER].overlay.peers(world.now)] == [ME]
    world.store(PEER, 1, [1] * STRIDE)
    world.advance(15)
    assert len(world.nodes[ME].overlay.peers(world.now)[0].num_blocks) == 1
    assert not world.nodes[ME].overlay.refusals and not world.nodes[PEER].overlay.refusals


@pytest.mark.parametrize(("ours", "theirs", "who"), [(1, 3, "this node is too old"), (3, 1, "it is too old")])
def test_other_versions_are_refused_and_it_is_said_who_must_be_updated(ours: int, theirs: int, who: str) -> None:
    world = versions(ours, theirs)
    node = world.nodes[ME]
    assert node.overlay.peers(world.now) == [] and node.overlay.refusals[Refusal.WRONG_VERSION] == 1
    (disconnect,) = node.take(Disconnect)
    assert isinstance(disconnect, Disconnect)
    assert disconnect.reason.startswith(f"speaks wire version {theirs}, this node speaks {ours}: {who}")
