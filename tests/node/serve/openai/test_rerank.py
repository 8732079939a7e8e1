"""POST /v1/rerank: the shape that Cohere, Jina and llama-server share, and its refusals."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import httpx
import numpy as np
import pytest
import trio

from mycelia.node.errors import BusyError, FailedError
from mycelia.node.serve.api import Embedded
from mycelia.node.serve.gateway import Gateway
from mycelia.proto.wire.errors import LocalError
from tests.node.serve.openai.test_api import ScriptedNode, answer
from tests.node.serve.test_probes import gateway_served

ERRORS: Mapping[str, LocalError] = {
    "busy": BusyError("too many wait", 3.0),
    "missing": FailedError("The model `x` does not exist", "unknown_model"),
    "nobody": FailedError("no node could answer", "no_peer"),
    "long": FailedError("the prompt is too long", "too_long"),
    "wrong": LocalError("'x' is a text model: it ranks no documents"),
}


class RankingNode(ScriptedNode):
    """Ranks documents by their length."""

    aliases: Mapping[str, str] = MappingProxyType({"rerank-v3.5": "fake"})

    def __init__(self) -> None:
        super().__init__(answer("Hi"))
        self.ranked: list[tuple[str, list[str], str]] = []
        self.usual = "fake"

    def model_for(self, kind: str) -> str:
        return self.usual if kind == "rerank" else self.model

    async def rank(self, query: str, documents: Sequence[str], client: bytes = b"", model: str = "") -> Embedded:
        if query in ERRORS:
            raise ERRORS[query]
        if query == "slow":
            self.embedding.set()
            try:
                await trio.sleep_forever()
            finally:
                self.left.set()
        self.ranked.append((query, list(documents), model))
        return Embedded([np.array([len(document) / 10], np.float32) for document in documents], 7)


async def rerank(http: httpx.AsyncClient, path: str = "/v1/rerank", **body: Any) -> httpx.Response:
    return await http.post(path, json=body)


async def test_the_best_documents_come_first() -> None:
    gateway, node = Gateway(), RankingNode()
    gateway.open(node)
    documents = ["bb", {"text": "cccc", "title": "left out"}, "a", "dd"]
    async with gateway_served(gateway) as http:
        whole = (await rerank(http, query="q", documents=documents)).json()
        assert whole == {
            "object": "list",
            "model": "fake",
            "results": [
                {"index": 1, "relevance_score": pytest.approx(0.4)},
                {"index": 0, "relevance_score": pytest.approx(0.2)},
                {"index": 3, "relevance_score": pytest.approx(0.2)},
                {"index": 2, "relevance_score": pytest.approx(0.1)},
            ],
            "usage": {"prompt_tokens": 7, "total_tokens": 7},
        }
        options: dict[str, Any] = {
            "model": "rerank-v3.5",
            "top_n": 2,
            "return_documents": True,
            "max_chunks_per_doc": 3,
        }
        two = (await rerank(http, query="q", documents=documents, **options)).json()
        assert two["model"] == "rerank-v3.5", "clients look for the name that they gave"
        assert [(row["index"], row["document"]["text"]) for row in two["results"]] == [(1, "cccc"), (0, "bb")]
        assert node.ranked[-1] == ("q", ["bb", "cccc", "a", "dd"], "fake")
        assert len((await rerank(http, query="q", documents=["a"], top_n=9)).json()["results"]) == 1


@pytest.mark.parametrize(
    "path", ["/v1/rerank", "/v2/rerank", "/rerank", "/reranking", "/v1/reranking/", "//v2//rerank"]
)
async def test_the_paths_of_other_servers(path: str) -> None:
    gateway = Gateway()
    gateway.open(RankingNode())
    async with gateway_served(gateway) as http:
        assert (await rerank(http, path, query="q", documents=["a"])).status_code == 200


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"documents": ["a"]}, "query"),
        ({"query": " ", "documents": ["a"]}, "query"),
        ({"query": "q"}, "documents"),
        ({"query": "q", "documents": []}, "documents"),
        ({"query": "q", "documents": ["a"] * 1_001}, "at most 1000"),
        ({"query": "q", "documents": [{"title": "a"}]}, "text"),
        ({"query": "q", "documents": ["a"], "top_n": 0}, "top_n"),
        ({"query": "q", "documents": ["a", 5]}, "documents"),
    ],
)
async def test_what_is_refused(body: dict[str, Any], says: str) -> None:
    gateway, node = Gateway(), RankingNode()
    gateway.open(node)
    async with gateway_served(gateway) as http:
        refused = await rerank(http, **body)
        assert refused.status_code == 400 and says in refused.json()["error"]["message"]
        assert not node.ranked


async def test_failures_have_their_status() -> None:
    gateway, node = Gateway(), RankingNode()
    gateway.open(node)
    async with gateway_served(gateway) as http:
        told = {query: await rerank(http, query=query, documents=["a"]) for query in ERRORS}
        assert {query: response.status_code for query, response in told.items()} == {
            "busy": 429,
            "missing": 404,
            "nobody": 503,
            "long": 400,
            "wrong": 400,
        }
        assert told["busy"].headers["retry-after"] == "3"
        assert told["missing"].json()["error"]["code"] == "model_not_found"
        assert told["long"].json()["error"]["code"] == "context_length_exceeded"
        node.usual = ""
        nameless = await rerank(http, query="q", documents=["a"])
        assert nameless.status_code == 400 and "no reranking model" in nameless.json()["error"]["message"]
        assert nameless.json()["error"]["param"] == "model"
        assert (await rerank(http, query="q", documents=["a"], model="fake")).status_code == 200


async def test_a_client_that_leaves_takes_its_ranks_along() -> None:
    gateway, node = Gateway(), RankingNode()
    gateway.open(node)
    async with gateway_served(gateway) as http, trio.open_nursery() as nursery:
        with trio.CancelScope() as leaving:
            nursery.start_soon(node.wait_embedding, leaving)
            await rerank(http, query="slow", documents=["a"])
        await node.left.wait()
