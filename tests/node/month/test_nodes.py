"""Whole nodes through a month: the program's own start and end, rooms and files, over the in-memory network.

Each day has some minutes in which the nodes run, answer prompts and meet visitors that never return. Then all machines
sleep until the next day. One node is started anew each third day. The bounds of what is kept by number are small here,
so that the first days reach them: from then on nothing may grow.
"""

import gc
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

import pytest
import trio
import trio.testing

from mycelia.node import driver, run
from mycelia.node.app import Node
from mycelia.node.engine.fake.engine import FakeEngine
from mycelia.node.engine.fake.settings import FakeSettings
from mycelia.node.network.identity import Identity
from mycelia.node.network.memory import MemorySwarm
from mycelia.node.network.network import NetworkSettings
from mycelia.node.requests.drain import Drain
from mycelia.node.settings import NodeSettings
from mycelia.node.storage import known_peers, saving
from mycelia.node.telemetry import days, journal, requests, usage
from mycelia.proto.config import OverlayConfig, RoutingConfig, TrustConfig
from mycelia.proto.wire.messages import Answered
from tests import profiles
from tests.node.members import an_ask
from tests.node.threads import run_here

BEGAN = 1_700_000_000.0
DAY_S = 86_400.0
DAYS = 30
AWAKE_S = 3_600.0 if profiles.is_full() else 60.0
"""Time of each day in which the machines run."""
NUM_NODES = 3
NUM_VISITORS = 2
RESTARTS_EVERY = 3
SETTLED_DAY, MIDDLE_DAY = 9, 19
MAX_REQUESTS, MAX_KNOWN = 8, 6
CONFIG = replace(OverlayConfig(), routing=RoutingConfig(max_observed=6), trust=TrustConfig(max_tracked=6))
BUDGET_BYTES = 400_000
"""For all files of a node, whose journal may have twice ``JOURNAL_BYTES``."""
JOURNAL_BYTES = 8_192
SLACK = 12
"""Objects of one kind that may come and go between two looks."""
MAX_ENDED_DEADLINES, KINDS_OF_DEADLINES = 1_000, ("builtins.tuple", "trio.CancelScope")
"""trio keeps this many deadlines of scopes that have ended."""


class World:
    """Nodes on machines whose clocks are virtual."""

    def __init__(self, folder: Path, clock: trio.testing.MockClock, swarm: MemorySwarm, nursery: trio.Nursery) -> None:
        self.folder = folder
        self.slept_s = 0.0
        self._clock = clock
        self._swarm = swarm
        self._nursery = nursery
        self._numbers = count(1)
        self.nodes: dict[int, Node] = {}
        self._scopes: dict[int, trio.CancelScope] = {}
        self._ended: dict[int, trio.Event] = {}

    def wall(self) -> float:
        return BEGAN + self._clock.current_time() + self.slept_s

    async def start(self, number: int) -> None:
        self.nodes[number] = await self._nursery.start(self._host, number)

    async def stop(self, number: int) -> None:
        self._scopes[number].cancel()
        await self._ended[number].wait()

    async def _host(self, number: int, task_status: trio.TaskStatus[Node]) -> None:
        address = f"/ip4/203.0.113.{number}/tcp/7117"
        settings = NodeSettings(
            self.folder / f"node-{number}",
            "fake",
            (address,),
            (),
            (address,),
            b"",
            "",
            0,
            mdns=False,
            port_mapping=False,
        )
        self._ended[number] = trio.Event()
        try:
            with trio.CancelScope() as self._scopes[number]:
                await run.host_node(settings, _engine, Drain(), task_status=task_status)
        finally:
            self._ended[number].set()

    @asynccontextmanager
    async def visitor(self) -> AsyncIterator[Node]:
        """A node that nobody has met before."""
        number = next(self._numbers)
        identity = Identity(random.Random(f"visitor {number}").randbytes(32))
        settings = NetworkSettings(identity=identity, listen=(f"/ip4/198.51.{number}.1/tcp/7117",))
        async with self._swarm.open_network(settings) as network, trio.open_nursery() as nursery:
            node = Node(identity, FakeEngine(FakeSettings(cells=2_048)), network, int(1000 * self.wall()))
            await nursery.start(node.run)
            yield node
            nursery.cancel_scope.cancel()

    def bytes_of(self, number: int) -> int:
        return sum(file.stat().st_size for file in (self.folder / f"node-{number}").rglob("*") if file.is_file())

    def files_of(self, number: int) -> set[str]:
        return {
            str(file.relative_to(self.folder / f"node-{number}")) for file in self.folder.glob(f"node-{number}/**/*")
        }


