"""Cells: which nodes they hold, when a node moves, that swarms split and merge alone, that liars move no node."""

import random
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mycelia.proto.cells.cells import ROOT, Cell, CellPosition, Move, Owner, address_of, cell_of
from mycelia.proto.config import CellConfig, OverlayConfig
from mycelia.proto.digests.digest import snapshot
from mycelia.proto.effects import Send
from mycelia.proto.events import Disconnected, Received, Timer, TimerFired
from mycelia.proto.wire.messages import MAX_CELL_BITS, Reconcile, Version
from mycelia.proto.wire.refusals import Refusal
from tests.profiles import examples
from tests.proto.playbook import NAMESPACE, World, peer_id
from tests.proto.wire.test_hostile import signed

CONFIG = CellConfig()
SMALL = OverlayConfig(cells=CellConfig(max_cell_nodes=8, min_cell_nodes=3, min_cell_peers=1))
START = 1_000.0
ME = b"me"


def peers_of(cell: Cell, count: int, tag: int = 0) -> list[bytes]:
    """Ids of nodes in ``cell``."""
    found: list[bytes] = []
    number = 0
    while len(found) < count:
        number += 1
        peer = b"%d.%d" % (tag, number)
        if cell.holds(address_of(NAMESPACE, peer)):
            found.append(peer)
    return found


def owners(peers: Iterable[bytes], bits: int = 0, connected: int = 10**9) -> list[Owner]:
    return [Owner(peer, bits, number < connected) for number, peer in enumerate(peers)]


def position(bits: int = 0, config: CellConfig = CONFIG) -> CellPosition:
    """The position of a node that is no newcomer any more."""
    return CellPosition(NAMESPACE, ME, config, random.Random(1), START - config.newcomer_s, bits)


def run(at: CellPosition, known: list[Owner], seconds: float, start: float = START) -> list[tuple[float, Move]]:
    """Ticks each 5 s with the same owners; returns the resulting moves."""
    moves = []
    for tick in range(int(seconds / 5) + 1):
        move = at.tick(known, start + 5 * tick)
        at.check_invariants()
        if move.joined or move.left:
            moves.append((5.0 * tick, move))
    return moves


def child_of(bits: int) -> Cell:
    return cell_of(NAMESPACE, ME, bits)


@given(st.binary(min_size=2, max_size=64), st.integers(0, MAX_CELL_BITS - 1))
def test_cells_are_nested_and_siblings_disjoint(peer: bytes, bits: int) -> None:
    address = address_of(NAMESPACE, peer)
    inner, outer = cell_of(NAMESPACE, peer, bits + 1), cell_of(NAMESPACE, peer, bits)
    sibling = Cell(inner.bits, inner.prefix ^ 1)
    assert inner.holds(address) and outer.holds(address) and not sibling.holds(address)
    assert inner.prefix >> 1 == outer.prefix == sibling.prefix >> 1
    assert ROOT.holds(address) and cell_of(NAMESPACE, peer, 0) == ROOT


def test_cells_are_of_about_one_size() -> None:
    sizes = [0] * 16
    for number in range(16 * 256):
        sizes[cell_of(NAMESPACE, b"%d" % number, 4).prefix] += 1
    assert all(190 < size < 320 for size in sizes)
    assert address_of(NAMESPACE, b"a") != address_of(b"another one     ", b"a")


def test_a_full_cell_is_no_reason_and_one_node_more_is() -> None:
    everybody = peers_of(ROOT, 256)
    assert run(position(), owners(everybody[:255]), 600) == []
    at = position()
    ((first, moved),) = run(at, owners(everybody), 100)
    assert CONFIG.split_hold_s <= first <= 1.5 * CONFIG.split_hold_s + 5
    assert moved == Move((child_of(1),))
    ((last, ended),) = run(at, owners(everybody, bits=1), 600, START + 100)
    assert ended == Move((), (ROOT,))
    assert CONFIG.cell_grace_s <= last + 100 - first <= CONFIG.cell_grace_s + 5
    assert at.cells() == [child_of(1)]


