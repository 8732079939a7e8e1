"""Anthropic's API in front of a scripted node: what reaches the node, answers whole and as events, refusals."""

import json
from typing import Any

import httpx
import msgspec
import pytest

from mycelia.node.serve.api_keys import unnamed
from mycelia.node.serve.gateway import Access
from mycelia.proto.wire.messages import Conversation, EntryFrame, Text
from tests.node.serve.openai.test_api import BEGUN, BUSY, KEY, ROUTE, ScriptedNode, answer, served

TOOL = {"name": "weather", "description": "d", "input_schema": {"type": "object", "properties": {"place": {}}}}
CALL = '<tool_call>{"name": "weather", "arguments": {"place": "Paris"}}</tool_call>'


def message(content: Any = "hello", **more: object) -> dict[str, object]:
    return {"model": "fake", "max_tokens": 9, "messages": [{"role": "user", "content": content}], **more}


def thinking(*pieces: str) -> list[EntryFrame]:
    """The answer of a model that thinks and calls as Qwen3 does."""
    frames = answer(*pieces)
    frames[0] = msgspec.structs.replace(ROUTE, format="hermes+think")
    return frames


async def events(http: httpx.AsyncClient, body: dict[str, object]) -> list[dict[str, Any]]:
    """The events of a stream, each named as its type."""
    streamed = await http.post("/v1/messages", json=body | {"stream": True})
    assert streamed.headers["content-type"].startswith("text/event-stream") and streamed.status_code == 200
    found = []
    for part in streamed.text.strip().split("\n\n"):
        if not part.startswith(":"):
            name, data = part.split("\n")
            found.append(json.loads(data.removeprefix("data: ")))
            assert name == f"event: {found[-1]['type']}"
    return found


async def test_a_message_in_one_piece() -> None:
    async with served(answer("Hi", " there"), answer("Hi", reason="length")) as (node, http):
        body = message(system="Be brief.", temperature=0, top_k=3, stop_sequences=["x"], metadata={"user_id": "u"})
        response = await http.post("/v1/messages?beta=true", json=body)
        told = response.json()
        cut = (await http.post("/messages", json=body)).json()
    assert response.headers["request-id"] == response.headers["x-request-id"]
    assert told["id"].startswith("msg-") and told["type"] == "message" and told["role"] == "assistant"
    assert told["content"] == [{"type": "text", "text": "Hi there"}] and told["stop_sequence"] is None
    assert told["usage"] == {
        "input_tokens": 5,
        "output_tokens": 2,
        "cache_read_input_tokens": 4,
        "cache_creation_input_tokens": 0,
    }
    assert (told["stop_reason"], cut["stop_reason"]) == ("end_turn", "max_tokens")
    ask = node.asked[0]
    assert [(turn.role, turn.content) for turn in ask.messages] == [("system", "Be brief."), ("user", "hello")]
    assert (ask.sampling.max_tokens, ask.sampling.temperature, ask.sampling.top_k) == (9, 0, 3)
    assert ask.sampling.stop == ("x",)


async def test_a_conversation_with_tools_reaches_the_node_as_one_of_openais() -> None:
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "text", "text": "Let me see."},
                {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"place": "Paris"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "rain"}]},
                {"type": "text", "text": "And now?"},
            ],
        },
    ]
    system = [{"type": "text", "text": "x-anthropic-billing-header: cc=1"}, {"type": "text", "text": "Be brief."}]
    async with served() as (node, http):
        body = message() | {"messages": turns, "system": system, "tools": [TOOL], "tool_choice": {"type": "auto"}}
        assert (await http.post("/v1/messages", json=body)).status_code == 200
        forced = body | {"tool_choice": {"type": "tool", "name": "weather"}}
        assert (await http.post("/v1/messages", json=forced)).status_code == 200
    told = node.asked[0].messages
    assert [(turn.role, turn.content) for turn in told] == [
        ("system", "Be brief."),
        ("user", "a"),
        ("assistant", "Let me see."),
        ("tool", "rain"),
        ("user", "And now?"),
    ]
    (call,) = json.loads(told[2].extras)["tool_calls"]
    assert call["function"] == {"name": "weather", "arguments": {"place": "Paris"}}
    assert json.loads(told[3].extras)["tool_call_id"] == call["id"] == "toolu_1"
    assert json.loads(told[2].extras)["reasoning_content"] == "hm"
    (tool,) = json.loads(node.asked[0].tools)
    assert tool["function"]["parameters"] == TOOL["input_schema"]
    assert not node.asked[0].sampling.grammar and "weather" in node.asked[1].sampling.grammar


