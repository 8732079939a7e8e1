"""API keys with limits, over HTTP: what is refused, in which shape, and what is not."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from mycelia.node.serve.api_keys import ApiKey, Limits, digest_of, unnamed
from mycelia.node.serve.gateway import Access, Gateway
from mycelia.node.telemetry.usage import UsageMeter, Use
from mycelia.proto.wire.messages import EntryFrame
from tests.node.serve.openai.test_api import KEY, OTHER_KEY, ScriptedNode, answer, chat, served

ASK = {"messages": [{"role": "user", "content": "hello"}]}
COMPLETION = {"model": "fake", "prompt": "hello"}


def limited(**limits: int) -> ApiKey:
    return ApiKey("alice", digest_of(KEY.encode()), Limits(**limits))


@asynccontextmanager
async def with_key(
    key: ApiKey, usage: UsageMeter | None = None, *scripts: Sequence[EntryFrame]
) -> AsyncIterator[tuple[ScriptedNode, httpx.AsyncClient]]:
    async with served(*scripts, access=Access(keys=(key, unnamed(OTHER_KEY))), usage=usage) as (node, http):
        http.headers["authorization"] = f"Bearer {KEY}"
        yield node, http


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", chat()),
        ("/v1/completions", COMPLETION),
        ("/v1/responses", {"model": "fake", "input": "hello"}),
        ("/v1/messages", chat(max_tokens=4)),
        ("/api/ask", ASK),
    ],
)
async def test_too_many_requests_get_429_in_the_shape_of_their_api(path: str, body: dict[str, Any]) -> None:
    usage = UsageMeter()
    async with with_key(limited(requests_per_minute=1), usage) as (node, http):
        assert (await http.post(path, json=body)).status_code == 200
        refused = await http.post(path, json=body)
        assert refused.status_code == 429 and 1 <= int(refused.headers["retry-after"]) <= 60
        told = refused.json()
        if path.startswith("/v1"):
            error = told["error"]
            assert error["type"] == "rate_limit_error"
            assert told.get("type") == "error" or error["code"] == "rate_limit_exceeded"
            assert (told.get("type") == "error") == path.endswith("messages")
            assert "1 requests a minute" in error["message"]
        else:
            assert told["type"] == "failed" and told["code"] == "overloaded" and told["retryable"]
            assert told["retry_after_s"] == int(refused.headers["retry-after"])
        assert len(node.asked) == 1
        other = {"authorization": f"Bearer {OTHER_KEY}"}
        assert (await http.post(path, json=body, headers=other)).status_code == 200
    (row,) = await usage.since(1)
    assert (row.key, row.refused) == ("alice", 1)


async def test_what_computes_no_answer_is_not_limited() -> None:
    async with with_key(limited(requests_per_minute=1, concurrent=1)) as (_, http):
        for _ in range(5):
            for path in ("/v1/models", "/api/requests", "/metrics", "/api/usage"):
                assert (await http.get(path)).status_code == 200, path
            for path, body in (
                ("/api/tokenize", ASK),
                ("/tokenize", COMPLETION),
                ("/v1/messages/count_tokens", chat()),
            ):
                assert (await http.post(path, json=body)).status_code == 200, path
        assert (await http.post("/v1/chat/completions", json=chat())).status_code == 200


async def test_requests_while_the_node_is_loading_are_not_counted() -> None:
    key = limited(requests_per_minute=1, concurrent=1)
    gateway = Gateway(Access(keys=(key,)))
    headers = {"authorization": f"Bearer {KEY}"}
    transport = httpx.ASGITransport(gateway)
    async with httpx.AsyncClient(transport=transport, base_url="http://node", headers=headers) as http:
        for _ in range(3):
            assert (await http.post("/v1/chat/completions", json=chat())).status_code == 503
        gateway.open(ScriptedNode(answer("Hi")))
        statuses = [(await http.post("/v1/chat/completions", json=chat())).status_code for _ in range(2)]
    assert statuses == [200, 429]


async def test_a_key_without_tokens_left_is_told_when_there_are_new_ones() -> None:
    key = limited(tokens_per_day=100)
    usage = UsageMeter(keys=[key])
    async with with_key(key, usage) as (node, http):
        usage.add(key.client, Use("fake", prompt_tokens=60, completion_tokens=39))
        assert (await http.post("/v1/chat/completions", json=chat())).status_code == 200
        usage.add(key.client, Use("fake", prompt_tokens=1))
        refused = await http.post("/v1/chat/completions", json=chat())
        assert refused.status_code == 429 and 0 < int(refused.headers["retry-after"]) <= 86_400
        assert "100 tokens of 100" in refused.json()["error"]["message"] and len(node.asked) == 1


async def test_a_place_is_free_again_after_an_answer_a_mistake_and_a_client_that_left() -> None:
    unfinished = answer("Hi")[:-1]
    async with with_key(limited(concurrent=1), None, unfinished, answer("Hi")) as (node, http):
        assert (await http.post("/v1/chat/completions", json={})).status_code == 400
        assert (await http.post("/v1/nothing", json={})).status_code == 404
        async with http.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as streaming:
            assert streaming.status_code == 200
            refused = await http.post("/v1/chat/completions", json=chat())
            assert refused.status_code == 429 and refused.headers["retry-after"] == "1"
            assert (await http.get("/v1/models")).status_code == 200
        await node.left.wait()
        while (await http.post("/v1/chat/completions", json=chat())).status_code == 429:
            pass  # (the gate hears of the end just after the node)
        assert len(node.asked) == 2


async def test_wrong_keys_are_refused_before_any_limit() -> None:
    usage = UsageMeter()
    async with with_key(limited(requests_per_minute=1), usage) as (_, http):
        for number in range(20):
            wrong = {"authorization": f"Bearer {number}{KEY}"}
            assert (await http.post("/v1/chat/completions", json=chat(), headers=wrong)).status_code == 401
        assert (await http.post("/v1/chat/completions", json=chat())).status_code == 200
    assert await usage.since(1) == []


async def test_usage_is_asked_for_by_days() -> None:
    async with served() as (_, http):
        assert (await http.get("/api/usage?days=92")).json() == []
        for wrong in ("0", "93", "-1", "x", "", "9" * 400):
            refused = await http.get(f"/api/usage?days={wrong}")
            assert refused.status_code == 400 and "from 1 to 92" in refused.json()["message"]