def test_a_count_that_only_passes_by_moves_nobody() -> None:
    at, everybody = position(), peers_of(ROOT, 256)
    for second in range(0, 600, 5):
        known = owners(everybody[: 256 if second % 40 < 25 else 255])
        assert at.tick(known, START + second) == Move()


def test_during_the_grace_it_listens_to_both() -> None:
    at = position()
    run(at, owners(peers_of(ROOT, 256)), CONFIG.split_hold_s * 1.5 + 5)
    assert at.cells() == [child_of(1), ROOT]
    sibling = Cell(1, child_of(1).prefix ^ 1)
    assert at.covers(peers_of(sibling, 1)[0]) and not at.holds(peers_of(sibling, 1)[0])


def test_a_small_cell_merges_later_than_a_large_one_splits() -> None:
    at = position(bits=1)
    moves = run(at, owners(peers_of(child_of(1), 78), bits=1), 150 * 1.5)
    assert [move for _, move in moves] == [Move((ROOT,))] and moves[0][0] >= CONFIG.merge_hold_s
    assert run(position(bits=1), owners(peers_of(child_of(1), 110), bits=1), 900) == []


def test_halves_of_a_split_and_cells_that_merged_stay_as_they_are() -> None:
    at = position()
    everybody = peers_of(ROOT, 260)
    run(at, owners(everybody), 60)
    assert at.bits == 1
    assert run(at, owners(everybody, bits=1), 900, START + 900) == [(0.0, Move((), (ROOT,)))]
    at = position(bits=1)
    everybody = peers_of(ROOT, 158)
    inside = [peer for peer in everybody if at.holds(peer)][:78]
    run(at, owners(inside, bits=1), 300)
    assert at.bits == 0
    run(at, owners(everybody), 900, START + 300)
    assert at.bits == 0


def test_near_the_limit_it_goes_with_the_others() -> None:
    everybody = peers_of(ROOT, 230)
    half = [peer for peer in everybody if child_of(1).holds(address_of(NAMESPACE, peer))]
    rest = [peer for peer in everybody if peer not in half]
    for share, goes in ((0.2, False), (0.3, True)):
        at = position()
        moved = int(len(half) * share)
        run(at, owners(half[:moved], bits=1) + owners(half[moved:]) + owners(rest), 120)
        assert at.bits == goes
    at = position()  # (far from the limit a quarter does not count)
    run(at, owners(half[:50], bits=1) + owners(half[50:100]), 600)
    assert at.bits == 0


def test_who_was_left_behind_follows() -> None:
    half = peers_of(child_of(1), 20)
    at = position()
    run(at, owners(half[:12], bits=1) + owners(half[12:]), 60)
    assert at.bits == 1
    at = position(bits=2)
    run(at, owners(peers_of(child_of(2), 100), bits=1), 300)
    assert at.bits == 1


def test_a_newcomer_does_as_its_peers_do_and_then_counts() -> None:
    at = CellPosition(NAMESPACE, ME, CONFIG, random.Random(1), START)
    assert at.tick([], START) == Move()
    outside = owners(peers_of(ROOT, 20), bits=4)
    at.tick(outside, START + 5)
    assert 0 < at.bits < 4, "as far as it is connected there"
    inside = owners(peers_of(child_of(4), CONFIG.min_cell_peers), bits=4)
    assert at.tick(outside + inside, START + 10).joined == (child_of(4),)
    at = CellPosition(NAMESPACE, ME, CONFIG, random.Random(1), START)
    assert at.tick(outside[:1] + owners(peers_of(ROOT, 5, tag=1)), START + 10).left == ()
    assert at.bits == 0, "one of six cannot move it"
    at = CellPosition(NAMESPACE, ME, CONFIG, random.Random(1), START)
    unconnected = owners(peers_of(ROOT, 20), bits=4, connected=0)
    assert at.tick(unconnected, START + 5) == Move(), "nor can anybody who is not connected"


