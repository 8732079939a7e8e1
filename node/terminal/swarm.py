"""``mycelia swarm``: real nodes on this machine, to try things or to develop them."""

import shlex
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import trio
from rich.console import Console
from rich.table import Table

from mycelia.node.local_swarm.distance import SwarmSettings, open_at_a_distance
from mycelia.node.local_swarm.processes import LocalNode, LocalSwarm, open_local_swarm
from mycelia.node.terminal.tables import short
from mycelia.proto.wire.errors import LocalError

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
"""Pause before an ended node is started again; it doubles each time until a node has run for STEADY_S."""
STEADY_S = 60.0
EXAMPLE_FILE = "example.txt"
_EXAMPLE = """\
You help the keeper of a small lending library of tools. Members borrow drills, ladders, saws and sewing machines, and
bring them back when they are done. These are the rules of the house. A tool may stay with a member for two weeks, and
for one week longer if nobody else has asked for it. Whoever brings a tool back late lends a hand on the next repair
evening. A broken tool is no disgrace: say what happened, and it goes on the bench by the window. Ladders are carried by
two people. Nothing with a blade goes to a member below sixteen years. A tool that was not asked for in a whole year is
given away at the spring fair, and the money buys what members asked for in vain. The library is open on Tuesday and
Thursday evening and on Saturday morning, and there is always tea. On the shelf by the door is a book in which everybody
writes what was borrowed and when, in ink. Today is Saturday. A member comes in with a sewing machine that is five days
late and does not stitch any more. Her neighbour has been waiting for it since Tuesday. She would also like to borrow
the long ladder, and she came alone. Answer her kindly and by the rules, in three sentences.
"""
"""Long enough that a node would rather send it to a node that has computed it than compute it again."""


async def run_swarm(
    count: int, rtt_s: float, options: tuple[str, ...], root: Path | None, console: Console, restarts: bool = False
) -> None:
    """Runs until cancelled. Raises LocalError when a node cannot start, or when all have ended.

    rtt_s: round trip between all nodes, made by a proxy in front of each; 0: none. root: where nodes and logs stay
    afterwards; None: a temporary folder. restarts: whether nodes that end are started again.
    """
    async with AsyncExitStack() as stack:
        if root is None:
            root = Path(stack.enter_context(TemporaryDirectory(prefix="mycelia-swarm-", ignore_cleanup_errors=True)))
        try:
            await trio.Path(root).mkdir(parents=True, exist_ok=True)
            await trio.Path(root / EXAMPLE_FILE).write_text(_EXAMPLE)
        except OSError as exc:
            raise LocalError(f"cannot write to {root}: {exc.strerror}") from exc
        swarm = await stack.enter_async_context(open_local_swarm(root))
        console.print(f"starting {count} nodes ...")
        if rtt_s:
            nodes = await stack.enter_async_context(open_at_a_distance(swarm, SwarmSettings(count, rtt_s, options)))
        else:
            nodes = await swarm.start_many(count, options)
        await _show(nodes, rtt_s, console)
        await _Keeper(swarm, console, restarts).run(nodes)


async def _show(nodes: list[LocalNode], rtt_s: float, console: Console) -> None:
    table = Table()
    for name in ("name", "node", "page"):
        table.add_column(name, no_wrap=True)
    table.add_column("log", overflow="fold")
    infos = [await node.wait_ready() for node in nodes]
    for node, info in zip(nodes, infos, strict=True):
        table.add_row(node.name, short(info.peer), f"{info.api_url}/", str(node.data_dir / "mycelia.node.log"))
    console.print(table)
    first, last = (shlex.quote(str(node.data_dir)) for node in (nodes[0], nodes[-1]))
    example = shlex.quote(str(nodes[0].data_dir.parent / EXAMPLE_FILE))
    ask = f"--cache-salt public --explain - < {example}"
    lines = [
        f"round trips of {1000 * rtt_s:g} ms" if rtt_s else "",
        f"page:      {infos[0].api_url}/",
        f"HTTP API:  {infos[0].api_url}/v1",
        f"ask:       mycelia ask --data-dir {first} {ask}",
        f"again:     mycelia ask --data-dir {last} {ask}",
        "           (a few seconds later: most of the prompt's tokens are cached, whichever node answers)",
        f"see peers: mycelia peers --data-dir {first}",
        "stop:      Ctrl-C",
    ]
    for line in filter(None, lines):
        console.print(line, soft_wrap=True)


class _Keeper:
    """Reports each node that ends, and starts it again if that is wanted."""

    def __init__(self, swarm: LocalSwarm, console: Console, restarts: bool) -> None:
        self._swarm = swarm
        self._console = console
        self._restarts = restarts
        self._running: dict[str, LocalNode] = {}
        """Name -> node, of those that are ready."""

    async def run(self, nodes: list[LocalNode]) -> None:
        """Runs until cancelled. nodes: all are ready. Raises LocalError when no node is left."""
        self._running = {node.name: node for node in nodes}
        async with trio.open_nursery() as nursery:
            for node in nodes:
                nursery.start_soon(self._keep, node)
        raise LocalError("all nodes have ended; start the swarm again, with --restart to let it replace them")

    async def _keep(self, node: LocalNode) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            began = trio.current_time()
            how = await node.wait_ended()
            self._running.pop(node.name, None)
            if trio.current_time() - began > STEADY_S:
                pause_s = FIRST_PAUSE_S
            left = f"{len(self._running)} of {len(self._swarm.nodes)} nodes run"
            self._say(f"{node.name} {how}; {left}" + (f"; it starts again in {pause_s:g} s" if self._restarts else ""))
            if not self._restarts:
                return
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            bootstrap = [await other.address() for other in self._running.values()]
            node = await self._swarm.start_again(node, bootstrap)
            with suppress(LocalError):  # (it may end before it is ready)
                await node.wait_ready()
                self._running[node.name] = node
                self._say(f"{node.name} runs again")

    def _say(self, line: str) -> None:
        self._console.print(line, soft_wrap=True)
