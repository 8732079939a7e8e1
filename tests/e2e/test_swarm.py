"""A real swarm answers prompts, finds shared prefixes, survives kills and leaves nothing behind."""

import os
import signal
import subprocess
from pathlib import Path

import msgspec
import pytest
import trio

from mycelia.node.client.local import fetch_state, fetch_tree
from mycelia.node.doctor.machine import Report
from mycelia.node.local_swarm.processes import COMMAND, LocalNode, LocalSwarm
from mycelia.node.storage.rundir import find_running
from mycelia.node.terminal.swarm import EXAMPLE_FILE
from mycelia.proto.wire.blocks import STRIDE
from tests.e2e.conftest import (
    DEADLINE_S,
    Answer,
    ask,
    becomes_idle,
    parse_answer,
    peers_of,
    process_ids,
    run_mycelia,
    wait_gone,
)

pytestmark = pytest.mark.e2e

PREFIX = (
    "You are a careful editor. You read a sentence and answer with one word that names its tone. "
    "Sentence: What a glorious morning, the birds sing and the kettle is on. Tone: happy. "
    "Sentence: Nobody came to the party, and the candles burned down alone. Tone: sad. "
    "Sentence: If you touch my bicycle once more, I shall call your mother. Tone: angry. "
    "Sentence: The committee notes the report and adjourns until Thursday. Tone: neutral. "
) * 4
"""Seconds of work: so much is worth more than how late a node of a busy machine is."""
ONE_THREAD = ["--threads", "1", "--debug"]


async def learned_of(node: LocalNode, owner: str) -> None:
    """Waits until ``node`` holds a digest of ``owner`` that is not empty."""
    await node.wait_event(
        lambda e: e.get("event") == "digest_applied" and e.get("peer") == owner and e.get("blocks") != 0
    )


async def test_a_swarm_answers_where_the_prefix_is_and_survives_a_kill(swarm: LocalSwarm, tmp_path: Path) -> None:
    """One swarm for all steps, because starting three real nodes takes most of the time."""
    with trio.fail_after(3 * DEADLINE_S):
        nodes = await swarm.start_many(3, options=ONE_THREAD)
        first = nodes[0]
        infos = {node.name: await node.wait_ready() for node in nodes}
        for node in nodes:  # nodes 2 and 3 found each other through the first one's Kademlia
            assert {row.peer for row in await peers_of(node)} == {i.peer for i in infos.values()} - {
                infos[node.name].peer
            }

        cold = await ask(first, PREFIX + "Sentence: I lost my keys. Tone:", "--max-tokens", "4")
        assert cold.answered.cached_tokens < STRIDE
        assert cold.answered.completion_tokens >= 1 and cold.text
        holder = next(node for node in nodes if infos[node.name].peer == cold.answered.served_by)
        others = [node for node in nodes if node is not holder]
        for other in others:
            await learned_of(other, infos[holder.name].peer)

        warm = await ask(others[0], PREFIX + "Sentence: We won the cup! Tone:", "--max-tokens", "4")
        assert warm.answered.served_by == infos[holder.name].peer
        assert warm.answered.cached_tokens >= STRIDE
        assert "tokens cached" in warm.route.reason
        matched = {candidate.peer: candidate.matched_tokens for candidate in warm.route.candidates}
        assert matched[infos[holder.name].peer] >= STRIDE and len(matched) == 3

        rows = await fetch_tree(infos[holder.name])
        assert any(row.tokens >= STRIDE and row.text.startswith("<|im_start|>system") for row in rows)

        await check_light_client(await holder.address(), tmp_path)
        await check_cancel(others[0], infos[holder.name], nodes)

        holder.kill()
        for other in others:
            await other.wait_event(lambda e: e.get("event") == "node_left" and e["peer"] == infos[holder.name].peer)
            assert infos[holder.name].peer not in {row.peer for row in await peers_of(other)}
        again = await ask(others[1], PREFIX + "Sentence: It rains. Tone:", "--max-tokens", "4")
        assert again.answered.served_by != infos[holder.name].peer

        for node in others:
            node.process.send_signal(signal.SIGINT)
            assert await node.process.wait() == 0
        for pid in process_ids(nodes):  # engines too, also that of the killed node
            await wait_gone(pid)
        assert not (others[0].data_dir / "node.json").exists()


async def check_light_client(address: str, tmp_path: Path) -> None:
    """Without a node of its own, ``ask`` joins through a bootstrap address."""
    empty = tmp_path / "light"
    done = await run_mycelia(
        "ask", "--json", "--data-dir", str(empty), "--bootstrap", address, "--max-tokens", "3", "Say hello."
    )
    assert done.returncode == 0, done.stderr
    assert isinstance(parse_answer(done.stdout), Answer)