def test_a_small_swarm_is_not_led_away_by_peers_that_claim_to_be_elsewhere() -> None:
    at = position()
    honest = owners(peers_of(ROOT, 4))
    liars = owners([b"liar %d" % number for number in range(5)], bits=MAX_CELL_BITS)
    run(at, honest + liars, 600)
    assert at.bits <= 1
    newcomer = CellPosition(NAMESPACE, ME, CONFIG, random.Random(1), START)
    newcomer.tick(honest + liars, START + 5)
    assert newcomer.bits <= 1


def test_one_small_cell_among_larger_ones_goes_up_once() -> None:
    """Its sibling has too many nodes to merge: it waits there, instead of moving up to where no node is."""
    at = position(bits=4)
    mine = peers_of(child_of(4), 70)
    outside = [peer for peer in peers_of(ROOT, 12, tag=1) if not child_of(3).holds(address_of(NAMESPACE, peer))]
    for minute in range(40):
        known = owners(mine, bits=at.bits, connected=24) + owners(outside, bits=4)
        run(at, known, 60, START + 60 * minute)
    assert at.bits == 3


def test_a_cell_that_is_not_quite_small_follows_its_sibling() -> None:
    sibling = Cell(2, child_of(2).prefix ^ 1)
    for count, merges in ((90, True), (110, False)):
        at = position(bits=2)
        run(at, owners(peers_of(child_of(2), count), bits=2) + owners(peers_of(sibling, 8), bits=1), 250)
        assert at.bits == (1 if merges else 2)


def test_who_is_alone_looks_for_the_others() -> None:
    for bits, usual in ((9, 2), (1, 3)):
        at = position(bits=bits)
        run(at, owners(peers_of(child_of(usual), 100), bits=usual), 400)
        assert at.bits == usual
    at = position(bits=3)
    for hour in range(10):
        run(at, [], 3_600, START + 3_600 * hour)
    assert at.bits == 0, "nobody is left"


def test_invented_owners_do_not_make_a_cell_smaller_than_its_connections() -> None:
    at = position()
    real = peers_of(ROOT, 40, tag=1)
    fake = [peer for bits in range(9) for peer in peers_of(child_of(bits), 300, tag=2)]
    for tick in range(150):
        at.tick(owners(real, bits=at.bits) + owners(fake, bits=16, connected=0), START + 30 * tick)
    assert sum(at.holds(peer) for peer in real) >= CONFIG.min_cell_peers
    assert at.bits <= 5


def test_liars_below_a_majority_move_nobody() -> None:
    """150 honest owners at depth 1; up to 70 dishonest ones in the same cell announce any depth."""
    honest = owners(peers_of(child_of(1), 150), bits=1)
    for lie in (0, 2, 16):
        at = position(bits=1)
        assert run(at, honest + owners(peers_of(child_of(1), 70, tag=3), bits=lie), 1_200) == []