async def test_a_turn_without_blocks_is_an_empty_text() -> None:
    async with served(answer("Hi")) as (node, http):
        assert (await http.post("/v1/messages", json=message([]))).status_code == 200
    assert [(turn.role, turn.content) for turn in node.asked[0].messages] == [("user", "")]


async def test_thinking_is_switched_and_a_begun_answer_goes_on() -> None:
    begun = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "grape,"}]
    async with served() as (node, http):
        for more in ({"thinking": {"type": "disabled"}}, {"thinking": {"type": "enabled", "budget_tokens": 2_000}}):
            assert (await http.post("/v1/messages", json=message(**more))).status_code == 200
        effort = message(output_config={"effort": "low"}) | {"messages": begun}
        assert (await http.post("/v1/messages", json=effort)).status_code == 200
    options = [json.loads(ask.template_options or "{}").get("enable_thinking") for ask in node.asked]
    assert options == [False, True, None] and json.loads(node.asked[2].template_options)["reasoning_effort"] == "low"
    assert [ask.continues_final for ask in node.asked] == [False, False, True]


async def test_thoughts_text_and_calls_are_blocks() -> None:
    script = thinking("<think>\nhm", "m</think>\n\nLet me see.\n", CALL[:30], CALL[30:])
    async with served(script) as (_, http):
        whole = (await http.post("/v1/messages", json=message(tools=[TOOL]))).json()
        found = await events(http, message(tools=[TOOL]))
    thought, text, call = whole["content"]
    assert thought["type"] == "thinking" and thought["thinking"].strip() == "hmm" and thought["signature"] == ""
    assert text["type"] == "text" and text["text"].strip() == "Let me see."
    assert call["type"] == "tool_use" and call["name"] == "weather" and call["input"] == {"place": "Paris"}
    assert whole["stop_reason"] == "tool_use"

    assert [found[0]["type"], *(event["type"] for event in found[-2:])] == [
        "message_start",
        "message_delta",
        "message_stop",
    ]
    assert found[0]["message"]["content"] == [] and found[0]["message"]["usage"]["cache_read_input_tokens"] == 4
    assert found[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    kinds, said = list[str](), {0: "", 1: "", 2: ""}
    for one in found[1:-2]:
        if one["type"] == "content_block_start":
            assert one["index"] == len(kinds), "one block after the other"
            kinds.append(one["content_block"]["type"])
        elif one["type"] == "content_block_delta":
            assert one["index"] == len(kinds) - 1
            said[one["index"]] += next(value for name, value in one["delta"].items() if name != "type")
    assert kinds == ["thinking", "text", "tool_use"]
    assert sum(one["type"] == "content_block_stop" for one in found) == 3
    assert said[0].strip() == "hmm" and said[1].strip() == "Let me see." and json.loads(said[2]) == {"place": "Paris"}


async def test_an_empty_answer_is_an_empty_text() -> None:
    async with served(answer()) as (_, http):
        whole = (await http.post("/v1/messages", json=message())).json()
        found = await events(http, message())
    assert whole["content"] == [{"type": "text", "text": ""}]
    assert [one["type"] for one in found] == ["message_start", "message_delta", "message_stop"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"messages": []}, "length >= 1"),
        (message(temperature=5), "temperature"),
        (message([{"type": "image", "source": {"type": "base64"}}]), "'image'"),
        (message(tools=[{"type": "web_search_20250305", "name": "web_search"}]), "web_search"),
        (message(tool_choice={"type": "any"}), "needs tools"),
        (message(tool_choice={"type": "some"}), "one of any, auto, none, tool"),
        (message(tools=[TOOL], tool_choice={"type": "tool", "name": "no"}), "'no'"),
        (message(max_tokens=-1), "max_tokens"),
        (message(mcp_servers=[{"type": "url", "url": "https://tools.example", "name": "t"}]), "mcp_servers"),
        (message(container="c_1"), "container"),
    ],
)
async def test_refusals_have_the_shape_of_the_api(body: object, says: str) -> None:
    async with served() as (node, http):
        for path in ("/v1/messages", "/v1/messages/count_tokens"):
            if "count" in path and says in ("temperature", "max_tokens"):
                continue
            refused = await http.post(path, json=body)
            told = refused.json()
            assert refused.status_code == 400 and told["type"] == "error"
            assert told["error"]["type"] == "invalid_request_error" and says in told["error"]["message"]
    assert not node.asked


