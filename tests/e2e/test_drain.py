"""A node that has to leave finishes its answers; after a second signal, its answers continue at other nodes."""

import signal
import subprocess

import pytest
import trio

from mycelia.node.local_swarm.processes import COMMAND, LocalNode, LocalSwarm
from tests.e2e.conftest import DEADLINE_S, parse_answer, run_mycelia

pytestmark = pytest.mark.e2e

MAX_TOKENS = 200
PROMPT = "Tell a story about 24 ships."
"""The fake model's answer is longer, and takes seconds."""
FAKE = ["--model", "fake"]


async def started(entry: LocalNode, *options: str) -> trio.Process:
    return await trio.lowlevel.open_process(
        [
            *COMMAND,
            "ask",
            "--json",
            "--data-dir",
            str(entry.data_dir),
            "--max-tokens",
            str(MAX_TOKENS),
            *options,
            PROMPT,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


async def output(process: trio.Process, until: bytes = b"") -> str:
    """The process's output up to ``until``; by default all of it, after its end."""
    assert process.stdout is not None
    seen = b""
    while not until or until not in seen:
        chunk = bytes(await process.stdout.receive_some())
        if not chunk:
            await process.wait()
            await process.stdout.aclose()
            break
        seen += chunk
    return seen.decode()


async def test_a_node_that_leaves_finishes_its_answers_first(swarm: LocalSwarm) -> None:
    with trio.fail_after(DEADLINE_S):
        node = await swarm.start("alone", options=FAKE)
        await node.wait_ready()
        asking = await started(node)
        begun = await output(asking, b'"type":"text"')
        node.process.send_signal(signal.SIGTERM)
        await node.wait_event(lambda e: e.get("event") == "draining")
        refused = await run_mycelia("ask", "--data-dir", str(node.data_dir), "Hi")
        assert refused.returncode == 1 and "leaving, and no other is known: give --bootstrap" in refused.stderr
        answer = parse_answer(begun + await output(asking))
        assert answer.answered.completion_tokens == MAX_TOKENS
        assert await node.process.wait() == 0


async def test_told_twice_a_node_leaves_at_once_and_its_answers_go_on_elsewhere(swarm: LocalSwarm) -> None:
    with trio.fail_after(DEADLINE_S):
        leaver, other = [await swarm.start(name, options=FAKE) for name in ("leaver", "other")]
        await leaver.wait_ready()
        await other.wait_ready()
        asking = await started(leaver, "--bootstrap", await other.address())
        begun = await output(asking, b'"type":"text"')
        leaver.process.send_signal(signal.SIGTERM)
        await leaver.wait_event(lambda e: e.get("event") == "draining")
        leaver.process.send_signal(signal.SIGTERM)
        assert await leaver.process.wait() == 0
        answer = parse_answer(begun + await output(asking))
        assert answer.answered.completion_tokens == MAX_TOKENS and answer.answered.resumed == 1


async def test_who_asks_a_node_that_leaves_is_answered_by_another(swarm: LocalSwarm) -> None:
    with trio.fail_after(DEADLINE_S):
        leaver, other = [await swarm.start(name, options=FAKE) for name in ("leaver", "other")]
        await leaver.wait_ready()
        await other.wait_ready()
        asking = await started(leaver)
        await output(asking, b'"type":"text"')
        leaver.process.send_signal(signal.SIGTERM)
        await leaver.wait_event(lambda e: e.get("event") == "draining")
        meanwhile = await run_mycelia(
            "ask", "--data-dir", str(leaver.data_dir), "--max-tokens", "3", "--bootstrap", await other.address(), "Hi"
        )
        assert meanwhile.returncode == 0 and meanwhile.stdout, meanwhile.stderr
        await output(asking)


async def test_the_command_waits_until_the_node_has_left(swarm: LocalSwarm) -> None:
    with trio.fail_after(DEADLINE_S):
        node = await swarm.start("alone", options=FAKE)
        await node.wait_ready()
        done = await run_mycelia("leave", "--data-dir", str(node.data_dir))
        assert done.returncode == 0 and done.stdout == "the node has left\n"
        assert await node.process.wait() == 0
        again = await run_mycelia("leave", "--data-dir", str(node.data_dir))
        assert again.returncode == 1 and "no node is running" in again.stderr
