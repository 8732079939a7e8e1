"""``mycelia bench scale``: simulated swarms of one model that are larger than a cell.

docs/scale.md says what is simulated in full and what of a sample. All quantities except ``rss_per_node`` are of virtual
time and counted bytes, so they are the same on every machine.
"""

import random
import resource
from collections.abc import Callable, Sequence

from mycelia.bench.plans import ScaleBench
from mycelia.bench.report.report import Progress, Report, Row, chosen, report_of, row_of
from mycelia.bench.report.runs import no_garbage_collection
from mycelia.proto.config import LadderConfig, OverlayConfig
from mycelia.sim.cells import grow_and_shrink, steady_change
from mycelia.sim.kademlia import Found, Kademlia
from mycelia.sim.links import Homes, modelled_rtt
from mycelia.sim.metadata import Step
from mycelia.sim.reuse import ALL, LADDER, OWN_CELL, Reuse, Reusing, sizes

CHANGES_PER_S, CACHE_BLOCKS, TRAFFIC_S = 5.0, 256, 60.0
"""As in ``mycelia bench gossip``."""
SAMPLED_CELLS = 2
GROWN, GROWTH_FACTOR, SHRUNK_SHARE = 1_000, 5, 0.15
FAST_WAIT_S, SLOW_WAIT_S = LadderConfig().lookup_wait_s, LadderConfig().max_lookup_wait_s
NUM_LOOKUPS = 400
_NUM_STEPS = {"cells": 1, "digests": 3, "dht": 1, "reuse": 4, "growth": 3}