async def test_failures_and_wrong_paths_have_it_too() -> None:
    async with served([ROUTE, BUSY], [ROUTE, BEGUN, Text(text="Hi"), BUSY]) as (_, http):
        busy = await http.post("/v1/messages", json=message())
        assert busy.status_code == 429 and busy.json()["error"]["type"] == "rate_limit_error"
        assert busy.headers["retry-after"] == "3"
        found = await events(http, message())
        assert found[-1] == {"type": "error", "error": {"type": "rate_limit_error", "message": BUSY.message}}
        wrong = await http.get("/v1/messages")
        assert wrong.status_code == 405 and wrong.json()["type"] == "error"
        missing = await http.post("/v1/messages/batches", json={})
        assert missing.status_code == 404 and missing.json()["error"]["type"] == "not_found_error"
    async with served(access=Access(keys=(unnamed(KEY),))) as (_, http):
        unknown = await http.post("/v1/messages", json=message())
        assert unknown.status_code == 401 and unknown.json()["error"]["type"] == "authentication_error"
        assert (await http.post("/v1/messages", json=message(), headers={"x-api-key": KEY})).status_code == 200


class Counting(ScriptedNode):
    aliases = {"claude-sonnet": "fake"}  # noqa: RUF012

    asked: Any = None

    async def tokenize(self, conversation: Conversation, client: bytes = b"", model: str = "") -> list[int]:
        Counting.asked = client, conversation
        return [1] * (len(conversation.messages) + len(json.loads(conversation.tools or "[]")))


async def test_tokens_are_counted_with_the_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.node.serve.openai.test_api.ScriptedNode", Counting)
    async with served() as (_, http):
        body = message(system="s", tools=[TOOL]) | {"model": "claude-sonnet"}
        assert (await http.post("/v1/messages/count_tokens", json=body)).json() == {"input_tokens": 3}
        other = await http.post("/v1/messages/count_tokens", json=message() | {"model": "other"})
        assert other.status_code == 404 and other.json()["error"]["type"] == "not_found_error"


async def test_counting_takes_the_share_of_its_key_and_renders_as_the_answer_would(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Work without a client would be the owner's, which comes before that of every key."""
    monkeypatch.setattr("tests.node.serve.openai.test_api.ScriptedNode", Counting)
    key = unnamed(KEY)
    async with served(access=Access(keys=(key,))) as (_, http):
        http.headers["x-api-key"] = KEY
        begun = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well"}]
        body = message() | {"messages": begun, "thinking": {"type": "disabled"}}
        assert (await http.post("/v1/messages/count_tokens", json=body)).json() == {"input_tokens": 2}
        client, conversation = Counting.asked
        assert client == key.client
        assert conversation.continues_final and json.loads(conversation.options) == {"enable_thinking": False}
        await http.post("/api/tokenize", json={"messages": begun})
        assert Counting.asked[0] == key.client
