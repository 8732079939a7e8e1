"""The processor time of a node without its engine: the rows ``cpu_share_*`` of ``mycelia bench gossip``.

Unlike the simulated rows of that command, these are of real processes: a swarm on this machine, started by
``node/local_swarm/processes.py``, that serves the fake engine. A node's share is the processor time (user and system)
of its own process over a window, divided by the window: 0.01 is a hundredth of one core. The engine is a separate
process, stands for a GPU here and has its own rows. The client that makes the load is in no row.

One window gives one value, the mean over all nodes. The value of a row is the median of its windows.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory

import psutil
import trio

from mycelia.bench.asking import in_time
from mycelia.bench.report.report import Row, row_of
from mycelia.bench.scale.load import Client, Load
from mycelia.node.engine.models import FAKE_MODEL
from mycelia.node.local_swarm.processes import LocalNode, open_local_swarm
from mycelia.proto.wire.errors import LocalError

REST, EACH_2RPS, SWARM_2RPS = "cpu_share_rest", "cpu_share_2rps", "cpu_share_2rps_in_all"
"""At rest; with 2 requests/s that enter at each node; with 2 requests/s in the whole swarm."""
ROWS = (REST, EACH_2RPS)
"""Names for ``--only``. Each brings further rows that begin with it."""
CELLS = 32_768
MAX_LATE_S = 1.0
"""A window that ends later than this is discarded: the whole machine stood still for a while."""
MAX_WINDOWS = 3
"""Tries for each window."""
START_DEADLINE_S, SETTLE_DEADLINE_S, ANSWER_DEADLINE_S = 180.0, 240.0, 30.0
"""For a slow machine; a quick one takes 15 s, a minute and a second."""

Step = Callable[[str], None]


@dataclass(frozen=True)
class Setting:
    """The size and length of the measurement."""

    num_nodes: int = 12
    num_windows: int = 3
    rest_window_s: float = 30.0
    """As long as a round of anti-entropy; the mean is over nodes at different points of it."""
    load_window_s: float = 20.0
    ramp_s: float = 15.0
    """Load before the first window: caches fill, and the pace of digests settles."""
    settles: bool = True
    """Wait until every node has made its early, frequent lookups. False only in tests of this file."""

    def num_steps(self, rows: Sequence[str]) -> int:
        """Calls of a Step while ``rows`` are measured."""
        at_rest = self.num_windows if REST in rows else 0
        under_load = 2 * (1 + self.num_windows) if EACH_2RPS in rows else 0
        return 2 + at_rest + under_load if rows else 0


@dataclass(frozen=True)
class Shares:
    """Shares of one core over one window, one for each node."""

    nodes: list[float]
    engines: list[float]


async def measure_cpu(rows: Sequence[str], setting: Setting, load: Load, step: Step) -> list[Row]:
    """Start a swarm, measure ``rows`` (of ``ROWS``) and end it. Raises LocalError when that fails."""
    result: list[Row] = []
    async with _swarm(setting, step) as nodes:
        meter = _Meter(nodes)
        if REST in rows:
            windows = await meter.windows(setting.num_windows, setting.rest_window_s, lambda: step("at rest"))
            result += _rows(REST, windows)
        if EACH_2RPS in rows:
            for name, rate in ((EACH_2RPS, load.rate), (SWARM_2RPS, load.rate / len(nodes))):
                result += await _under_load(name, nodes, meter, replace(load, rate=rate), setting, step)
    return result


async def _under_load(
    name: str, nodes: Sequence[LocalNode], meter: "_Meter", load: Load, setting: Setting, step: Step
) -> list[Row]:
    what = f"{load.rate:.3g} requests/s at each node"
    step(f"{what} begin")
    urls = [(await node.wait_ready()).api_url for node in nodes]
    async with Client(urls, load).running() as client:
        with in_time(ANSWER_DEADLINE_S, "no answer came in time"):
            await client.first_answer.wait()
        await trio.sleep(setting.ramp_s)
        answered, began = client.num_answered, trio.current_time()
        windows = await meter.windows(setting.num_windows, setting.load_window_s, lambda: step(what))
        rate = (client.num_answered - answered) / (trio.current_time() - began) / len(nodes)
        client.check()
    return [*_rows(name, windows), row_of(f"{name}_answered", "requests/s a node", [rate])]


def _rows(name: str, windows: Sequence[Shares]) -> list[Row]:
    unit = "of one core"
    return [
        row_of(name, unit, [mean(window.nodes) for window in windows]),
        row_of(f"{name}_busiest", unit, [max(window.nodes) for window in windows]),
        row_of(f"{name}_engine", unit, [mean(window.engines) for window in windows]),
    ]


@asynccontextmanager
async def _swarm(setting: Setting, step: Step) -> AsyncIterator[list[LocalNode]]:
    """Nodes that all know each other and have settled."""
    with TemporaryDirectory(prefix="mycelia-bench-") as root:
        async with open_local_swarm(Path(root)) as swarm:
            step(f"starting {setting.num_nodes} nodes")
            with in_time(START_DEADLINE_S, "the swarm did not come up in time"):
                options = ["--model", FAKE_MODEL, "--cells", str(CELLS)]
                nodes = await swarm.start_many(setting.num_nodes, options)
            step("waiting until they are at rest")
            with in_time(SETTLE_DEADLINE_S, "the swarm did not come to rest"):
                for node in nodes if setting.settles else []:
                    await node.wait_event(lambda event: event.get("event") == "discovery_settled")
            yield nodes


class _Meter:
    """Reads the processor time of the nodes and of their engines."""

    def __init__(self, nodes: Sequence[LocalNode]) -> None:
        self._nodes = [psutil.Process(node.process.pid) for node in nodes]
        self._engines = [psutil.Process(_engine_pid(node)) for node in nodes]

    async def windows(self, count: int, seconds: float, step: Callable[[], None]) -> list[Shares]:
        """``count`` windows of ``seconds``, one after the other. A window in which the machine stood still is replaced.
        Raises LocalError when there were too many of these, or a process has ended."""
        shares: list[Shares] = []
        for _ in range(MAX_WINDOWS * count):
            step()
            began, before = trio.current_time(), self._read()
            await trio.sleep(seconds)
            after, took_s = self._read(), trio.current_time() - began
            if took_s > seconds + MAX_LATE_S:
                continue
            nodes, engines = (
                [(end_s - begin_s) / took_s for begin_s, end_s in zip(*pair, strict=True)]
                for pair in zip(before, after, strict=True)
            )
            shares.append(Shares(nodes, engines))
            if len(shares) == count:
                return shares
        raise LocalError("the machine stood still for seconds, again and again; is it suspended or short of memory?")

    def _read(self) -> tuple[list[float], list[float]]:
        """Processor seconds so far, of each node and of each engine."""
        try:
            return [_cpu_s(process) for process in self._nodes], [_cpu_s(process) for process in self._engines]
        except psutil.Error as exc:
            raise LocalError(f"a process of the swarm is gone: {exc}") from exc


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _engine_pid(node: LocalNode) -> int:
    return next(int(str(event["pid"])) for event in node.events if event.get("event") == "engine_ready")