class _Bench:
    """A method for each group of rows."""

    def __init__(self, num_nodes: int, seed: int) -> None:
        self._num_nodes = num_nodes
        self._seed = seed
        self._config = OverlayConfig()
        self._dht: Kademlia | None = None

    def cells(self, step: Step) -> list[Row]:
        """The cells that the rules make of the nodes' addresses."""
        step("addresses")
        found = [float(size) for size in sizes(self._num_nodes, self._config.cells)]
        return [
            row_of("cells", "cells", [len(found)]),
            row_of("cell_nodes", "nodes", found),
        ]

    def digests(self, step: Step) -> list[Row]:
        """The overlays of a sample of cells, each of the mean size."""
        all_sizes = sizes(self._num_nodes, self._config.cells)
        num_cells = min(SAMPLED_CELLS, len(all_sizes))
        num_nodes = round(num_cells * sum(all_sizes) / len(all_sizes))
        before = _rss_bytes()
        rtt = modelled_rtt(num_nodes, self._rng())
        traffic = steady_change(rtt, num_cells, CHANGES_PER_S, CACHE_BLOCKS, TRAFFIC_S, self._seed, self._config, step)
        return [
            row_of("sampled_cell_nodes", "nodes", [float(size) for size in traffic.sizes]),
            row_of("digest_rx_bytes_per_s", "bytes/s", [traffic.received_per_s]),
            row_of("digests_kept", "digests", [traffic.owners]),
            row_of("entries_kept", "entries", [traffic.entries]),
            row_of("rss_per_node", "bytes", [(_rss_bytes() - before) / num_nodes]),
        ]

    def dht(self, step: Step) -> list[Row]:
        """Lookups of one key among all nodes, a tenth of them dead."""
        step("lookups")
        dht, rng = self._kademlia(), self._rng()
        hits, misses, publishes = [], [], []
        for number in range(NUM_LOOKUPS):
            key, source = b"%d" % number, rng.randrange(self._num_nodes)
            hits.append(dht.find_providers(source, key, set(dht.holders(key))))
            misses.append(dht.find_providers(source, key, ()))
            publishes.append(dht.find_nearest(source, key))
        return [
            *_times("lookup_found", hits),
            *_times("lookup_nobody", misses),
            *_times("libp2p_find_closest", publishes),
            row_of("lookup_in_300_ms", "share", [sum(found.seconds <= FAST_WAIT_S for found in hits) / len(hits)]),
            row_of("provide_bytes", "bytes", [_mean([float(dht.provide_bytes(found)) for found in misses])]),
        ]

    def reuse(self, step: Step) -> list[Row]:
        """The share of prompt tokens found cached, with the same requests four times."""
        dht = self._kademlia()

        def run(kind: str, wait_s: float) -> Reuse:
            step(f"requests: {kind}, waiting {wait_s:g} s")
            args = (self._seed, self._config.cells, self._config.ladder, wait_s)
            return Reusing(dht, self._num_nodes, kind, *args).run()

        own, fast, slow, known = run(OWN_CELL, 0.0), run(LADDER, FAST_WAIT_S), run(LADDER, SLOW_WAIT_S), run(ALL, 0.0)
        gap = known.hit_share - own.hit_share
        rows = [
            row_of("hit_share_own_cell", "share", [own.hit_share]),
            row_of("hit_share_ladder", "share", [slow.hit_share]),
            row_of("hit_share_ladder_300_ms", "share", [fast.hit_share]),
            row_of("hit_share_all_known", "share", [known.hit_share]),
        ]
        if not slow.lookups:
            return rows
        return [
            *rows,
            row_of("ladder_of_the_rest", "share", [(slow.hit_share - own.hit_share) / gap]),
            row_of("ladder_publish_bytes_per_s", "bytes/s", [slow.provide_bytes_per_s]),
            row_of("ladder_lookup_bytes_per_s", "bytes/s", [slow.lookup_bytes_per_s]),
            row_of("lookups_that_served", "share", [slow.num_in_wait / max(1, slow.num_found)]),
            row_of("dials_in_vain", "share", [slow.num_false / max(1, slow.num_found)]),
        ]

    def growth(self, step: Step) -> list[Row]:
        """A fifth of the nodes, then all, then 15 %: every overlay is simulated."""
        grown = min(self._num_nodes, GROWN)
        rtt = modelled_rtt(grown, self._rng())
        shrunk = round(grown * SHRUNK_SHARE)
        result = grow_and_shrink(rtt, grown // GROWTH_FACTOR, grown, shrunk, self._seed, self._config, step)
        return [
            row_of("grown_cell_nodes", "nodes", [float(size) for size in result.sizes]),
            row_of("split_settled_s", "s", [result.settled_s]),
            row_of("known_of_cell_min", "share", [result.known_min]),
            row_of("known_of_cell_p01", "share", [result.known_p01]),
            row_of("moves_per_node", "moves", [result.moves_per_node]),
            row_of("shrunk_cell_nodes", "nodes", [float(size) for size in result.merged_sizes]),
            row_of("merge_settled_s", "s", [result.merged_s]),
        ]

    def _rng(self) -> random.Random:
        return random.Random(self._seed)  # noqa: S311  a simulation

    def _kademlia(self) -> Kademlia:
        if self._dht is None:
            rng = self._rng()
            self._dht = Kademlia(Homes(self._num_nodes, rng), self._num_nodes, rng)
        return self._dht


def bench_scale(plan: ScaleBench) -> Report:
    """Simulate. Raises LocalError for an unknown group of rows."""
    bench = _Bench(plan.num_nodes, plan.seed)
    groups: dict[str, Callable[[Step], list[Row]]] = {
        "cells": bench.cells,
        "digests": bench.digests,
        "dht": bench.dht,
        "reuse": bench.reuse,
        "growth": bench.growth,
    }
    names = chosen(plan.only, list(groups), "group")
    progress = Progress(sum(_NUM_STEPS[name] for name in names))
    rows = []
    with no_garbage_collection():
        for name in names:
            rows += groups[name](progress.step_of(name))
    progress.close()
    return report_of("scale", rows)


def _times(name: str, found: Sequence[Found]) -> list[Row]:
    seconds = sorted(one.seconds for one in found)
    return [
        row_of(f"{name}_p50", "s", [seconds[len(seconds) // 2]]),
        row_of(f"{name}_p99", "s", [seconds[int(len(seconds) * 0.99)]]),
        row_of(f"{name}_bytes", "bytes", [_mean([float(one.received_bytes + one.sent_bytes) for one in found])]),
    ]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _rss_bytes() -> float:
    """The peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
