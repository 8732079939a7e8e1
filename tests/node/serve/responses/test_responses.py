"""The Responses API in front of a scripted node, over HTTP and through OpenAI's own types."""

import json
import tracemalloc
from typing import Any

import httpx
import msgspec
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from mycelia.node.serve.api_keys import unnamed
from mycelia.node.serve.gateway import Access
from mycelia.node.serve.responses import store as stores
from mycelia.node.serve.responses.requests import to_chat
from mycelia.node.serve.responses.store import ResponseStore
from mycelia.node.serve.responses.types import Item, ResponseBody, ResponsesRequest
from mycelia.proto.wire.messages import Text
from tests.node.serve.anthropic.test_messages import CALL, thinking
from tests.node.serve.openai.test_api import BEGUN, BUSY, KEY, OTHER_KEY, ROUTE, answer, served

TOOL = {"type": "function", "name": "weather", "description": "d", "parameters": {"type": "object"}, "strict": True}
PATCH = {"type": "custom", "name": "patch", "description": "d", "format": {"type": "text"}}
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


async def respond(http: httpx.AsyncClient, **body: object) -> dict[str, Any]:
    told = await http.post("/v1/responses", json={"model": "fake", **body})
    assert told.status_code == 200, told.text
    Response.model_validate(told.json(), strict=False)
    return dict(told.json())


async def events(http: httpx.AsyncClient, **body: object) -> list[dict[str, Any]]:
    streamed = await http.post("/v1/responses", json={"model": "fake", "stream": True, **body})
    assert streamed.status_code == 200 and streamed.headers["content-type"].startswith("text/event-stream")
    found: list[dict[str, Any]] = []
    for part in streamed.text.strip().split("\n\n"):
        name, data = part.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        EVENT.validate_python(found[-1])
        assert name == f"event: {found[-1]['type']}" and found[-1]["sequence_number"] == len(found) - 1
    return found


async def test_a_response_in_one_piece() -> None:
    async with served(answer("Hi", " there"), answer("Hi", reason="length")) as (node, http):
        told = await respond(http, input="hello", instructions="Be brief.", max_output_tokens=7, temperature=0)
        cut = await respond(http, input=[{"role": "user", "content": [{"type": "input_text", "text": "a"}]}])
    assert told["id"].startswith("resp_") and told["status"] == "completed" and told["object"] == "response"
    (item,) = told["output"]
    assert item["content"] == [{"type": "output_text", "text": "Hi there", "annotations": [], "logprobs": []}]
    assert told["usage"]["input_tokens"] == 9 and told["usage"]["input_tokens_details"]["cached_tokens"] == 4
    assert cut["status"] == "incomplete" and cut["incomplete_details"] == {"reason": "max_output_tokens"}
    ask = node.asked[0]
    assert [(turn.role, turn.content) for turn in ask.messages] == [("system", "Be brief."), ("user", "hello")]
    assert ask.sampling.max_tokens == 7 and ask.sampling.temperature == 0


async def test_thoughts_text_and_calls_are_items() -> None:
    script = thinking("<think>\nhm", "m</think>\n\nLet me see.\n", CALL[:30], CALL[30:])
    async with served(script) as (_, http):
        whole = await respond(http, input="hello", tools=[TOOL, {"type": "web_search"}])
        found = await events(http, input="hello", tools=[TOOL])
    for response in (whole, found[-1]["response"]):
        thought, text, call = response["output"]
        assert thought["type"] == "reasoning" and thought["content"][0]["text"].strip() == "hmm"
        assert text["content"][0]["text"].strip() == "Let me see."
        assert call["type"] == "function_call" and call["name"] == "weather"
        assert json.loads(call["arguments"]) == {"place": "Paris"}
    kinds = [event["type"].removeprefix("response.") for event in found]
    assert kinds[:2] == ["created", "in_progress"] and kinds[-1] == "completed"
    assert kinds.count("output_item.added") == kinds.count("output_item.done") == 3
    said = "".join(event["delta"] for event in found if event["type"] == "response.function_call_arguments.delta")
    assert json.loads(said) == {"place": "Paris"}
    added = [event for event in found if event["type"] == "response.output_item.added"]
    assert [event["output_index"] for event in added] == [0, 1, 2]
    ids = {event["item"]["id"] for event in added}
    assert {event["item_id"] for event in found if "item_id" in event} == ids and len(ids) == 3


