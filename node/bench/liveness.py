"""``mycelia bench liveness``: how soon the others know that a node is gone, silent, without an engine, or back.

Real nodes that serve the fake engine. What a node knows is what its ``/api/state`` lists, asked for every 10 ms: a peer
that is listed there may be chosen. Each time is that of the slowest of the others, and counted from the signal.
"""

import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import msgspec
import psutil
import trio

from node.bench.real_swarm import part
from node.bench.report import Progress, Report, report_of, row_of
from node.bench.trouble import PARTITION, Nodes, open_nodes
from node.engine.models import FAKE_MODEL
from node.views import NodeState, PeerRow
from proto.errors import LocalError

LOOK_EVERY_S = 0.01
GIVE_UP_S = 90.0

Sees = Callable[[PeerRow | None], bool]
"""Whether what a node lists of the struck one (None: nothing) is what is waited for."""


@dataclass(frozen=True)
class LivenessBench:
    """What is done."""

    num_nodes: int = 4
    runs: int = 5
    """Of everything."""


@dataclass
class _Times:
    killed_out_s: list[float] = field(default_factory=list)
    restarted_back_s: list[float] = field(default_factory=list)
    frozen_out_s: list[float] = field(default_factory=list)
    thawed_back_s: list[float] = field(default_factory=list)
    cut_off_out_s: list[float] = field(default_factory=list)
    healed_back_s: list[float] = field(default_factory=list)
    engine_lost_out_s: list[float] = field(default_factory=list)
    engine_back_s: list[float] = field(default_factory=list)


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
    """Measure. Raises LocalError when the nodes do not come up, or something takes GIVE_UP_S."""
    progress = Progress(1 + 4 * bench.runs)
    times = _Times()
    try:
        with TemporaryDirectory(prefix="mycelia-liveness-", ignore_cleanup_errors=True) as root:
            progress.step("nodes start")
            async with open_nodes(bench.num_nodes, ["--model", FAKE_MODEL], Path(root), {PARTITION}) as nodes:
                for number in range(bench.runs):
                    struck = number % bench.num_nodes
                    for name, strike in (
                        ("a node is killed", _kill),
                        ("one is frozen", _freeze),
                        ("one is cut off", _cut_off),
                        ("one loses its engine", _rob),
                    ):
                        progress.step(f"run {number + 1}: {name}")
                        await strike(nodes, struck, times)
    finally:
        progress.close()
    return report_of("liveness", [row_of(name, unit, getattr(times, name)) for name, unit in _UNITS.items()])


async def _kill(nodes: Nodes, struck: int, times: _Times) -> None:
    peer = await _peer(nodes, struck)
    began = trio.current_time()
    nodes.nodes[struck].kill()
    times.killed_out_s.append(await _until(nodes, struck, peer, lambda row: row is None) - began)
    await nodes.restart(struck)
    began = trio.current_time()
    times.restarted_back_s.append(await _until(nodes, struck, peer, _is_serving) - began)


async def _freeze(nodes: Nodes, struck: int, times: _Times) -> None:
    peer, process = await _peer(nodes, struck), nodes.nodes[struck].process
    began = trio.current_time()
    process.send_signal(signal.SIGSTOP)
    try:
        times.frozen_out_s.append(await _until(nodes, struck, peer, lambda row: row is None) - began)
    finally:
        process.send_signal(signal.SIGCONT)
    began = trio.current_time()
    times.thawed_back_s.append(await _until(nodes, struck, peer, _is_serving) - began)


async def _cut_off(nodes: Nodes, struck: int, times: _Times) -> None:
    peer = await _peer(nodes, struck)
    began = trio.current_time()
    part(nodes.nodes, nodes.proxies, [int(number == struck) for number in range(len(nodes.nodes))])
    times.cut_off_out_s.append(await _until(nodes, struck, peer, lambda row: row is None) - began)
    began = trio.current_time()
    for proxy in nodes.proxies:
        proxy.heal()
    times.healed_back_s.append(await _until(nodes, struck, peer, _is_serving) - began)


async def _rob(nodes: Nodes, struck: int, times: _Times) -> None:
    peer = await _peer(nodes, struck)
    began = trio.current_time()
    for child in psutil.Process(nodes.nodes[struck].process.pid).children():
        child.kill()
    lost = await _until(nodes, struck, peer, lambda row: row is not None and not row.slots)
    times.engine_lost_out_s.append(lost - began)
    times.engine_back_s.append(await _until(nodes, struck, peer, _is_serving) - lost)


def _is_serving(row: PeerRow | None) -> bool:
    return row is not None and row.slots > 0


async def _peer(nodes: Nodes, number: int) -> str:
    return (await nodes.nodes[number].wait_ready()).peer


async def _until(nodes: Nodes, struck: int, peer: str, sees: Sees) -> float:
    """When the last of the other nodes saw that. Raises LocalError when one of them does not in time."""
    others = [node for number, node in enumerate(nodes.nodes) if number != struck]
    seen_at = trio.current_time()

    async def watch(url: str) -> None:
        nonlocal seen_at
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=GIVE_UP_S) as http:
            while not sees(await _row(http, peer)):  # noqa: ASYNC110  (of another process)
                await trio.sleep(LOOK_EVERY_S)
        seen_at = max(seen_at, trio.current_time())

    with trio.move_on_after(GIVE_UP_S) as patience:
        async with trio.open_nursery() as nursery:
            for node in others:
                nursery.start_soon(watch, (await node.wait_ready()).api_url)
    if patience.cancelled_caught:
        raise LocalError(f"nodes did not agree on {peer} within {GIVE_UP_S:.0f} s")
    return seen_at


async def _row(http: httpx.AsyncClient, peer: str) -> PeerRow | None:
    state = msgspec.json.decode((await http.get("/api/state")).content, type=NodeState)
    return next((row for row in state.peers if row.peer == peer), None)
