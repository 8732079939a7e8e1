"""The metadata plane in small swarms: the bounds of ``mycelia bench gossip``, at sizes that take seconds."""

from mycelia.proto.cells.cells import ROOT
from mycelia.proto.config import CellConfig, DigestConfig
from mycelia.sim import metadata
from mycelia.sim.metadata import Setting
from mycelia.sim.world import NAMESPACE

CONFIG = DigestConfig()
STORES_PER_S = 1 / 60


def quiet(_: str) -> None:
    pass


def test_a_store_is_visible_within_two_batch_intervals() -> None:
    result = metadata.store_visible(Setting(40, loss=0.02), STORES_PER_S, 60.0, quiet)
    assert result.num_missed == 0 and len(result.seconds) > 20
    assert result.seconds[int(len(result.seconds) * 0.99)] <= 2 * CONFIG.delta_interval_s


def test_a_swarm_of_many_stays_one_cell_here() -> None:
    few = CellConfig(split_hold_s=1.0, newcomer_s=1.0, max_cell_nodes=8, min_cell_nodes=2)
    swarm = metadata.make_swarm(Setting(40, loss=0.0), few)
    assert {node.overlay.cell(NAMESPACE) for node in swarm.world.up()} == {ROOT}


def test_under_heavy_loss_all_estimates_become_equal() -> None:
    assert metadata.reconcile(Setting(40, loss=0.2), STORES_PER_S, 60.0, quiet) <= 6 * CONFIG.reconcile_s


def test_halves_that_were_apart_become_equal() -> None:
    seconds = metadata.partition(Setting(24, loss=0.02), STORES_PER_S, 600.0, quiet)
    assert seconds <= 5 * CONFIG.reconcile_s


def test_a_restart_with_the_same_cache_costs_each_peer_little() -> None:
    assert 0 < metadata.restart(Setting(20, loss=0.0), 64, quiet) < 500


def test_steady_change_stays_within_the_receive_budget() -> None:
    few = metadata.steady_change(Setting(8, loss=0.0), 5.0, 128, 30.0, quiet)
    many = metadata.steady_change(Setting(20, loss=0.0), 5.0, 128, 30.0, quiet)
    assert few.total < many.total < CONFIG.receive_bytes_per_s


def test_more_prompts_a_second_come_nearer_to_the_floor() -> None:
    slow = metadata.mmlu(Setting(16, loss=0.0), 0.2, 128, 30.0, quiet)
    fast = metadata.mmlu(Setting(16, loss=0.0), 2.0, 128, 30.0, quiet)
    assert 0 < slow.floor < fast.floor
    assert fast.total / fast.floor < slow.total / slow.floor
