"""What clients ask before a prompt: health, models, versions; with which paths and names; and how they are refused."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any

import httpx
import pytest
import trio

from mycelia.node.serve.api_keys import unnamed
from mycelia.node.serve.gateway import Access, Gateway
from mycelia.node.serve.http.server import bind_api, serve_http
from mycelia.node.serve.openai import embeddings
from mycelia.node.swarms import Swarms
from mycelia.node.version import VERSION
from tests.node.members import open_members
from tests.node.serve.openai.test_api import KEY, ScriptedNode, answer, chat, events, served

DEADLINE_S = 30.0


@asynccontextmanager
async def gateway_served(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    listener = bind_api("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_http, gateway, listener)
            async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=DEADLINE_S) as http:
                yield http
            nursery.cancel_scope.cancel()


class Leaving(ScriptedNode):
    status = "ok"

    def health(self) -> str:
        return self.status


@pytest.mark.parametrize("access", [Access(), Access(keys=(unnamed(KEY),))], ids=["open", "with keys"])
async def test_health_needs_no_key_and_follows_the_node(access: Access) -> None:
    gateway = Gateway(access)
    key = {"authorization": f"Bearer {KEY}"}
    async with gateway_served(gateway) as http:
        for path in ("/health", "/v1/health", "/health/"):
            loading = await http.get(path)
            assert loading.status_code == 503 and loading.headers["retry-after"] == "1"
            assert loading.json()["error"] == {"code": 503, "message": "Loading model", "type": "unavailable_error"}
        early = await http.post("/v1/chat/completions", json=chat(), headers=key)
        assert early.status_code == 503 and early.headers["retry-after"] == "1"
        assert "loading its model" in early.json()["error"]["message"]
        own = (await http.get("/api/state", headers=key)).json()
        assert (own["type"], own["retryable"], own["retry_after_s"]) == ("failed", True, 1)

        node = Leaving(answer("Hi"))
        gateway.open(node)
        for path in ("/health", "/v1/health"):
            assert (await http.get(path)).json() == {"status": "ok"}
            assert (await http.head(path)).status_code == 200
        assert (await http.post("/v1/chat/completions", json=chat(), headers=key)).status_code == 200

        node.status = "leaving"
        leaving = await http.get("/health")
        assert leaving.status_code == 503 and leaving.json()["status"] == "leaving"
        if access.keys:
            assert (await http.get("/props")).status_code == (await http.get("/version")).status_code == 401


async def test_a_real_node_reports_its_health_properties_and_models() -> None:
    async with open_members(1) as (_, (one,)):
        gateway = Gateway()
        gateway.open(Swarms(one.node))
        async with gateway_served(gateway) as http:
            assert (await http.get("/health")).json() == {"status": "ok"}
            props = (await http.get("/props")).json()
            (model,) = (await http.get("/v1/models")).json()["data"]
            assert (await http.get("/version")).json() == {"version": VERSION}
    num_tokens = model["context_tokens"]
    assert num_tokens > 0 and props["default_generation_settings"]["n_ctx"] == num_tokens and props["total_slots"] > 0
    assert model["meta"] == {"n_ctx": num_tokens} and model["created"] > 1_600_000_000
    names = ("max_model_len", "context_length", "context_window", "max_context_length")
    assert {model[name] for name in names} == {num_tokens}


async def test_paths_without_their_prefix_or_with_too_many_slashes_are_served() -> None:
    async with served() as (_, http):
        for path in (
            "/chat/completions",
            "//v1//chat/completions/",
            "/v1/v1/chat/completions",
            "/v1/chat/completions/",
        ):
            answered = await http.post(path, json=chat())
            assert answered.status_code == 200 and answered.json()["choices"], path
        for path in ("/models", "/models/fake", "/v1/models/", "//v1/models/org/other"):
            assert (await http.get(path)).status_code == 200, path
            head = await http.head(path)
            assert head.status_code == 200 and head.content == b"" and int(head.headers["content-length"]) > 0


async def test_a_path_that_does_not_exist_is_refused_in_the_shape_of_its_api() -> None:
    async with served() as (_, http):
        for path in ("/v1/chat/completion", "/v1", "/v1/", "/nothing", "/v1/respond/x", "/api"):
            missing = await http.get(path)
            error = missing.json()["error"]
            assert (
                missing.status_code == 404 and error["type"] == "invalid_request_error" and path[:3] in error["message"]
            )
        assert "/v1/chat/completions" in (await http.post("/v1/chat/completion")).json()["error"]["message"]
        wrong = await http.get("/v1/chat/completions")
        assert wrong.status_code == 405 and wrong.headers["allow"] == "POST"
        assert "use POST" in wrong.json()["error"]["message"]
        assert (await http.get("/api/nothing")).json()["type"] == "failed"
        too_large = await http.post("/v1/completions", content=b" " * 4_000_000)
        assert too_large.status_code == 413 and too_large.json()["error"]["message"]
        long_head = await http.get("/v1/models", headers={"x": "y" * 200_000})
        assert long_head.status_code == 431 and long_head.json()["error"]["message"]


class Aliased(ScriptedNode):
    aliases: Mapping[str, str] = MappingProxyType({"gpt-4o-mini": "fake", "claude": "org/other"})


async def test_aliases_are_models_of_their_own_name() -> None:
    gateway, node = Gateway(), Aliased(answer("Hi"))
    gateway.open(node)
    async with gateway_served(gateway) as http:
        rows = (await http.get("/v1/models")).json()["data"]
        assert [(row["id"], row["root"], row["max_model_len"]) for row in rows] == [
            ("fake", "fake", 4_096),
            ("org/other", "org/other", 2_048),
            ("gpt-4o-mini", "fake", 4_096),
            ("claude", "org/other", 2_048),
        ]
        assert (await http.get("/v1/models/gpt-4o-mini")).json()["root"] == "fake"
        for stream in (False, True):
            told = await http.post("/v1/chat/completions", json=chat(stream=stream) | {"model": "gpt-4o-mini"})
            models = {row["model"] for row in (events(told.text) if stream else [told.json()])}
            assert models == {"gpt-4o-mini"}, "clients look for the name that they gave"
        vector = await http.post("/v1/embeddings", json={"model": "gpt-4o-mini", "input": "x"})
        assert vector.status_code == 200 and vector.json()["model"] == "gpt-4o-mini"
        elsewhere = await http.post("/v1/embeddings", json={"model": "claude", "input": "x"})
        assert elsewhere.status_code == 404 and "`org/other`" in elsewhere.json()["error"]["message"]
        missing = (await http.get("/v1/models/gpt-9")).json()["error"]
        assert missing["code"] == "model_not_found" and "gpt-9" in missing["message"]
        assert "fake, org/other, gpt-4o-mini, claude" in missing["message"]


class Catalogued(ScriptedNode):
    """Its model has another name in the catalogue."""

    def name_of(self, named: str) -> str:
        return "fake" if named == "short" else super().name_of(named)


async def test_a_name_of_the_catalogue_means_its_model_at_every_path() -> None:
    gateway = Gateway()
    gateway.open(Catalogued(answer("Hi")))
    async with gateway_served(gateway) as http:
        assert (await http.get("/v1/models/short")).json()["root"] == "fake"
        vector = await embed(http, model="short", input=[1, 2], tokenizer="fake")
        assert vector.status_code == 200 and vector.json()["model"] == "short"
        assert (await http.post("/tokenize", json={"prompt": "x", "model": "short"})).json()["count"] == 1
        counted = {"model": "short", "messages": [{"role": "user", "content": "x"}]}
        assert (await http.post("/v1/messages/count_tokens", json=counted)).status_code == 200


async def embed(http: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await http.post("/v1/embeddings", json=body)


@pytest.mark.parametrize("tokens", [[1, 2], [[1, 2]], ["a", [1]]])
async def test_tokens_to_embed_need_the_name_of_their_model(tokens: Any) -> None:
    async with served() as (_, http):
        unknown = await embed(http, model="fake", input=tokens)
        assert unknown.status_code == 400
        error = unknown.json()["error"]
        assert "check_embedding_ctx_length=False" in error["message"] and error["param"] == "input"
        other = await embed(http, model="fake", input=tokens, tokenizer="cl100k_base")
        assert other.status_code == 400 and "cl100k_base" in other.json()["error"]["message"]
        assert (await embed(http, model="fake", input=tokens, tokenizer="fake")).status_code == 200


async def test_many_texts_and_their_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    async with served() as (_, http):
        assert len((await embed(http, input=["ab"] * 1_000)).json()["data"]) == 1_000
        for texts, says in (
            (["a"] * 2_049, "at most 2048"),
            (["a", "b", ""], "input[2] is empty"),
            ("", "input is empty"),
        ):
            refused = await embed(http, input=texts)
            assert refused.status_code == 400 and says in refused.json()["error"]["message"]
        monkeypatch.setattr(embeddings, "MAX_ANSWER_BYTES", 100)
        large = await embed(http, input=["ab"] * 3)
        assert large.status_code == 400 and "send at most 2 texts" in large.json()["error"]["message"]
        assert (await embed(http, input=["ab"] * 3, encoding_format="base64")).status_code == 200


async def test_only_models_made_for_it_give_shorter_vectors() -> None:
    async with served() as (_, http):
        assert (await embed(http, input="ab", dimensions=2)).json()["data"][0]["embedding"] == [1.0, 2.0]
        for dimensions in (1, 3, 0, -1, 10**9):
            refused = await embed(http, input="ab", dimensions=dimensions)
            assert refused.status_code == 400 and "dimensions" in refused.json()["error"]["message"]