async def test_a_custom_tool_gets_a_text() -> None:
    script = thinking('<tool_call>{"name": "patch", "arguments": {"input": "*** x"}}</tool_call>')
    async with served(script) as (node, http):
        (call,) = (await respond(http, input="hello", tools=[PATCH]))["output"]
        found = await events(http, input="hello", tools=[PATCH])
    assert call["type"] == "custom_tool_call" and call["input"] == "*** x"
    assert found[-1]["response"]["output"][0]["input"] == "*** x"
    (tool,) = json.loads(node.asked[0].tools)
    assert tool["function"]["parameters"]["required"] == ["input"]


async def test_tools_of_a_namespace_are_told_and_those_that_openai_runs_are_not() -> None:
    tools = [{"type": "namespace", "name": "files", "tools": [TOOL, {"type": "new"}]}, {"type": "web_search"}]
    async with served(thinking(CALL)) as (node, http):
        (call,) = (await respond(http, input="hello", tools=tools))["output"]
    assert call["name"] == "weather" and call["namespace"] == "files"
    assert [tool["function"]["name"] for tool in json.loads(node.asked[0].tools)] == ["weather"]


async def test_only_the_allowed_tools_are_told() -> None:
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "weather"}]}
    async with served(thinking(CALL)) as (node, http):
        await respond(http, input="hello", tools=[TOOL | {"name": "other"}, TOOL], tool_choice=allowed)
    assert [tool["function"]["name"] for tool in json.loads(node.asked[0].tools)] == ["weather"]
    assert "other" not in node.asked[0].sampling.grammar


def test_tools_and_allowed_names_are_not_compared_one_by_one() -> None:
    tools = [{"type": "namespace", "name": "x", "tools": [{"type": "function", "name": "a"}] * 128}] * 128
    allowed: dict[str, Any] = {
        "type": "allowed_tools",
        "tools": [{"name": f"b{n}"} for n in range(60_000)] + [{"name": []}],
    }
    body = {"model": "fake", "input": "x", "tools": tools, "tool_choice": allowed}
    assert to_chat(msgspec.convert(body, ResponsesRequest), []).tools is None  # (that took 8 s)


async def test_the_last_item_of_a_stream_that_was_cut_is_incomplete() -> None:
    async with served(answer("Hi", reason="length")) as (_, http):
        found = await events(http, input="x")
    (done,) = [event for event in found if event["type"] == "response.output_item.done"]
    assert done["item"]["status"] == "incomplete" and found[-1]["response"]["output"][0]["status"] == "incomplete"


async def test_items_of_a_conversation_reach_the_node_as_turns() -> None:
    items = [
        {"role": "developer", "content": "Be brief."},
        {"type": "message", "role": "user", "content": "a"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Let me see."}]},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"place": "Paris"}'},
        {"type": "function_call", "call_id": "c2", "name": "weather", "arguments": '{"place": "Rome"}'},
        {"type": "function_call_output", "call_id": "c1", "output": "rain"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "sun"}]},
    ]
    async with served() as (node, http):
        await respond(http, input=items, tools=[TOOL], reasoning={"effort": "low", "summary": "auto"})
        form = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}
        await respond(http, input="x", text={"format": form, "verbosity": "low"})
    told = node.asked[0].messages
    assert [(turn.role, turn.content) for turn in told] == [
        ("system", "Be brief."),
        ("user", "a"),
        ("assistant", "Let me see."),
        ("tool", "rain"),
        ("tool", "sun"),
    ]
    extras = json.loads(told[2].extras)
    assert extras["reasoning_content"] == "hm" and [call["id"] for call in extras["tool_calls"]] == ["c1", "c2"]
    assert json.loads(node.asked[0].template_options)["reasoning_effort"] == "low"
    assert node.asked[1].sampling.grammar_kind != "gbnf" or node.asked[1].sampling.grammar


