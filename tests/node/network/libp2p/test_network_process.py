"""Tests with a second process: one that is stopped, one that is killed, and the way that one ends."""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from mycelia.node.network.libp2p.network import open_network
from mycelia.node.network.network import Connected, Disconnected
from tests.node.network.libp2p.network_helpers import NAMESPACE, PATIENCE_S, following, node

SCRIPT = Path(__file__).with_name("network_process.py")
ROOT = SCRIPT.parents[4]


@asynccontextmanager
async def running(*bootstrap: str) -> AsyncIterator[trio.Process]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = await trio.lowlevel.open_process(
        [sys.executable, str(SCRIPT), *bootstrap],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        for pipe in (process.stdout, process.stderr):
            assert pipe is not None
            await pipe.aclose()


async def read_line(process: trio.Process) -> str:
    assert process.stdout is not None
    line = b""
    with trio.fail_after(PATIENCE_S):
        while not line.endswith(b"\n"):
            byte = await process.stdout.receive_some(1)
            assert byte, "the process ended"
            line += byte
    return line.decode().strip()


@pytest.mark.parametrize("signal_number", [signal.SIGSTOP, signal.SIGKILL])
async def test_a_process_that_falls_silent_is_lost(signal_number: int) -> None:
    async with open_network(node()) as network, following(network) as log, running(network.addresses()[0]) as process:
        await log.has(Connected)
        process.send_signal(signal_number)
        await log.has(Disconnected)


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_the_process_without_a_word(signal_number: int) -> None:
    async with open_network(node()) as network, following(network) as log, running(network.addresses()[0]) as process:
        await network.join(NAMESPACE)
        await read_line(process)
        assert await read_line(process) == "Connected"
        process.send_signal(signal_number)
        with trio.fail_after(PATIENCE_S):
            assert await process.wait() == 0
            assert process.stderr is not None
            assert await process.stderr.receive_some() == b""
        await log.has(Disconnected)


async def test_libp2p_is_imported_only_when_a_network_is_opened() -> None:
    """The import takes a second, and most commands need no network of their own."""
    modules = "mycelia.node.network.libp2p.network, mycelia.node.network.memory, mycelia.node.network.identity"
    code = f"import sys, {modules}; sys.exit('libp2p' in sys.modules)"
    with trio.fail_after(PATIENCE_S):
        await trio.run_process([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)})