@asynccontextmanager
async def _engine() -> AsyncIterator[FakeEngine]:
    yield FakeEngine(FakeSettings(cells=2_048))


@pytest.fixture
async def world(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[World]:
    async with MemorySwarm(random.Random(1)) as swarm, trio.open_nursery() as nursery:
        made = World(tmp_path, autojump_clock, swarm, nursery)
        monkeypatch.setattr(time, "time", made.wall)
        monkeypatch.setattr(driver, "slept_s", lambda: made.slept_s)
        monkeypatch.setattr(run, "open_network", swarm.open_network)
        monkeypatch.setattr(run, "parse_listen", lambda address: None)  # (no port of this machine)
        monkeypatch.setattr(run, "Node", partial(Node, config=CONFIG))
        for module in (saving, journal, days, usage):
            monkeypatch.setattr(module, "run_in_thread", run_here)
        monkeypatch.setattr(journal, "RequestLog", partial(requests.RequestLog, wall=made.wall))
        monkeypatch.setattr(days, "Days", partial(days.Days, wall=made.wall))
        monkeypatch.setattr(usage, "UsageMeter", partial(usage.UsageMeter, wall=made.wall))
        for module in (requests, journal):
            monkeypatch.setattr(module, "MAX_REQUESTS", MAX_REQUESTS)
        monkeypatch.setattr(journal, "MAX_FILE_BYTES", JOURNAL_BYTES)
        monkeypatch.setattr(known_peers, "MAX_KNOWN", MAX_KNOWN)
        yield made
        for number in made.nodes:
            await made.stop(number)
        nursery.cancel_scope.cancel()


async def answered(node: Node, text: str) -> Answered:
    with trio.fail_after(300):
        async with node.ask(an_ask(text)) as frames:
            *_, last = [frame async for frame in frames]
    assert isinstance(last, Answered), last
    return last


async def a_day(world: World, day: int) -> None:
    """Prompts at each node, in rounds; the beginning of all is that day's own, so that it has to be found anew."""
    beginning = f"It is day {day} of the month, and nobody knows how long it will last. " * 6
    async with AsyncExitStack() as stack:
        visitors = [await stack.enter_async_context(world.visitor()) for _ in range(NUM_VISITORS)]
        await trio.sleep(AWAKE_S / 4)
        await answered(visitors[0], f"{beginning}First.")
        await trio.sleep(AWAKE_S / 4)
        for number, node in world.nodes.items():
            last = await answered(node, f"{beginning}And you, {number}?")
            assert last.usage.cached_tokens > len(beginning) / 2, (
                f"day {day}: what the swarm has computed was not found"
            )
        await trio.sleep(AWAKE_S / 4)
    await trio.sleep(AWAKE_S / 4)


def kinds() -> Counter[str]:
    """The number of live objects of each kind."""
    gc.collect()
    return Counter(f"{type(one).__module__}.{type(one).__qualname__}" for one in gc.get_objects())


def slack(kind: str, num: int) -> float:
    """How many more of ``num`` objects of a kind are no growth."""
    return MAX_ENDED_DEADLINES if kind in KINDS_OF_DEADLINES else SLACK + num / 50


async def test_nothing_grows_and_prefixes_are_found_all_month(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    tasks, seen = [], {}
    for number in range(NUM_NODES):
        await world.start(number)
    for day in range(DAYS):
        if day % RESTARTS_EVERY == 1:
            await world.stop(0)
            await world.start(0)
        await a_day(world, day)
        assert all(len(node.state().peers) == NUM_NODES - 1 for node in world.nodes.values()), f"day {day}"
        tasks.append(trio.lowlevel.current_statistics().tasks_living)
        for number, node in world.nodes.items():
            node.overlay.check_invariants()
            assert len(node.recent_requests()) <= MAX_REQUESTS
            assert world.bytes_of(number) <= BUDGET_BYTES
        if day in (SETTLED_DAY, MIDDLE_DAY, DAYS - 1):
            seen[day] = kinds(), {number: world.files_of(number) for number in world.nodes}
        world.slept_s += DAY_S - AWAKE_S
    assert set(tasks[SETTLED_DAY:]) == {tasks[-1]}
    (_, files), (middle, _), (late, late_files) = seen.values()
    grown = {kind: num - middle[kind] for kind, num in late.items() if num - middle[kind] > slack(kind, middle[kind])}
    assert grown == {}
    assert late_files == files
    assert world.wall() - BEGAN > (DAYS - 1) * DAY_S
