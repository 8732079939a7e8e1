"""A real swarm answers prompts, finds shared prefixes, survives kills and leaves nothing behind."""

import signal
import subprocess
from pathlib import Path

import msgspec
import pytest
import trio

from mycelia.node.client.local import fetch_tree
from mycelia.node.doctor.machine import Report
from mycelia.node.local_swarm.processes import COMMAND, LocalNode, LocalSwarm
from mycelia.node.storage.rundir import find_running
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
)
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
        assert any(row.tokens >= STRIDE and row.text.startswith("system") for row in rows)

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
        process = await trio.lowlevel.open_process(
            [*COMMAND, "swarm", "2", *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None and process.stderr is not None
        seen = b""
        while b"stop:" not in seen:
            piece = await process.stdout.receive_some()
            assert piece, (await process.stderr.receive_some()).decode()
            seen += bytes(piece)
        assert b"node-2" in seen and (b"30 ms" in seen) == (delay == "30")
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


async def test_the_doctor_asks_peers_how_they_see_this_machine(swarm: LocalSwarm) -> None:
    with trio.fail_after(DEADLINE_S):
        one, two = await swarm.start_many(2, ["--model", "fake"])
        one_at, two_at = await one.address(), await two.address()
        here = ("--model", "smollm2", "--json", "--data-dir", str(two.data_dir))
        well = msgspec.json.decode((await run_mycelia("doctor", *here, "--bootstrap", one_at)).stdout, type=Report)
        assert well.ok, well.problems
        found = {line.what: line for line in well.outlook}
        assert found.keys() == {"node", "bootstrap", "clock", "NAT", "relay", "reachable"}
        port = two_at.split("/")[4]
        assert found["reachable"].says == f"peers can connect to port {port} of 127.0.0.1"
        assert found["NAT"].says.startswith("none: this machine has the address")

        await one.stop()
        done = await run_mycelia("doctor", *here, "--bootstrap", one_at)
        ill = msgspec.json.decode(done.stdout, type=Report)
        assert done.returncode == 1 and not ill.ok
        assert any(problem.startswith(f"bootstrap: {one_at}") for problem in ill.problems)
