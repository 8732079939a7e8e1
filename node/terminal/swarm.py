"""``mycelia swarm``: real nodes on this machine, to try things or to develop them."""

from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import trio
from rich.console import Console
from rich.table import Table

from mycelia.node.local_swarm.distance import SwarmSettings, open_at_a_distance
from mycelia.node.local_swarm.processes import LocalNode, open_local_swarm
from mycelia.node.terminal.tables import short
from mycelia.proto.wire.errors import LocalError


async def run_swarm(count: int, rtt_s: float, options: tuple[str, ...], root: Path | None, console: Console) -> None:
    """Runs until cancelled. Raises LocalError when a node cannot start, or ends by itself.

    rtt_s: round trip between all nodes, made by a proxy in front of each; 0: none. root: where nodes and logs stay
    afterwards; None: a temporary folder.
    """
    async with AsyncExitStack() as stack:
        if root is None:
            root = Path(stack.enter_context(TemporaryDirectory(prefix="mycelia-swarm-", ignore_cleanup_errors=True)))
        try:
            await trio.Path(root).mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise LocalError(f"cannot make {root}: {exc.strerror}") from exc
        swarm = await stack.enter_async_context(open_local_swarm(root))
        console.print(f"starting {count} nodes ...")
        if rtt_s:
            nodes = await stack.enter_async_context(open_at_a_distance(swarm, SwarmSettings(count, rtt_s, options)))
        else:
            nodes = await swarm.start_many(count, options)
        await _show(nodes, rtt_s, console)
        async with trio.open_nursery() as nursery:
            for node in nodes:
                nursery.start_soon(_watch, node)


async def _show(nodes: list[LocalNode], rtt_s: float, console: Console) -> None:
    table = Table()
    for name in ("name", "node", "HTTP API"):
        table.add_column(name, no_wrap=True)
    table.add_column("log", overflow="fold")
    for node in nodes:
        info = await node.wait_ready()
        table.add_row(node.name, short(info.peer), f"{info.api_url}/v1", str(node.data_dir / "mycelia.node.log"))
    console.print(table)
    first = nodes[0].data_dir
    lines = [
        f"round trips of {1000 * rtt_s:g} ms" if rtt_s else "",
        f'ask:       mycelia ask --data-dir {first} --explain "Why is the sky blue?"',
        f"see peers: mycelia peers --data-dir {first}",
        "stop:      Ctrl-C",
    ]
    for line in filter(None, lines):
        console.print(line, soft_wrap=True)


async def _watch(node: LocalNode) -> None:
    """Raises LocalError when the node ends."""
    while True:
        await node.wait_next_event()