async def test_a_later_request_goes_on_from_an_earlier_response() -> None:
    keys = {"authorization": f"Bearer {KEY}"}
    async with served(answer("Hi"), answer("You."), access=Access(keys=(unnamed(KEY), unnamed(OTHER_KEY)))) as (
        node,
        http,
    ):
        http.headers.update(keys)
        first = await respond(http, input="I am Ada.", instructions="Be brief.")
        second = await respond(http, input="Who am I?", previous_response_id=first["id"])
        third = (await events(http, input="Sure?", previous_response_id=second["id"]))[-1]["response"]
        assert third["previous_response_id"] == second["id"]
        contents = [turn.content for turn in node.asked[2].messages]
        assert contents == ["I am Ada.", "Hi", "Who am I?", "You.", "Sure?"], "instructions are not carried over"
        assert (await http.get(f"/v1/responses/{first['id']}")).json() == first
        other = {"authorization": f"Bearer {OTHER_KEY}"}
        assert (await http.get(f"/v1/responses/{first['id']}", headers=other)).status_code == 404
        stolen = {"input": "x", "previous_response_id": first["id"]}
        assert (await http.post("/v1/responses", json=stolen, headers=other)).status_code == 404
        assert (await http.delete(f"/v1/responses/{first['id']}")).json()["deleted"]
        gone = await http.post("/v1/responses", json=stolen)
        assert gone.status_code == 404 and "previous_response_id" in gone.json()["error"]["param"]
        unstored = await respond(http, input="x", store=False)
        assert (await http.get(f"/v1/responses/{unstored['id']}")).status_code == 404 and not unstored["store"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"input": [{"type": "item_reference", "id": "x"}]}, "item_reference"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input_image"),
        ({"input": "x", "background": True}, "background"),
        ({"input": "x", "top_logprobs": 2}, "top_logprobs"),
        ({"input": "x", "tools": [{"type": "mcp", "server_label": "t", "server_url": "https://t.example"}]}, "mcp"),
        ({"input": "x", "conversation": "c"}, "conversation"),
        ({"input": "x", "tools": [{"type": "shell"}], "tool_choice": "required"}, "needs tools"),
        ({"input": "x", "tool_choice": "required"}, "needs tools"),
        ({"input": []}, "input is empty"),
        ({"input": "x", "temperature": 9}, "temperature"),
        ({"input": [{"role": "king", "content": "x"}]}, "one of assistant, developer, function, system, tool, user"),
    ],
)
async def test_refusals_name_the_reason(body: dict[str, object], says: str) -> None:
    async with served() as (node, http):
        refused = await http.post("/v1/responses", json=body)
    assert refused.status_code == 400 and says in json.dumps(refused.json()["error"]) and not node.asked


async def test_a_failure_is_a_status_or_an_event() -> None:
    async with served([ROUTE, BUSY], [ROUTE, BEGUN, Text(text="Hi"), BUSY]) as (_, http):
        assert (await http.post("/v1/responses", json={"input": "x"})).status_code == 429
        last = (await events(http, input="x"))[-1]
    assert last["type"] == "response.failed" and last["response"]["error"]["code"] == "rate_limit_exceeded"


def body(number: int) -> ResponseBody:
    return ResponseBody(f"resp_{number}", 0, "m", "completed", [])


def test_the_store_is_bounded_and_takes_from_the_client_that_has_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "MAX_STORED_BYTES", 20_000)
    monkeypatch.setattr(stores, "MAX_ITEMS_BYTES", 5_000)
    store = ResponseStore()
    store.add(b"small", body(0), [Item(role="user", content="mine")])
    for number in range(1, 100):
        store.add(b"greedy", body(number), [Item(role="user", content="x" * 1_000)])
        assert store.num_bytes <= 20_000
    assert store.items(b"small", "resp_0") == [Item(role="user", content="mine")]
    assert store.items(b"greedy", "resp_99") and not store.items(b"greedy", "resp_1") and len(store) < 15
    store.add(b"small", body(100), [Item(role="user", content="x" * 6_000)])
    assert store.find(b"small", "resp_100") is None, "too long to keep"
    assert not store.remove(b"greedy", "resp_0") and store.remove(b"small", "resp_0")
    monkeypatch.setattr(stores, "MAX_STORED", 2)
    for number in range(5):
        store.add(b"a", body(number), [])
    assert len(store) == 2
    assert store.find(b"a", "resp_4") == msgspec.json.encode(body(4))


def test_what_is_stored_takes_the_memory_that_is_counted() -> None:
    store, metadata = ResponseStore(), json.dumps({"a": [f"{number % 100:02}" for number in range(50_000)]})
    tracemalloc.start()
    try:
        for number in range(5):
            made = body(number)
            made.metadata = json.loads(metadata)
            store.add(b"a", made, [])
        del made
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken < 1.5 * store.num_bytes, "as Python's values it would be twelve times as much"
