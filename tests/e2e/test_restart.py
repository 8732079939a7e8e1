"""A node that is killed at any moment continues after a restart."""

from pathlib import Path

import pytest
import trio

from mycelia.node.client.local import fetch_requests
from mycelia.node.local_swarm.processes import LocalNode, LocalSwarm
from tests.e2e.conftest import DEADLINE_S, ask, parse_answer, run_mycelia
from tests.e2e.test_drain import FAKE, MAX_TOKENS, PROMPT, output, started
from tests.e2e.test_options import LONG
from tests.node.engine.gguf_files import quick_model

pytestmark = pytest.mark.e2e

DEBUG = [*FAKE, "--debug"]


async def killed(node: LocalNode) -> None:
    node.kill()
    await node.process.wait()


async def has_saved(node: LocalNode, name: str, after: int = 0) -> int:
    """Waits until the node has written a file once more than ``after``; returns how often it has."""
    while (num := sum(event.get("event") == "saved" and event["file"] == name for event in node.events)) <= after:
        await node.wait_next_event()
    return num


async def knows(node: LocalNode) -> None:
    """Waits until the node has written down its connections."""
    await node.wait_peers(1)
    await has_saved(node, "peers.msgpack")


async def test_a_killed_node_finds_its_swarm_again_without_bootstrap(swarm: LocalSwarm) -> None:
    with trio.fail_after(DEADLINE_S):
        one, two = await swarm.start_many(2, DEBUG)
        ready = await two.wait_ready()
        await knows(two)
        await killed(two)
        again = await swarm.start("node-2", options=DEBUG)
        assert (await again.wait_ready()).peer == ready.peer
        await again.wait_event(lambda event: event.get("event") == "remembers_peers" and event["count"] == 1)
        joined = await again.wait_event(lambda event: event.get("event") == "node_joined")
        assert joined["peer"] == (await one.wait_ready()).peer


async def test_an_answer_outlives_the_killed_node_of_this_machine(swarm: LocalSwarm) -> None:
    """The answer continues at a node that the killed one knew, without any other given address."""
    with trio.fail_after(2 * DEADLINE_S):
        _, mine = await swarm.start_many(2, DEBUG)
        await knows(mine)
        asking = await started(mine)
        begun = await output(asking, b'"type":"text"')
        await killed(mine)
        answer = parse_answer(begun + await output(asking))
        assert answer.answered.completion_tokens == MAX_TOKENS and answer.answered.resumed == 1
        later = await run_mycelia("ask", "--data-dir", str(mine.data_dir), "Hi")
        assert later.returncode == 1 and "no node could be reached" in later.stderr, "nobody is asked unasked"


async def test_a_killed_node_shows_its_requests_again(swarm: LocalSwarm) -> None:
    """The request that was being answered is shown too, as interrupted."""
    with trio.fail_after(2 * DEADLINE_S):
        node = await swarm.start("alone", options=FAKE)
        await node.wait_ready()
        first = await ask(node, PROMPT, "--max-tokens", "3")
        asking = await started(node)
        await output(asking, b'"type":"text"')
        await killed(node)
        failed = await output(asking)
        assert failed == "" or "answered" not in failed

        again = await swarm.start("alone", options=FAKE)
        answered, interrupted = await fetch_requests(await again.wait_ready())
        assert (answered.status, answered.completion_tokens) == ("answered", first.answered.completion_tokens)
        assert answered.served_by == (await again.wait_ready()).peer
        assert (interrupted.status, interrupted.completion_tokens) == ("interrupted", 0)
        for row, step in ((answered, "first_token"), (interrupted, "interrupted")):
            told = await run_mycelia("trace", row.id[:8], "--data-dir", str(again.data_dir))
            assert told.returncode == 0 and step in told.stdout, told.stderr
        listed = await run_mycelia("trace", "--data-dir", str(again.data_dir))
        assert listed.returncode == 0 and "interrupted" in listed.stdout
        assert PROMPT.encode() not in (again.data_dir / "requests.journal").read_bytes()


async def test_a_node_without_a_journal_writes_none(swarm: LocalSwarm) -> None:
    with trio.fail_after(DEADLINE_S):
        node = await swarm.start("private", options=[*FAKE, "--no-journal"])
        await node.wait_ready()
        await ask(node, "Hi", "--max-tokens", "3")
        await node.stop()
        assert not list(node.data_dir.glob("requests.*"))


async def test_a_killed_node_serves_from_its_disk_tier(swarm: LocalSwarm, tmp_path: Path) -> None:
    """Prefixes evicted from the KV cache are on disk at once; files torn by the kill are misses."""
    options = ["--model", str(quick_model()), "--threads", "1", "--cache-dir", str(tmp_path / "cache")]
    with trio.fail_after(2 * DEADLINE_S):
        node = await swarm.start("warm", options=options)
        await node.wait_ready()
        cold = await ask(node, LONG, "--max-tokens", "2")
        assert cold.answered.cached_tokens < cold.answered.prompt_tokens / 10
        for prompt in ("Something else.", "And more."):  # (idle sequences without a shared prefix leave)
            await ask(node, prompt, "--max-tokens", "2")
        with trio.fail_after(DEADLINE_S):
            while not (edges := list((tmp_path / "cache").rglob("*.edge"))):  # noqa: ASYNC110  nothing announces it
                await trio.sleep(0.05)
        await killed(node)
        edges[0].with_suffix(".1.tmp").write_bytes(b"half written")

        again = await swarm.start("warm", options=options)
        await again.wait_ready()
        warm = await ask(again, LONG, "--max-tokens", "2")
        assert warm.answered.cached_tokens > warm.answered.prompt_tokens * 0.9
