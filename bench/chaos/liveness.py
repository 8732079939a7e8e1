"""``mycelia bench liveness``: how soon the other nodes know that a node is gone, silent, without an engine, or back.

Real nodes serve the fake engine. The knowledge of a node is the list in its ``/api/state``, read every 10 ms: a listed
peer may be chosen. Each time is that of the slowest of the other nodes, counted from the signal.
"""

import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import msgspec
import psutil
import trio

from mycelia.bench.chaos.faults import Nodes, open_nodes
from mycelia.bench.plans import PARTITION, LivenessBench
from mycelia.bench.report.report import Progress, Report, report_of, row_of
from mycelia.node.engine.models import FAKE_MODEL
from mycelia.node.local_swarm.distance import part
from mycelia.node.views.state import NodeState, PeerRow
from mycelia.proto.wire.errors import LocalError

LOOK_EVERY_S = 0.01
GIVE_UP_S = 90.0

Sees = Callable[[PeerRow | None], bool]
"""Whether a node's row for the node at fault (None: no row) shows the awaited state."""


_UNITS = {
    "killed_out_s": "s from SIGKILL until no other node lists it",
    "restarted_back_s": "s from the end of its start until all others list it",
    "frozen_out_s": "s from SIGSTOP until no other node lists it",
    "thawed_back_s": "s from SIGCONT until all others list it, under its old identity",
    "cut_off_out_s": "s from when nothing passes any more until no other node lists it",
    "healed_back_s": "s from when all passes again until all others list it",
    "engine_lost_out_s": "s from SIGKILL of its engine until all others know that it has none",
    "engine_back_s": "s from then until all others know that it has one again",
}


async def bench_liveness(bench: LivenessBench) -> Report:
    """Run the benchmark. Raises LocalError when the nodes do not start, or something takes GIVE_UP_S."""
    times: dict[str, list[float]] = {name: [] for name in _UNITS}
    with (
        Progress(1 + 4 * bench.runs) as progress,
        TemporaryDirectory(prefix="mycelia-liveness-", ignore_cleanup_errors=True) as root,
    ):
        progress.step("nodes start")
        async with open_nodes(bench.num_nodes, ["--model", FAKE_MODEL], Path(root), {PARTITION}) as nodes:
            for number in range(bench.runs):
                struck = number % bench.num_nodes
                for what, strike in (
                    ("a node is killed", _kill),
                    ("one is frozen", _freeze),
                    ("one is cut off", _cut_off),
                    ("one loses its engine", _rob),
                ):
                    progress.step(f"run {number + 1}: {what}")
                    async with _open_watch(nodes, struck) as watch:
                        await strike(nodes, struck, watch, times)
    return report_of("liveness", [row_of(name, unit, times[name]) for name, unit in _UNITS.items()])


class _Watch:
    """The other nodes' rows for the node at fault. Their connections are opened before the fault, because opening one
    takes longer than the measured time."""

    def __init__(self, peer: str, clients: Sequence[httpx.AsyncClient]) -> None:
        self._peer = peer
        self._clients = clients

    async def since(self, began: float, sees: Sees) -> float:
        """Seconds until all of the nodes saw it. Raises LocalError when one does not in time."""
        seen_at = began

        async def watch(http: httpx.AsyncClient) -> None:
            nonlocal seen_at
            while not sees(await self.row(http)):  # noqa: ASYNC110  (of another process)
                await trio.sleep(LOOK_EVERY_S)
            seen_at = max(seen_at, trio.current_time())

        with trio.move_on_after(GIVE_UP_S) as patience:
            async with trio.open_nursery() as nursery:
                for http in self._clients:
                    nursery.start_soon(watch, http)
        if patience.cancelled_caught:
            raise LocalError(f"nodes did not agree on {self._peer} within {GIVE_UP_S:.0f} s")
        return seen_at - began

    async def row(self, http: httpx.AsyncClient) -> PeerRow | None:
        """Raises LocalError when the node does not answer."""
        try:
            state = msgspec.json.decode((await http.get("/api/state")).content, type=NodeState)
        except (httpx.HTTPError, msgspec.DecodeError) as exc:
            raise LocalError(f"a node to which nothing was done does not answer: {exc}") from exc
        return next((row for row in state.peers if row.peer == self._peer), None)


@asynccontextmanager
async def _open_watch(nodes: Nodes, struck: int) -> AsyncIterator[_Watch]:
    async with AsyncExitStack() as stack:
        clients = []
        for node in nodes.nodes:
            url = (await node.wait_ready()).api_url
            clients.append(httpx.AsyncClient(base_url=url, trust_env=False, timeout=GIVE_UP_S))
            await stack.enter_async_context(clients[-1])
        del clients[struck]
        watch = _Watch((await nodes.nodes[struck].wait_ready()).peer, clients)
        for http in clients:
            await watch.row(http)
        yield watch


async def _kill(nodes: Nodes, struck: int, watch: _Watch, times: dict[str, list[float]]) -> None:
    began = trio.current_time()
    nodes.nodes[struck].kill()
    times["killed_out_s"].append(await watch.since(began, _is_out))
    await nodes.restart(struck)
    times["restarted_back_s"].append(await watch.since(trio.current_time(), _is_serving))


async def _freeze(nodes: Nodes, struck: int, watch: _Watch, times: dict[str, list[float]]) -> None:
    process, began = nodes.nodes[struck].process, trio.current_time()
    process.send_signal(signal.SIGSTOP)
    try:
        times["frozen_out_s"].append(await watch.since(began, _is_out))
    finally:
        process.send_signal(signal.SIGCONT)
    times["thawed_back_s"].append(await watch.since(trio.current_time(), _is_serving))


async def _cut_off(nodes: Nodes, struck: int, watch: _Watch, times: dict[str, list[float]]) -> None:
    began = trio.current_time()
    part(nodes.nodes, nodes.proxies, [int(number == struck) for number in range(len(nodes.nodes))])
    times["cut_off_out_s"].append(await watch.since(began, _is_out))
    began = trio.current_time()
    for proxy in nodes.proxies:
        proxy.heal()
    times["healed_back_s"].append(await watch.since(began, _is_serving))


async def _rob(nodes: Nodes, struck: int, watch: _Watch, times: dict[str, list[float]]) -> None:
    engines = psutil.Process(nodes.nodes[struck].process.pid).children()
    began = trio.current_time()
    for engine in engines:
        engine.kill()
    lost_s = await watch.since(began, lambda row: row is not None and not row.slots)
    times["engine_lost_out_s"].append(lost_s)
    times["engine_back_s"].append(await watch.since(began + lost_s, _is_serving))


def _is_out(row: PeerRow | None) -> bool:
    return row is None


def _is_serving(row: PeerRow | None) -> bool:
    return row is not None and row.slots > 0
