"""The gateway of real nodes: keys, models of other nodes, and replies to misuse."""

from pathlib import Path

import httpx
import msgspec
import pytest
import trio

from mycelia.node.local_swarm.processes import LocalSwarm
from mycelia.node.views.history import UsageRow
from mycelia.node.views.state import ModelRow
from tests.e2e.conftest import DEADLINE_S, ask, becomes_idle, peers_of, run_mycelia
from tests.node.engine.gguf_files import quick_model

pytestmark = pytest.mark.e2e

KEY = "0123456789abcdef0123"
CHAT = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, "temperature": 0}


def quick() -> list[str]:
    return ["--model", str(quick_model()), "--threads", "1"]


async def test_a_key_opens_the_gateway_and_commands_here_know_it(swarm: LocalSwarm, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"# of the laptop\n{KEY}\n")
    with trio.fail_after(DEADLINE_S):
        options = ["--model", "fake", "--api-key-file", str(keys), "--api-host", "0.0.0.0"]
        node = await swarm.start("locked", options=options)
        url = (await node.wait_ready()).api_url
        assert (await ask(node, "hello", "--max-tokens", "2", "--temperature", "0")).answered.completion_tokens
        async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
            assert (await http.get("/v1/models")).status_code == 401
            assert (await http.get("/api/state", headers={"authorization": "Bearer no"})).status_code == 401
            answered = await http.post("/v1/chat/completions", json=CHAT, headers={"authorization": f"Bearer {KEY}"})
            assert answered.status_code == 200 and answered.json()["usage"]["completion_tokens"]
        run_file = await trio.Path(node.data_dir / "node.json").stat()
        assert run_file.st_mode & 0o077 == 0, "it holds a key"


async def test_a_key_with_limits_is_refused_above_them_and_its_usage_outlives_the_node(
    swarm: LocalSwarm, tmp_path: Path
) -> None:
    (tmp_path / "alice.key").write_text(f"{KEY}\n")
    with trio.fail_after(2 * DEADLINE_S):
        options = ["--model", "fake", "--key", f"alice,file={tmp_path / 'alice.key'},requests_per_minute=1"]
        node = await swarm.start("limited", options=options)
        headers = {"authorization": f"Bearer {KEY}"}
        async with httpx.AsyncClient(base_url=(await node.wait_ready()).api_url, trust_env=False) as http:
            used = (await http.post("/v1/chat/completions", json=CHAT, headers=headers)).json()["usage"]
            refused = await http.post("/v1/chat/completions", json=CHAT, headers=headers)
            assert refused.status_code == 429 and int(refused.headers["retry-after"]) <= 60
            assert (await http.get("/v1/models", headers=headers)).status_code == 200
            metrics = (await http.get("/metrics", headers=headers)).text
        assert 'mycelia_key_requests_total{key="alice",model="",outcome="refused"} 1.0' in metrics
        for _ in range(2):
            answer = await ask(node, "hello", "--max-tokens", "2", "--temperature", "0")
            assert answer.answered.completion_tokens, "no limit concerns it"
        running = await run_mycelia("usage", "--json", "--data-dir", str(node.data_dir))
        await node.stop()
        ended = await run_mycelia("usage", "--json", "--data-dir", str(node.data_dir))
    rows = msgspec.json.decode(ended.stdout, type=list[UsageRow])
    assert rows == msgspec.json.decode(running.stdout, type=list[UsageRow])
    assert {(row.key, row.model): (row.requests, row.refused) for row in rows} == {
        ("alice", ""): (0, 1),
        ("alice", "fake"): (1, 0),
        ("local", "fake"): (2, 0),
    }
    (alice,) = (row for row in rows if row.key == "alice" and row.model)
    assert (alice.prompt_tokens, alice.completion_tokens) == (used["prompt_tokens"], used["completion_tokens"])
    assert alice.cached_tokens == used["prompt_tokens_details"]["cached_tokens"]


