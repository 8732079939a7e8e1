"""A real node with two models, one of them loaded when it is asked for, and a peer with another model."""

import httpx
import pytest
import trio

from mycelia.node.client.local import fetch_state
from mycelia.node.local_swarm.processes import LocalSwarm
from tests.e2e.conftest import DEADLINE_S, ask, run_mycelia

pytestmark = pytest.mark.e2e


async def test_two_models_of_one_node_are_asked_by_name_here_and_by_a_peer(swarm: LocalSwarm) -> None:
    with trio.fail_after(2 * DEADLINE_S):
        one = await swarm.start("one", options=["--model", "fake", "--model", "fake-b,load=demand", "--memory", "2"])
        other = await swarm.start("other", [await one.address()], ["--model", "fake-c", "--model", "fake-rerank"])
        info = await one.wait_ready()
        await one.wait_event(lambda event: event.get("event") == "serving" and event["model"] == "fake-b")
        await one.wait_event(lambda event: event.get("event") == "model_unloaded")  # (it was loaded to learn of it)
        await other.wait_peers(1)
        await other.wait_event(lambda event: event.get("event") == "serving" and event["model"] == "fake-rerank")
        states = {row.model: row.state for row in (await fetch_state(info)).served}
        assert states == {"fake": "loaded", "fake-b": "unloaded"}
        for node, model in ((one, "fake"), (one, "fake-b"), (other, "fake-b"), (other, "fake-c")):
            answer = await ask(node, "Hi", "--model", model)
            assert answer.answered.served_by == (await (other if model == "fake-c" else one).wait_ready()).peer
        assert {row.state for row in (await fetch_state(info)).served} == {"loaded"}
        shown = (await run_mycelia("status", "--data-dir", str(one.data_dir))).stdout
        assert "fake-b loaded" in shown
        async with httpx.AsyncClient(base_url=info.api_url, trust_env=False) as http:
            listed = [row["id"] for row in (await http.get("/v1/models")).json()["data"]]
            assert listed[:2] == ["fake", "fake-b"]
            body = {"model": "fake-rerank", "query": "a cat", "documents": ["a dog", "a cat"], "top_n": 1}
            ranked = (await http.post("/v1/rerank", json=body)).json()["results"]
            assert ranked == [{"index": 1, "relevance_score": 1.0}], "by the peer"
            assert (await http.get("/v1/models/fake-rerank")).json()["kind"] == "rerank"
            assert (await http.post("/tokenize", json={"prompt": "hi", "model": "fake-b"})).status_code == 200
