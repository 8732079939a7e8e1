"""Swarms larger than a cell, at sizes that take seconds: they split and merge by themselves, and find prefixes."""

import random
from functools import partial

import numpy as np
import pytest

from mycelia.proto.cells.cells import Cell, address_of
from mycelia.proto.config import CellConfig, LadderConfig, OverlayConfig
from mycelia.sim.cells import CellSwarm, grow_and_shrink, steady_change
from mycelia.sim.kademlia import K, Kademlia
from mycelia.sim.links import Homes, Links, constant_rtt, modelled_rtt
from mycelia.sim.meshes import Meshes
from mycelia.sim.node import peer_id
from mycelia.sim.reuse import ALL, LADDER, OWN_CELL, Reusing, cells_of, sizes
from mycelia.sim.world import NAMESPACE

TINY = OverlayConfig(cells=CellConfig(max_cell_nodes=16, min_cell_nodes=5, min_cell_peers=2))


def quiet(_: str) -> None:
    pass


@pytest.mark.parametrize("seed", [1])
def test_a_swarm_that_grows_splits_and_one_that_shrinks_merges(seed: int) -> None:
    result = grow_and_shrink(modelled_rtt(50, random.Random(seed)), 12, 50, 8, seed, TINY, quiet, grow_s=100.0)
    assert sum(result.sizes) == 50 and len(result.sizes) >= 4 and result.sizes[-1] <= 16
    assert result.known_min >= 0.8, "nobody loses sight of its cell while it moves"
    assert sum(result.merged_sizes) == 8 and len(result.merged_sizes) < len(result.sizes)
    assert result.known_after == 1.0
    assert result.moves_per_node < 5


def test_equal_seeds_are_equal_runs() -> None:
    def run() -> str:
        swarm = CellSwarm(modelled_rtt(24, random.Random(5)), 5, TINY)
        for number in range(24):
            swarm.world.call(swarm.world.now + number, partial(swarm.join, number))
        swarm.wait(200)
        assert len(swarm.sizes()) > 1
        return swarm.world.trace()

    assert run() == run()


def test_what_a_node_receives_is_bounded_by_its_cell() -> None:
    one = steady_change(modelled_rtt(14, random.Random(1)), 1, 5.0, 64, 30.0, 1, TINY, quiet)
    two = steady_change(modelled_rtt(28, random.Random(1)), 2, 5.0, 64, 30.0, 1, TINY, quiet)
    assert len(one.sizes) == 1 and max(two.sizes) <= 16
    # Connections to other cells, here as numerous as inside, cost less than a larger cell would.
    assert 0 < two.received_per_s < 1.5 * one.received_per_s


def test_a_mesh_follows_its_subscribers() -> None:
    near: list[set[int]] = [{1, 2, 3}, {0, 2, 3}, {0, 1, 3}, {0, 1, 2}]
    links, cell = Links(constant_rtt(4, 0.1), seed=1, jitter=0.0), Cell(1, 0)
    meshes = Meshes(links, near, 2, random.Random(1))
    for number in range(3):
        meshes.join(number, cell)
    assert meshes.prepare(cell, 10.0).tolist() == [True, True, True, False]
    everybody = np.ones(4, dtype=np.bool_)
    assert np.isfinite(links.flood(0, 10.0, everybody, cell)[0]).tolist() == [True, True, True, False]
    meshes.leave(1, cell)
    meshes.join(3, cell)
    meshes.prepare(cell, 12.0)
    assert np.isfinite(links.flood(0, 12.0, everybody, cell)[0]).tolist() == [True, False, True, True]
    meshes.leave_all(2)
    assert meshes.subscribers(cell) == [0, 3]


def test_where_the_rules_lead() -> None:
    assert sizes(100, CellConfig()) == [100]
    many = sizes(3_000, CellConfig())
    assert sum(many) == 3_000 and many[-1] <= 256 and many[0] > 80
    addresses = [address_of(NAMESPACE, peer_id(number)) for number in range(500)]
    assert all(cell.holds(address) for cell, address in zip(cells_of(addresses, 100), addresses, strict=True))


def test_a_lookup_ends_at_the_nearest_nodes() -> None:
    rng = random.Random(1)
    dht = Kademlia(Homes(300, rng), 300, rng, dead_share=0.1)
    for number in range(20):
        key, source = b"%d" % number, rng.randrange(300)
        holders = set(dht.holders(key))
        hit, miss, libp2p = dht.find_providers(source, key, holders), dht.find_providers(source, key, ()), None
        assert hit.is_found and not miss.is_found and hit.seconds <= miss.seconds
        libp2p = dht.find_nearest(source, key)
        assert libp2p.num_asked >= K and libp2p.seconds > miss.seconds


def test_the_ladder_finds_what_other_cells_hold() -> None:
    rng = random.Random(1)
    dht = Kademlia(Homes(120, rng), 120, rng)

    def run(kind: str, wait_s: float = 4.0, max_nodes: int = 40) -> float:
        cells = CellConfig(max_cell_nodes=max_nodes)
        result = Reusing(dht, 120, kind, 1, cells, LadderConfig(), wait_s).run()
        assert kind != LADDER or max_nodes == 120 or 0 < len(result.lookups) <= result.num_lookups
        return result.hit_share

    own, ladder, known = run(OWN_CELL), run(LADDER), run(ALL)
    assert own + 0.02 < ladder < known
    assert run(LADDER, 0.0) < ladder, "who does not wait gains less"
    assert run(LADDER, max_nodes=120) == run(OWN_CELL, max_nodes=120), "one cell looks nothing up"
