"""A node with a panel on a terminal."""

import fcntl
import os
import signal
import struct
import subprocess
import termios
from pathlib import Path

import pytest
import trio

from mycelia.node.local_swarm.processes import COMMAND
from mycelia.node.storage.rundir import find_running
from tests.e2e.conftest import DEADLINE_S, run_mycelia, wait_gone

pytestmark = pytest.mark.e2e


async def seen_until(master: int, what: str, seen: str = "") -> str:
    """The terminal's content up to and including ``what``."""
    while what not in seen:
        seen += (await trio.to_thread.run_sync(os.read, master, 65_536, abandon_on_cancel=True)).decode(
            errors="replace"
        )
    return seen


async def test_up_shows_what_the_node_does_and_takes_it_along(tmp_path: Path) -> None:
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 140, 0, 0))
    keys = tmp_path / "keys"
    keys.write_text("0123456789abcdef0123\n")
    options = ["--model", "fake", "--data-dir", str(tmp_path), "--listen", "/ip4/127.0.0.1/tcp/0", "--api-port", "0"]
    options += ["--api-key-file", str(keys)]  # (the panel reads pages that need a key)
    with trio.fail_after(DEADLINE_S):
        process = await trio.lowlevel.open_process(
            [*COMMAND, "up", *options], stdin=slave, stdout=slave, stderr=slave, env=os.environ | {"TERM": "xterm"}
        )
        seen = await seen_until(master, "Ctrl-C stops the node")
        await seen_until(master, "no peers yet", seen)
        node = find_running(tmp_path)
        assert node is not None
        assert (await run_mycelia("ask", "--data-dir", str(tmp_path), "--max-tokens", "4", "hello")).returncode == 0
        await seen_until(master, "cached sequences", await seen_until(master, "answered"))
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130
        await wait_gone(node.pid)
    os.close(master)
    os.close(slave)


async def test_up_tells_why_its_node_ended(tmp_path: Path) -> None:
    master, slave = os.openpty()
    with trio.fail_after(DEADLINE_S):
        process = await trio.lowlevel.open_process(
            [*COMMAND, "up", "--model", "nonsense", "--data-dir", str(tmp_path)],
            stdin=slave,
            stdout=slave,
            stderr=subprocess.PIPE,
        )
        assert process.stderr is not None
        said = b""
        async for chunk in process.stderr:
            said += bytes(chunk)
        assert await process.wait() == 1 and b"unknown model 'nonsense'" in said
    os.close(master)
    os.close(slave)


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