@settings(max_examples=examples(40), deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_whatever_is_said_the_position_is_sound_and_moves_are_rare(data: st.DataObject, seed: int) -> None:
    """Its cells all contain it, its joins and leaves match, and each move but a newcomer's waited for its hold."""
    config = CellConfig(max_cell_nodes=8, min_cell_nodes=3, min_cell_peers=1)
    at = CellPosition(NAMESPACE, ME, config, random.Random(seed), START)
    pool = [peer for bits in range(4) for peer in peers_of(child_of(bits), 12, tag=bits)]
    joined, moved_at, now = {ROOT}, START, START
    for _ in range(data.draw(st.integers(1, 40))):
        now += data.draw(st.sampled_from([5.0, 5.0, 30.0, 200.0]))
        known = [
            Owner(peer, data.draw(st.integers(0, MAX_CELL_BITS)), data.draw(st.booleans()))
            for peer in data.draw(st.lists(st.sampled_from(pool), unique=True, max_size=30))
        ]
        is_new = now < START + config.newcomer_s
        move = at.tick(known, now)
        at.check_invariants()
        assert not joined & set(move.joined) and set(move.left) <= joined
        joined = (joined | set(move.joined)) - set(move.left)
        assert joined == set(at.cells())
        if move.joined:
            assert is_new or now - moved_at >= config.split_hold_s
            moved_at = now if not is_new else moved_at


# --- through the overlay -------------------------------------------------------------------------------------------


def bits_of(world: World) -> list[int]:
    cells = [node.overlay.cell(NAMESPACE) for node in world.nodes.values()]
    return [cell.bits for cell in cells if cell is not None]


def sizes(world: World) -> dict[Cell, int]:
    found: dict[Cell, int] = {}
    for node in world.nodes.values():
        cell = node.overlay.cell(NAMESPACE)
        assert cell is not None
        found[cell] = found.get(cell, 0) + 1
    return found


@pytest.fixture(scope="module")
def split_world() -> World:
    """12 connected nodes, where 8 fill a cell."""
    world = World(12, seed=3, config=SMALL)
    world.advance(330)
    return world


def test_a_swarm_splits_into_cells_and_all_still_know_their_own(split_world: World) -> None:
    world = split_world
    assert len(sizes(world)) > 1 and max(sizes(world).values()) <= 8
    for me, node in world.nodes.items():
        cell = node.overlay.cell(NAMESPACE)
        assert cell is not None and node.cells == {cell}
        assert node.overlay.estimates.live(NAMESPACE), "and connected nodes of other cells too"
        for other in world.nodes:
            if other != me:
                assert node.overlay.estimates.version(other, NAMESPACE) > (0, 0)


def test_reconciliation_stays_within_the_cell(split_world: World) -> None:
    sent = []
    for me, node in split_world.nodes.items():
        effects = node.overlay.handle(TimerFired(Timer("reconcile")), split_world.now)
        sends = [effect for effect in effects if isinstance(effect, Send)]
        sent += [(me, effect) for effect in sends if isinstance(effect.message, Reconcile)]
    assert sent
    for me, effect in sent:
        cell = split_world.nodes[me].overlay.cell(NAMESPACE)
        assert cell is not None and isinstance(effect.message, Reconcile)
        for peer in (effect.peer, *(version.owner for version in effect.message.versions)):
            assert cell.holds(address_of(NAMESPACE, peer))


def test_a_swarm_that_shrinks_merges() -> None:
    world = World(10, seed=4, config=SMALL)
    world.advance(330)
    assert max(bits_of(world)) >= 1
    for number in range(4, 10):
        del world.nodes[peer_id(number)]
        for me in world.nodes:
            world.handle(me, Disconnected(peer_id(number)))
    world.advance(900)
    assert bits_of(world) == [0, 0, 0, 0]


def test_what_is_told_of_other_cells_is_neither_asked_for_nor_kept(split_world: World) -> None:
    me, relay = sorted(split_world.nodes)[:2]
    overlay = split_world.nodes[me].overlay
    cell = overlay.cell(NAMESPACE)
    assert cell is not None and cell.bits
    stranger = peers_of(Cell(cell.bits, cell.prefix ^ 1), 1, tag=9)[0]
    vector = Reconcile(versions=(Version(owner=stranger, namespace=NAMESPACE, epoch=9, seq=9),))
    effects = overlay.handle(Received(relay, vector), split_world.now + 60)
    assert not any(isinstance(effect, Send) and getattr(effect.message, "owner", b"") == stranger for effect in effects)
    head = signed(stranger, {5: 0}, issued_at=int(split_world.now * 1000))
    assert overlay.handle(Received(relay, snapshot(head, {5: 0})), split_world.now) == []
    assert overlay.refusals[Refusal.WRONG_CELL] == 1 and not overlay.estimates.entries(stranger, NAMESPACE)