async def check_cancel(entry: LocalNode, serving: object, nodes: list[LocalNode]) -> None:
    """Ctrl-C of ``ask`` ends the request at the node that serves it."""
    process = await trio.lowlevel.open_process(
        [*COMMAND, "ask", "--json", "--data-dir", str(entry.data_dir), "--max-tokens", "1500", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    async with process.stdin:
        await process.stdin.send_all((PREFIX + "Now write a very long story about a ship.").encode())
    seen = b""
    while b'"type":"text"' not in seen:
        chunk = await process.stdout.receive_some()
        assert chunk, (await process.stderr.receive_some()).decode()
        seen += bytes(chunk)
    process.send_signal(signal.SIGINT)
    assert await process.wait() == 130
    assert b"Traceback" not in bytes(await process.stderr.receive_some())
    for node in nodes:
        await becomes_idle(node)


async def test_a_killed_nodes_engine_dies_with_it(swarm: LocalSwarm, tmp_path: Path) -> None:
    with trio.fail_after(DEADLINE_S):
        node = await swarm.start("lonely", options=ONE_THREAD)
        await node.wait_ready()
        engine = int(str((await node.wait_event(lambda e: e.get("event") == "engine_ready"))["pid"]))
        node.kill()
        await node.process.wait()
        await wait_gone(engine)


@pytest.mark.parametrize("delay", ["0", "30"])
async def test_a_swarm_with_one_command_ends_with_it(tmp_path: Path, delay: str) -> None:
    options = ["--model", "fake", "--delay-ms", delay, "--dir", str(tmp_path / "all")]
    with trio.fail_after(DEADLINE_S):
        process = await trio.lowlevel.open_process([*COMMAND, "swarm", "2", *options], stdout=subprocess.PIPE)
        assert process.stdout is not None
        seen = await until(process.stdout, "stop:")
        assert "node-2" in seen and ("30 ms" in seen) == (delay == "30")
        infos = [find_running(tmp_path / "all" / f"node-{number}") for number in (1, 2)]
        assert all(info is not None for info in infos)
        done = await run_mycelia("ask", "--data-dir", str(tmp_path / "all" / "node-1"), "--max-tokens", "4", "hello")
        assert done.returncode == 0, done.stderr
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130
        for info in infos:
            assert info is not None
            await wait_gone(info.pid)
    assert (tmp_path / "all" / "node-2" / "mycelia.node.log").read_text()


async def test_a_swarm_with_one_command_outlives_its_nodes(tmp_path: Path) -> None:
    """One swarm for all steps. Its example is long enough that the second node to get it finds it cached."""
    options = ["--model", "fake", "--restart", "--dir", str(tmp_path)]
    with trio.fail_after(DEADLINE_S):
        process = await trio.lowlevel.open_process([*COMMAND, "swarm", "2", *options], stdout=subprocess.PIPE)
        assert process.stdout is not None
        printed = await until(process.stdout, "stop:")
        one, two = (find_running(tmp_path / name) for name in ("node-1", "node-2"))
        assert one is not None and two is not None
        assert f"page:      {one.api_url}/" in printed

        prompt = (tmp_path / EXAMPLE_FILE).read_bytes()
        example = ["ask", "--json", "--cache-salt", "public", "--max-tokens", "4", "-"]
        cold = parse_answer((await run_mycelia(*example, "--data-dir", str(tmp_path / "node-1"), stdin=prompt)).stdout)
        assert cold.answered.cached_tokens == 0
        holder, other = (one, "node-2") if cold.answered.served_by == one.peer else (two, "node-1")
        info = find_running(tmp_path / other)
        assert info is not None
        while not any(row.peer == holder.peer and row.digest_blocks for row in (await fetch_state(info)).peers):
            pass  # (each look is an HTTP request)
        warm = parse_answer((await run_mycelia(*example, "--data-dir", str(tmp_path / other), stdin=prompt)).stdout)
        assert warm.answered.served_by == holder.peer
        assert warm.answered.cached_tokens > 0.9 * warm.answered.prompt_tokens

        os.kill(two.pid, signal.SIGKILL)
        printed = await until(process.stdout, "node-2 runs again")
        assert "node-2 was killed by SIGKILL; 1 of 2 nodes run; it starts again in 1 s\n" in printed
        again = find_running(tmp_path / "node-2")
        assert again is not None and again.pid != two.pid
        assert (again.api_url, again.peer) == (two.api_url, two.peer)

        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130
        for pid in (one.pid, again.pid):
            await wait_gone(pid)


async def test_a_swarm_without_nodes_ends(tmp_path: Path) -> None:
    with trio.fail_after(DEADLINE_S):
        process = await trio.lowlevel.open_process(
            [*COMMAND, "swarm", "2", "--model", "fake", "--dir", str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None and process.stderr is not None
        await until(process.stdout, "stop:")
        infos = [find_running(tmp_path / name) for name in ("node-1", "node-2")]
        for info in infos:
            assert info is not None
            os.kill(info.pid, signal.SIGKILL)
        assert await process.wait() == 1
        assert "all nodes have ended" in await until(process.stderr, "\n")


async def until(stream: trio.abc.ReceiveStream, wanted: str) -> str:
    """What comes from ``stream``, up to the first piece after which ``wanted`` has come."""
    seen = ""
    while wanted not in seen:
        piece = await stream.receive_some()
        assert piece, f"the end, after {seen}"
        seen += bytes(piece).decode()
    return seen


async def test_the_doctor_asks_peers_how_they_see_this_machine(swarm: LocalSwarm) -> None:
    with trio.fail_after(DEADLINE_S):
        one, two = await swarm.start_many(2, ["--model", "fake"])
        one_at, two_at = await one.address(), await two.address()
        here = ("--model", "smollm2", "--json", "--data-dir", str(two.data_dir))
        well = msgspec.json.decode((await run_mycelia("doctor", *here, "--bootstrap", one_at)).stdout, type=Report)
        assert well.ok, well.problems
        found = {line.what: line for line in well.outlook}
        of_this_machine = {"local network", "port mapping"}
        assert found.keys() - of_this_machine == {"node", "bootstrap", "clock", "NAT", "relay", "reachable"}
        port = two_at.split("/")[4]
        assert found["reachable"].says == f"peers can connect to port {port} of 127.0.0.1"
        assert found["NAT"].says.startswith("none: this machine has the address")

        await one.stop()
        done = await run_mycelia("doctor", *here, "--bootstrap", one_at)
        ill = msgspec.json.decode(done.stdout, type=Report)
        assert done.returncode == 1 and not ill.ok
        refused = f"bootstrap: 127.0.0.1 port {one_at.split('/')[4]}: connection refused"
        assert any(problem.startswith(refused) for problem in ill.problems)
