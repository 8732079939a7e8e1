"""A node with a panel on a terminal."""

import fcntl
import os
import signal
import struct
import subprocess
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from mycelia.node.local_swarm.processes import COMMAND
from mycelia.node.storage.rundir import find_running
from tests.e2e.conftest import DEADLINE_S, run_mycelia, wait_gone

pytestmark = pytest.mark.e2e


class Terminal:
    """A terminal of 140 columns with a program on it."""

    def __init__(self, master: int, process: trio.Process) -> None:
        self.process = process
        self._master = master
        self._unseen = ""

    async def seen(self, what: str) -> None:
        """Waits for ``what`` after what was waited for before."""
        try:
            with trio.fail_after(DEADLINE_S):
                while what not in self._unseen:
                    self._unseen += await self._read()
        except (OSError, trio.TooSlowError) as exc:
            raise AssertionError(f"not on the terminal: {what!r}; there is:\n{self._unseen}") from exc
        self._unseen = self._unseen.partition(what)[2]

    async def read_on(self) -> None:
        """Reads until the program ends, which otherwise would wait at a full terminal."""
        try:
            while True:
                await self._read()
        except OSError:
            return

    async def _read(self) -> str:
        """Raises OSError when no process has the terminal any more."""
        await trio.lowlevel.wait_readable(self._master)
        return os.read(self._master, 65_536).decode(errors="replace")


@asynccontextmanager
async def up_on_terminal(*options: str, stderr: int | None = None) -> AsyncIterator[Terminal]:
    """``mycelia up`` on a terminal. It is killed at the end if it still runs, and its node then ends, too."""
    master, slave = os.openpty()
    try:
        try:
            fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 140, 0, 0))
            process = await trio.lowlevel.open_process(
                [*COMMAND, "up", *options],
                stdin=slave,
                stdout=slave,
                stderr=slave if stderr is None else stderr,
                env=os.environ | {"TERM": "xterm"},
            )
        finally:
            os.close(slave)
        try:
            yield Terminal(master, process)
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
    finally:
        os.close(master)


async def test_up_shows_what_the_node_does_and_takes_it_along(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("0123456789abcdef0123\n")
    options = ["--model", "fake", "--data-dir", str(tmp_path), "--listen", "/ip4/127.0.0.1/tcp/0", "--api-port", "0"]
    options += ["--api-key-file", str(keys)]  # (the panel reads pages that need a key)
    with trio.fail_after(2 * DEADLINE_S):
        async with up_on_terminal(*options) as terminal:
            await terminal.seen("Ctrl-C stops the node")
            await terminal.seen("no peers yet")
            node = find_running(tmp_path)
            assert node is not None
            assert (await run_mycelia("ask", "--data-dir", str(tmp_path), "--max-tokens", "4", "hello")).returncode == 0
            await terminal.seen("answered")
            await terminal.seen("cached sequences")
            terminal.process.send_signal(signal.SIGINT)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(terminal.read_on)
                assert await terminal.process.wait() == 130
            await wait_gone(node.pid)


async def test_up_tells_why_its_node_ended(tmp_path: Path) -> None:
    options = ["--model", "nonsense", "--data-dir", str(tmp_path)]
    with trio.fail_after(DEADLINE_S):
        async with up_on_terminal(*options, stderr=subprocess.PIPE) as terminal, trio.open_nursery() as nursery:
            nursery.start_soon(terminal.read_on)
            assert terminal.process.stderr is not None
            said = b""
            async for chunk in terminal.process.stderr:
                said += bytes(chunk)
            assert await terminal.process.wait() == 1 and b"unknown model 'nonsense'" in said


async def test_without_a_terminal_up_is_a_node_with_log_lines(tmp_path: Path) -> None:
    options = ["--model", "fake", "--data-dir", str(tmp_path), "--listen", "/ip4/127.0.0.1/tcp/0", "--api-port", "0"]
    with trio.fail_after(DEADLINE_S):
        process = await trio.lowlevel.open_process(
            [*COMMAND, "up", *options], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        assert process.stderr is not None
        said = b""
        while b'"event": "ready"' not in said:
            piece = await process.stderr.receive_some()
            assert piece, said
            said += bytes(piece)
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 0