@pytest.mark.parametrize(
    ("text", "options", "says"),
    [
        (None, ["--api-host", "0.0.0.0"], "lets other machines use this node"),
        ("short", [], "16 or more"),
        ("# none", [], "has no key in it"),
        (None, ["--api-host", "no.such.host.invalid"], "lets other machines"),
        (KEY, ["--api-host", "203.0.113.7"], "cannot serve the API"),
    ],
)
async def test_a_gateway_that_cannot_be_meant_starts_no_node(
    tmp_path: Path, text: str | None, options: list[str], says: str
) -> None:
    if text is not None:
        (tmp_path / "keys").write_text(text)
        options = [*options, "--api-key-file", str(tmp_path / "keys")]
    done = await run_mycelia("node", "--model", "fake", "--api-port", "0", "--data-dir", str(tmp_path / "d"), *options)
    assert done.returncode in {1, 2} and says in done.stderr and "Traceback" not in done.stderr


async def test_a_prompt_for_another_nodes_model_is_answered_there(swarm: LocalSwarm) -> None:
    with trio.fail_after(DEADLINE_S):
        small = await swarm.start("small", options=["--model", "fake"])
        large = await swarm.start("large", [await small.address()], quick())
        await small.wait_peers(1)
        done = await run_mycelia("models", "--json", "--data-dir", str(small.data_dir))
        rows = msgspec.json.decode(done.stdout, type=list[ModelRow])
        assert [(row.model, row.nodes) for row in rows] == [("fake", 1), ("smollm2", 1)]
        table = await run_mycelia("models", "--data-dir", str(small.data_dir))
        assert "smollm2" in table.stdout
        url = (await small.wait_ready()).api_url
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=DEADLINE_S) as http:
            answered = await http.post("/v1/chat/completions", json=CHAT | {"model": "smollm2", "temperature": 0})
        assert answered.status_code == 200 and answered.json()["model"] == "smollm2"
        assert answered.headers["x-mycelia-served-by"] == (await large.wait_ready()).peer
        asked = await ask(small, "hello", "--model", "smollm2", "--max-tokens", "4")
        assert asked.answered.served_by == (await large.wait_ready()).peer
        await becomes_idle(large)


async def test_a_model_of_a_node_that_this_one_is_not_connected_with(swarm: LocalSwarm) -> None:
    """Two nodes that no peer can dial, as behind routers, and one node between them."""
    unreachable = ["--announce", "/ip4/127.0.0.1/tcp/1"]
    with trio.fail_after(DEADLINE_S):
        middle = await swarm.start("middle", options=["--model", "fake"])
        address = [await middle.address()]
        far = await swarm.start("far", address, [*quick(), *unreachable])
        near = await swarm.start("near", address, ["--model", "fake", *unreachable])
        await middle.wait_peers(2)
        await near.wait_peers(1)
        url = (await near.wait_ready()).api_url
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=DEADLINE_S) as http:
            listed = (await http.get("/v1/models")).json()["data"]
            answered = await http.post("/v1/chat/completions", json=CHAT | {"model": "smollm2", "temperature": 0})
            unknown = await http.post("/v1/chat/completions", json=CHAT | {"model": "none"})
        rows = {row["id"]: (row["nodes"], row["connected"]) for row in listed}
        assert rows["smollm2"] == (1, 0) and rows["fake"][1] == 2
        assert answered.status_code == 200 and answered.json()["model"] == "smollm2"
        assert answered.headers["x-mycelia-served-by"] == (await far.wait_ready()).peer
        assert [peer.peer for peer in await peers_of(near)] == [(await middle.wait_ready()).peer]
        assert unknown.status_code == 404 and unknown.json()["error"]["code"] == "model_not_found"


async def test_a_conversation_from_a_pipe(swarm: LocalSwarm) -> None:
    with trio.fail_after(DEADLINE_S):
        node = await swarm.start("chat", options=["--model", "fake"])
        await node.wait_ready()
        lines = b"One\nTwo\n/history\n/quit\nnever asked\n"
        done = await run_mycelia("chat", "--data-dir", str(node.data_dir), "--max-tokens", "4", stdin=lines)
        assert done.returncode == 0 and len(done.stdout.splitlines()) == 2
        assert "user: Two" in done.stderr and "never asked" not in done.stderr
