"""A node as a child process, with a panel of its work on the terminal."""

import json
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import trio
from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from mycelia.node.client.local import fetch_requests, fetch_state, fetch_tree
from mycelia.node.local_swarm.processes import end
from mycelia.node.storage.rundir import RunInfo, find_running
from mycelia.node.terminal.state import panel
from mycelia.node.views.state import TreeRowView
from mycelia.proto.wire.errors import LocalError

REFRESH_S, TREE_REFRESH_S = 1.0, 4.0
_LOG_LINES = 6


class _Child:
    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.lines: deque[str] = deque(maxlen=_LOG_LINES)
        self.info: RunInfo | None = None
        """Set once the node serves."""
        self.tree: list[TreeRowView] = []
        self._tree_due_s = 0.0

    async def follow(self) -> None:
        """Reads the log to its end, which is the process's end too."""
        assert self.process.stderr is not None
        rest = b""
        async for chunk in self.process.stderr:
            *lines, rest = (rest + bytes(chunk)).split(b"\n")
            for line in lines:
                self._note(line.decode(errors="replace"))

    async def refresh_tree(self, info: RunInfo) -> None:
        """Limited in rate: the engine has to detokenize the texts. While a busy engine refuses, the last tree stays."""
        if trio.current_time() >= self._tree_due_s:
            self._tree_due_s = trio.current_time() + TREE_REFRESH_S
            with suppress(LocalError):
                self.tree = await fetch_tree(info)

    def _note(self, line: str) -> None:
        try:
            event = json.loads(line)
        except ValueError:
            self.lines.append(line)
            return
        if event.get("event") == "ready":
            self.info = find_running(Path(event["data_dir"]))  # (the run file has the node's key, if it needs one)
        if event.get("event", "").startswith("request_"):
            return  # (the panel has a table of them)
        fields = [f"{name}={value}" for name, value in event.items() if name not in ("event", "level", "timestamp")]
        self.lines.append(" ".join([str(event.get("timestamp", ""))[11:19], str(event.get("event")), *fields]))


async def watch_node(command: Sequence[str]) -> None:
    """Runs until cancelled, which stops the node, or until the node has left. command: the arguments of ``mycelia``
    that run it. Raises LocalError when the node fails."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-P", "-m", "mycelia.node", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,  # (Ctrl-C ends this program, which then stops the node)
    )
    child = _Child(process)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_draw, child)
            await child.follow()
            code = await process.wait()
            nursery.cancel_scope.cancel()
        if code:
            raise LocalError(_last_words(child, code))
        print("the node has left")  # noqa: T201  (after 'mycelia leave')
    finally:
        await end(process)


async def _draw(child: _Child) -> None:
    console = Console(highlight=False, markup=False, emoji=False)
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(await _view(child, console.width), refresh=True)
            await trio.sleep(REFRESH_S)


async def _view(child: _Child, width: int) -> RenderableType:
    if child.info is None:
        return Text("\n".join(["starting ...", *child.lines]))
    try:
        state, rows = await fetch_state(child.info), await fetch_requests(child.info)
    except LocalError as exc:
        return Text(str(exc))
    await child.refresh_tree(child.info)
    return panel(state, rows, child.tree, list(child.lines), child.info.api_url, width)


def _last_words(child: _Child, code: int) -> str:
    said = child.lines[-1].removeprefix("mycelia: ") if child.lines else "its log is empty"
    return f"the node ended with exit code {code}: {said}"
