"""``mycelia bench gossip``: the metadata plane in the simulator, which drives the node's protocol objects.

Each row is one simulated swarm; the settings are in the functions below. All quantities are of virtual time and counted
bytes, so they are the same on every machine. Only the rows about processor time are of real processes: see
``cpu_share.py``.
"""

import gc
from collections.abc import Callable
from functools import partial
from pathlib import Path

from mycelia.bench.plans import GossipBench
from mycelia.bench.report.report import Progress, Report, Row, chosen, report_of, row_of
from mycelia.bench.report.runs import no_garbage_collection
from mycelia.bench.scale import cpu_share
from mycelia.bench.scale.load import Load
from mycelia.node.commands.running import run
from mycelia.proto.config import DigestConfig
from mycelia.proto.wire.errors import LocalError
from mycelia.sim import metadata
from mycelia.sim.metadata import Setting, Step

CELL_NODES = 256
_STORES_PER_S = 1 / 60
"""For each node, in the rows about convergence."""
_CHANGE_S = 30.0
_APART_S = 600.0
_CHANGES_PER_S, _PROMPTS_PER_S = 5.0, 2.0
_CACHE_BLOCKS = 256
"""16,384 tokens of KV cache per node, in the rows about bytes: full within a minute, so that blocks also leave."""
_TRAFFIC_S = 60.0
_RESTART_NODES, _RESTART_LEAVES = 40, 128
_NUM_STEPS = 3
"""Steps that a scenario reports."""


class _Bench:
    """The swarm's settings, and a method for each row (or for a few from one simulation)."""

    def __init__(self, num_nodes: int, rtt_file: Path | None, seed: int) -> None:
        self._num_nodes = num_nodes
        self._rtt_file = rtt_file
        self._seed = seed
        self._config = DigestConfig()

    def store_visible_batches_p99(self, step: Step) -> list[Row]:
        """2 % loss."""
        result = metadata.store_visible(self._setting(self._num_nodes, 0.02), _STORES_PER_S, _CHANGE_S, step)
        if not result.seconds:
            raise LocalError("nothing was stored: use more nodes")
        interval = self._config.delta_interval_s
        p50, p99 = (result.seconds[int(len(result.seconds) * share)] / interval for share in (0.5, 0.99))
        return [
            row_of("store_visible_batches_p99", "batch intervals", [p99]),
            row_of("store_visible_batches_p50", "batch intervals", [p50]),
        ]

    def reconcile_rounds(self, step: Step) -> list[Row]:
        """20 % loss."""
        seconds = metadata.reconcile(self._setting(self._num_nodes, 0.2), _STORES_PER_S, _CHANGE_S, step)
        return [row_of("reconcile_rounds", "rounds", [seconds / self._config.reconcile_s])]

    def partition_rounds(self, step: Step) -> list[Row]:
        """2 % loss."""
        seconds = metadata.partition(self._cell(0.02), _STORES_PER_S, _APART_S, step)
        return [row_of("partition_rounds", "rounds", [seconds / self._config.reconcile_s])]

    def same_repair_bytes(self, step: Step) -> list[Row]:
        """No loss."""
        setting = self._setting(min(self._num_nodes, _RESTART_NODES), 0.0)
        return [row_of("same_repair_bytes", "bytes", [metadata.restart(setting, _RESTART_LEAVES, step)])]

    def digest_rx_bytes_per_s(self, step: Step) -> list[Row]:
        """No loss."""
        traffic = metadata.steady_change(self._cell(0.0), _CHANGES_PER_S, _CACHE_BLOCKS, _TRAFFIC_S, step)
        parts = [row_of(f"digest_rx_{plane}", "bytes/s", [value]) for plane, value in traffic.by_plane.items()]
        return [row_of("digest_rx_bytes_per_s", "bytes/s", [traffic.total]), *parts]

    def floor_ratio(self, step: Step) -> list[Row]:
        """No loss."""
        traffic = metadata.mmlu(self._cell(0.0), _PROMPTS_PER_S, _CACHE_BLOCKS, _TRAFFIC_S, step)
        if not traffic.floor:
            raise LocalError("every prompt was cached: there is no floor to compare with")
        return [
            row_of("floor_ratio", "received/floor", [traffic.total / traffic.floor]),
            row_of("floor_bytes_per_s", "bytes/s", [traffic.floor]),
        ]

    def _setting(self, num_nodes: int, loss: float) -> Setting:
        return Setting(num_nodes, loss, self._seed, self._rtt_file, self._config)

    def _cell(self, loss: float) -> Setting:
        return self._setting(min(self._num_nodes, CELL_NODES), loss)


def bench_gossip(plan: GossipBench) -> Report:
    """Simulate. Raises LocalError when a quantity could not be measured."""
    bench = _Bench(plan.num_nodes, plan.rtt_file, plan.seed)
    measures: dict[str, Callable[[Step], list[Row]]] = {
        "same_repair_bytes": bench.same_repair_bytes,
        "floor_ratio": bench.floor_ratio,
        "digest_rx_bytes_per_s": bench.digest_rx_bytes_per_s,
        "partition_rounds": bench.partition_rounds,
        "store_visible_batches_p99": bench.store_visible_batches_p99,
        "reconcile_rounds": bench.reconcile_rounds,
    }
    names = chosen(plan.only, [*cpu_share.ROWS, *measures], "row")
    of_processes = [name for name in names if name in cpu_share.ROWS]
    simulated = [name for name in names if name in measures]
    setting = cpu_share.Setting()
    progress = Progress(_NUM_STEPS * len(simulated) + setting.num_steps(of_processes))
    rows = []
    if of_processes:
        step = progress.step_of("cpu_share")
        rows += run(partial(cpu_share.measure_cpu, of_processes, setting, Load(seed=plan.seed), step))
    with no_garbage_collection():
        for name in simulated:
            measured = measures[name](progress.step_of(name))
            progress.show(", ".join(f"{row.name} {row.value:g} {row.unit}" for row in measured))
            rows += measured
            gc.collect()
    progress.close()
    return report_of("gossip", rows)
