"""OpenAI's HTTP API in front of a scripted node: shapes, streams, refusals, keys. Real clients: tests/interop."""

import base64
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
import trio
import trio.testing
from starlette.types import Message

from mycelia.node.errors import BusyError, FailedError, no_such_model
from mycelia.node.peer_id import peer_text
from mycelia.node.serve.api import Embedded
from mycelia.node.serve.api_keys import unnamed
from mycelia.node.serve.gateway import Access, serve_gateway
from mycelia.node.serve.http.server import bind_api
from mycelia.node.serve.openai import answers as openai_answers
from mycelia.node.serve.openai.answers import OpenAiAnswer
from mycelia.node.serve.openai.request_types import ChatRequest
from mycelia.node.serve.openai.requests import wanted_chat
from mycelia.node.serve.openai.shapes import ChatShape
from mycelia.node.telemetry.usage import UsageMeter
from mycelia.node.views.state import ModelRow, NodeState, TreeRowView
from mycelia.proto.admission.retry_times import MAX_HELD_S
from mycelia.proto.wire.errors import LocalError
from mycelia.proto.wire.messages import (
    KEEP_ALIVE,
    Answered,
    Ask,
    Begun,
    Conversation,
    EntryFrame,
    Failed,
    Logprob,
    Route,
    Text,
    TokenLogprobs,
    Usage,
)
from tests.node.serve.unobserved import Unobserved

DEADLINE_S = 30.0
PEER = b"\x00\x24\x08\x01\x12\x20" + bytes(32)
USAGE = Usage(prompt_tokens=9, cached_tokens=4, completion_tokens=2, queue_ms=0, prefill_ms=0, decode_ms=0)
ROUTE = Route(chosen=PEER, reason="the only nöde", prompt_tokens=9, candidates=())
BEGUN = Begun(served_by=PEER, cached_tokens=4)
ANSWERED = Answered(served_by=PEER, reason="stop", usage=USAGE, ttft_ms=12, resumed=0)
BUSY = Failed(code="overloaded", message="all nodes are busy", retryable=True, retry_after_ms=2_001)
KEY, OTHER_KEY = "k" * 24, "o" * 24
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALL = '<tool_call>{"name": "weather", "arguments": {"place": "Paris"}}</tool_call>'


def logprobs(text: str) -> TokenLogprobs:
    entry = Logprob(token=1, text=text.encode(), logprob=-0.5)
    return TokenLogprobs(chosen=entry, top=(entry, entry))


def answer(*pieces: str, reason: str = "stop") -> list[EntryFrame]:
    return [ROUTE, BEGUN, *(Text(text=piece) for piece in pieces), msgspec.structs.replace(ANSWERED, reason=reason)]


class ScriptedNode(Unobserved):
    """Answers each prompt with the next of its scripts, then repeats the last. A script without a last frame waits for
    ever."""

    model = "fake"

    def __init__(self, *scripts: Sequence[EntryFrame]) -> None:
        self._scripts = list(scripts)
        self.asked: list[Ask] = []
        self.clients: list[bytes] = []
        self.deadlines_s: list[float | None] = []
        self.num_running = 0
        self.left = trio.Event()
        self.embedding = trio.Event()

    @asynccontextmanager
    async def ask(
        self, ask: Ask, deadline_s: float | None = None, client: bytes = b""
    ) -> AsyncIterator[AsyncIterator[EntryFrame]]:
        self.asked.append(ask)
        self.clients.append(client)
        self.deadlines_s.append(deadline_s)
        script = self._scripts.pop(0) if len(self._scripts) > 1 else self._scripts[0]
        send, receive = trio.open_memory_channel[EntryFrame](100)
        for frame in script:
            send.send_nowait(frame)
        if isinstance(script[-1], Answered | Failed):
            send.close()
        self.num_running += 1
        try:
            yield receive
        finally:
            self.num_running -= 1
            self.left.set()

    async def models(self) -> list[ModelRow]:
        return [ModelRow("fake", 1, 4_096, reuse="prefix"), ModelRow("org/other", 7, 2_048)]

    def state(self) -> NodeState:
        raise ZeroDivisionError("a bug")

    async def tree(self, client: bytes = b"") -> list[TreeRowView]:
        return []

    async def embed(self, texts: Sequence[str | Sequence[int]], client: bytes = b"", model: str = "") -> Embedded:
        if model not in ("", self.model):
            raise FailedError(no_such_model(model, [self.model]), "unknown_model")
        match texts[0]:
            case "bad":
                raise LocalError("no numbers for it")
            case "busy":
                raise BusyError("too many wait")
            case "slow":
                self.num_running += 1
                self.embedding.set()
                try:
                    await trio.sleep_forever()
                finally:
                    self.num_running -= 1
                    self.left.set()
        return Embedded([np.array([1, len(text)], np.float32) for text in texts], sum(map(len, texts)))

    async def wait_embedding(self, then: trio.CancelScope) -> None:
        await self.embedding.wait()
        then.cancel()

    async def tokenize(self, conversation: Conversation, client: bytes = b"", model: str = "") -> list[int]:
        return [1]


@asynccontextmanager
async def served(
    *scripts: Sequence[EntryFrame],
    access: Access = Access(),
    usage: UsageMeter | None = None,
) -> AsyncIterator[tuple[ScriptedNode, httpx.AsyncClient]]:
    node = ScriptedNode(*(scripts or (answer("Hi", " there"),)))
    listener = bind_api("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_gateway, node, listener, access, None, usage)
            async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=DEADLINE_S) as http:
                yield node, http
            nursery.cancel_scope.cancel()


def chat(content: str = "hello", **more: object) -> dict[str, object]:
    return {"model": "fake", "messages": [{"role": "user", "content": content}], **more}


def events(text: str) -> list[Any]:
    """The events of a stream without its end, which must be there."""
    lines = [line for line in text.split("\n\n") if line and not line.startswith(":")]
    assert lines[-1] == "data: [DONE]" and all(line.startswith("data: ") for line in lines)
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


# --- shapes ---------------------------------------------------------------------------------------------------------


async def test_a_chat_in_one_piece() -> None:
    async with served() as (node, http):
        response = await http.post("/v1/chat/completions", json=chat(max_tokens=5, temperature=0, timeout_s=3))
    body = response.json()
    assert response.status_code == 200 and body["object"] == "chat.completion" and body["model"] == "fake"
    (choice,) = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": "Hi there", "refusal": None}
    assert (choice["index"], choice["finish_reason"], choice["logprobs"]) == (0, "stop", None)
    assert body["usage"] == {
        "prompt_tokens": 9,
        "completion_tokens": 2,
        "total_tokens": 11,
        "prompt_tokens_details": {"cached_tokens": 4},
    }
    told = {name: value for name, value in response.headers.items() if name.startswith("x-mycelia-")}
    assert told == {
        "x-mycelia-served-by": peer_text(PEER),
        "x-mycelia-cached-tokens": "4",
        "x-mycelia-ttft-ms": "12",
        "x-mycelia-route": "the only n?de",
    }
    (ask,) = node.asked
    assert ask.sampling.max_tokens == 5 and ask.sampling.temperature == 0 and node.deadlines_s == [3.0]


async def test_a_streamed_chat() -> None:
    body = chat(stream=True, stream_options={"include_usage": True})
    async with served() as (_, http):
        response = await http.post("/v1/chat/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-mycelia-served-by"] == peer_text(PEER)
    *chunks, last = events(response.text)
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""},
        {"content": "Hi"},
        {"content": " there"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, "stop"]
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == [] and last["usage"]["total_tokens"] == 11
    assert len({chunk["id"] for chunk in [*chunks, last]}) == 1


async def test_a_stream_tells_no_usage_unless_asked() -> None:
    async with served() as (_, http):
        response = await http.post("/v1/chat/completions", json=chat(stream=True))
    assert not any("usage" in chunk for chunk in events(response.text))


@pytest.mark.parametrize("stream", [False, True])
async def test_several_choices_are_drawn_apart_and_compute_their_prompt_once(stream: bool) -> None:
    body = chat(n=3, seed=2**32 - 2, stream=stream) | ({"stream_options": {"include_usage": True}} if stream else {})
    async with served(answer("a"), answer("b", reason="length"), answer("c")) as (node, http):
        response = await http.post("/v1/chat/completions", json=body)
    assert sorted(ask.sampling.seed for ask in node.asked) == [0, 1, 2**32 - 2]
    if stream:
        *chunks, last = events(response.text)
        said = ["", "", ""]
        for chunk in chunks:
            said[chunk["choices"][0]["index"]] += chunk["choices"][0]["delta"].get("content", "")
        usage = last["usage"]
    else:
        said = [choice["message"]["content"] for choice in response.json()["choices"]]
        usage = response.json()["usage"]
    assert sorted(said) == ["a", "b", "c"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (9, 6)


async def test_log_probabilities() -> None:
    frames: list[EntryFrame] = [ROUTE, BEGUN, Text(text="éx", logprobs=(logprobs("é"), logprobs("x"))), ANSWERED]
    async with served(frames) as (node, http):
        wanted = chat(logprobs=True, top_logprobs=1)
        content = (await http.post("/v1/chat/completions", json=wanted)).json()["choices"][0]["logprobs"]["content"]
        text = {"model": "fake", "prompt": "x", "logprobs": 1}
        columns = (await http.post("/v1/completions", json=text)).json()["choices"][0]["logprobs"]
    top = {"token": "é", "logprob": -0.5, "bytes": [0xC3, 0xA9]}
    assert content[0] == top | {"top_logprobs": [top]} and len(content) == 2
    assert columns["tokens"] == ["é", "x"] and columns["text_offset"] == [0, 1]
    assert columns["top_logprobs"][0] == {"é": -0.5} and columns["token_logprobs"] == [-0.5, -0.5]
    assert [ask.sampling.logprobs for ask in node.asked] == [1, 1]


async def test_texts_and_tokens_are_prompts_too() -> None:
    async with served() as (node, http):
        many = {"model": "fake", "prompt": ["Once", "Twice"], "n": 2}
        body = (await http.post("/v1/completions", json=many)).json()
        assert body["object"] == "text_completion" and [c["index"] for c in body["choices"]] == [0, 1, 2, 3]
        assert body["choices"][3]["text"] == "Hi there" and body["usage"]["prompt_tokens"] == 18
        for prompt in ([1, 2], [[1, 2]]):
            assert (await http.post("/v1/completions", json={"prompt": prompt})).status_code == 200
        streamed = await http.post("/v1/completions", json={"prompt": "Once", "stream": True})
    assert sorted(ask.text for ask in node.asked[:4]) == ["Once", "Once", "Twice", "Twice"]
    assert {ask.tokens for ask in node.asked[4:6]} == {b"\x01\x00\x00\x00\x02\x00\x00\x00"}
    assert "".join(chunk["choices"][0]["text"] for chunk in events(streamed.text)) == "Hi there"


async def test_usage_tells_when_an_answer_went_on_elsewhere() -> None:
    moved = [*answer("Hi")[:-1], msgspec.structs.replace(ANSWERED, resumed=2)]
    async with served(moved, answer("Hi")) as (_, http):
        first = (await http.post("/v1/chat/completions", json=chat())).json()["usage"]
        second = (await http.post("/v1/chat/completions", json=chat())).json()["usage"]
    assert first["x-mycelia-resumed"] == 2 and "x-mycelia-resumed" not in second


async def test_models() -> None:
    async with served() as (_, http):
        listed = (await http.get("/v1/models")).json()
        other = (await http.get("/v1/models/org/other")).json()
        missing = await http.get("/v1/models/none")
    assert [(row["id"], row["nodes"], row["object"]) for row in listed["data"]] == [
        ("fake", 1, "model"),
        ("org/other", 7, "model"),
    ]
    assert [row.get("reuse") for row in listed["data"]] == ["prefix", None]
    assert other["id"] == "org/other" and missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"


async def test_embeddings() -> None:
    async with served() as (_, http):

        async def post(**body: object) -> httpx.Response:
            return await http.post("/v1/embeddings", json=body)

        one = (await post(model="fake", input="ab")).json()
        many = (await post(input=["ab", [3, 4, 5]], encoding_format="base64", tokenizer="fake")).json()
        tokens = (await post(input=[1, 2, 3, 4], tokenizer="fake")).json()
        refused = [
            await post(model="org/other", input="x"),
            await post(input="x", dimensions=4),
            await post(input=""),
            await post(input=["x", ""]),
            await post(input=["x"] * 2_049),
            await post(input=[-1]),
            await post(input="bad"),
            await post(input="busy"),
        ]
    assert one == {
        "object": "list",
        "model": "fake",
        "data": [{"object": "embedding", "index": 0, "embedding": [1.0, 2.0]}],
        "usage": {"prompt_tokens": 2, "total_tokens": 2},
    }
    decoded = [np.frombuffer(base64.b64decode(row["embedding"]), "<f4").tolist() for row in many["data"]]
    assert decoded == [[1.0, 2.0], [1.0, 3.0]] and many["usage"]["total_tokens"] == 5
    assert tokens["usage"]["prompt_tokens"] == 4 and len(tokens["data"]) == 1
    assert [response.status_code for response in refused] == [404, 400, 400, 400, 400, 400, 400, 429]
    assert refused[-1].headers["retry-after"] == "1" and refused[-1].json()["error"]["code"] == "rate_limit_exceeded"
    assert refused[-2].json()["error"]["message"] == "no numbers for it"


async def test_a_client_that_leaves_takes_its_embeddings_along() -> None:
    async with served() as (node, http), trio.open_nursery() as nursery:
        with trio.CancelScope() as leaving:
            nursery.start_soon(node.wait_embedding, leaving)
            await http.post("/v1/embeddings", json={"input": "slow"})
        await node.left.wait()
        assert node.num_running == 0


async def test_what_a_conversation_may_hold() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"place": "Paris"}'}}
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "rain", "tool_call_id": "c1"},
    ]
    async with served() as (node, http):
        response = await http.post("/v1/chat/completions", json={"messages": messages, "tools": [TOOL], "user": "me"})
    assert response.status_code == 200
    turns = node.asked[0].messages
    assert [turn.role for turn in turns] == ["system", "user", "assistant", "tool"]
    assert turns[1].content == "ab" and json.loads(turns[3].extras) == {"tool_call_id": "c1"}
    (told,) = json.loads(turns[2].extras)["tool_calls"]
    assert told["function"]["arguments"] == {"place": "Paris"}, "templates take objects"
    assert json.loads(node.asked[0].tools)[0]["function"]["name"] == "weather"


# --- tools and structured output ------------------------------------------------------------------------------------


async def test_a_call_of_a_function() -> None:
    async with served(answer("Let me see.\n", CALL[:20], CALL[20:])) as (_, http):
        whole = (await http.post("/v1/chat/completions", json=chat(tools=[TOOL]))).json()["choices"][0]
        streamed = await http.post("/v1/chat/completions", json=chat(tools=[TOOL], stream=True))
    assert whole["finish_reason"] == "tool_calls" and whole["message"]["content"] == "Let me see."
    (call,) = whole["message"]["tool_calls"]
    assert call["function"] == {"name": "weather", "arguments": '{"place": "Paris"}'} and call["id"]
    deltas = [chunk["choices"][0]["delta"] for chunk in events(streamed.text)]
    assert "".join(delta.get("content", "") for delta in deltas) == "Let me see."
    (first, *more) = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert first["index"] == 0 and first["type"] == "function" and first["id"].isalnum() and len(first["id"]) == 9
    assert first["function"]["name"] == "weather" and all({*part} == {"index", "function"} for part in more)
    assert "".join(part["function"]["arguments"] for part in (first, *more)) == call["function"]["arguments"]


async def test_an_answer_that_is_nothing_but_a_call_has_no_content() -> None:
    async with served(answer(CALL)) as (_, http):
        choice = (await http.post("/v1/chat/completions", json=chat(tools=[TOOL]))).json()["choices"][0]
    assert choice["message"]["content"] is None


async def test_calls_are_text_where_none_may_be_made() -> None:
    async with served(answer(CALL)) as (node, http):
        for body in (chat(), chat(tools=[TOOL], tool_choice="none")):
            choice = (await http.post("/v1/chat/completions", json=body)).json()["choices"][0]
            assert choice["message"]["content"] == CALL and choice["finish_reason"] == "stop"
    assert not any(ask.tools for ask in node.asked)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
async def test_a_call_that_must_be_made_fits_its_schema(choice: object) -> None:
    async with served(answer('{"name": "weather", "arguments": {}}')) as (node, http):
        body = chat(tools=[TOOL], tool_choice=choice)
        told = (await http.post("/v1/chat/completions", json=body)).json()["choices"][0]
    assert told["finish_reason"] == "tool_calls"
    sampling = node.asked[0].sampling
    assert sampling.grammar_kind == "json_schema"
    assert json.loads(sampling.grammar)["$defs"]["call0"]["properties"]["name"] == {"const": "weather"}


@pytest.mark.parametrize(
    ("wanted", "schema"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "array"}}}, {"type": "array"}),
    ],
)
async def test_structured_output(wanted: object, schema: object) -> None:
    async with served() as (node, http):
        assert (await http.post("/v1/chat/completions", json=chat(response_format=wanted))).status_code == 200
    grammar = node.asked[0].sampling.grammar
    assert (json.loads(grammar) if grammar else None) == schema


async def test_a_required_call_comes_before_a_response_format() -> None:
    """The form of an answer in text says nothing of a call; instructor sends both."""
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "array"}}}
    grammars: list[str] = []
    for body in (chat(tools=[TOOL], tool_choice="required"),) * 2:
        async with served() as (node, http):
            body = body | ({"response_format": wanted} if grammars else {})
            assert (await http.post("/v1/chat/completions", json=body)).status_code == 200
        grammars.append(node.asked[0].sampling.grammar)
    assert grammars[0] and grammars[0] == grammars[1]


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"messages": []}, "length >= 1"),
        ({"model": "fake"}, "messages"),
        (chat(max_tokens=1.5), "max_tokens"),
        (chat(temperature=3), "temperature"),
        (chat(temperature="warm"), "temperature"),
        (chat(n=99), "$.n"),
        (chat(stop=["a"] * 17), "$.stop"),
        (chat(stop="a" * 1_025), "stop"),
        (chat(top_logprobs=3), "needs logprobs"),
        (chat(logit_bias={"five": 1.0}), "logit_bias"),
        (chat(logit_bias=[["five", 1.0]]), "logit_bias"),
        (chat(logit_bias=[[5]]), "logit_bias"),
        (chat(logit_bias={"-5": 1.0}), "logit_bias"),
        (chat(logit_bias={str(token): 1.0 for token in range(1_025)}), "at most 1024"),
        (chat(prompt_logprobs=1, stream=True), "cannot be streamed"),
        (chat(functions=[{"name": "f"}]), "tools"),
        (chat(tools=[TOOL], tool_choice="some"), "'some' is unknown"),
        (chat(tools=[TOOL], tool_choice={"type": "function"}), "names no function"),
        (chat(stream_options={"include_usage": True}), "stream_options"),
        (chat(tool_choice="required"), "needs tools"),
        (chat(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "no"}}), "names 'no'"),
        (chat(response_format={"type": "json_schema"}), "needs a json_schema"),
        (chat(tools=[{"type": "function", "function": {"name": "a b"}}]), "tools"),
        ({"messages": [{"role": "user"}]}, "needs a content"),
        ({"messages": [{"role": "king", "content": "x"}]}, "one of assistant, developer, function, system, tool, user"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "read text"),
        (chat(timeout_s=-1), "timeout_s"),
    ],
)
async def test_a_chat_that_cannot_be_served_is_refused_with_the_reason(body: object, says: str) -> None:
    async with served() as (node, http):
        response = await http.post("/v1/chat/completions", json=body)
    error = response.json()["error"]
    assert response.status_code == 400 and error["type"] == "invalid_request_error" and says in error["message"]
    assert not node.asked


@pytest.mark.parametrize(
    ("prompt", "says"),
    [("", "empty"), ([""], "empty"), ([], "length"), ([1, "a"], "whole"), ([2**40], "whole"), (["a"] * 65, "too many")],
)
async def test_prompts_that_are_none(prompt: object, says: str) -> None:
    async with served() as (node, http):
        response = await http.post("/v1/completions", json={"prompt": prompt})
    assert response.status_code == 400 and says in response.json()["error"]["message"] and not node.asked


async def test_errors_of_http_have_the_shape_of_the_api_they_belong_to() -> None:
    async with served() as (_, http):
        assert (await http.get("/v1/nothing")).json()["error"]["type"] == "invalid_request_error"
        wrong = await http.get("/v1/chat/completions")
        assert wrong.status_code == 405 and wrong.json()["error"]
        deep = await http.post(
            "/v1/chat/completions", content=b'{"tools":' + b"[" * 100_000, headers={"content-type": "application/json"}
        )
        assert deep.status_code == 400
        assert (await http.get("/api/nothing")).json()["code"] == "bad_request"


@pytest.mark.parametrize(
    ("code", "status", "kind", "named"),
    [
        ("bad_request", 400, "invalid_request_error", "bad_request"),
        ("too_long", 400, "invalid_request_error", "context_length_exceeded"),
        ("unknown_model", 404, "invalid_request_error", "model_not_found"),
        ("overloaded", 429, "rate_limit_error", "rate_limit_exceeded"),
        ("no_peer", 503, "server_error", "no_peer"),
        ("deadline", 504, "server_error", "deadline"),
        ("what peers make up", 500, "server_error", "what peers make up"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_failed(code: str, status: int, kind: str, named: str, stream: bool) -> None:
    failed = msgspec.structs.replace(BUSY, code=code)
    async with served([ROUTE, failed]) as (_, http):
        response = await http.post("/v1/chat/completions", json=chat(stream=stream))
    assert response.status_code == status
    assert response.json()["error"] == {"message": failed.message, "type": kind, "code": named, "param": None}
    assert response.headers.get("retry-after") == ("3" if status in (429, 503) else None)
    assert len(response.headers["x-request-id"]) == 32, "what failed can be traced too"


async def test_a_failure_after_some_text_ends_the_stream_as_an_error() -> None:
    async with served([ROUTE, BEGUN, Text(text="Hi"), BUSY]) as (_, http):
        response = await http.post("/v1/chat/completions", json=chat(stream=True))
    assert response.status_code == 200 and "[DONE]" not in response.text
    assert json.loads(response.text.strip().splitlines()[-1].removeprefix("data: "))["error"]["message"] == BUSY.message


async def test_one_choice_that_fails_ends_the_others() -> None:
    async with served([ROUTE], [ROUTE, BUSY]) as (node, http):
        response = await http.post("/v1/chat/completions", json=chat(n=2))
        assert response.status_code == 429 and node.num_running == 0


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("reason", ["\x1b[31m red\r\nset-cookie: a=b\x00 ", "é\u202e\x0b" * 80, " \t", ""])
async def test_a_peers_words_in_a_header_are_printable(reason: str, stream: bool) -> None:
    route = msgspec.structs.replace(ROUTE, reason=reason)
    async with served([route, BEGUN, Text(text="Hi"), ANSWERED]) as (_, http):
        response = await http.post("/v1/chat/completions", json=chat(stream=stream))
    assert response.status_code == 200 and "Hi" in response.text
    told = response.headers["x-mycelia-route"]
    assert told.isascii() and (told.isprintable() or not told) and "set-cookie" not in response.headers


# --- time and going away --------------------------------------------------------------------------------------------


async def test_whoever_waits_long_for_the_first_text_is_told_that_it_is_coming(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_answers, "HOLD_S", 0.001)
    monkeypatch.setattr(openai_answers, "KEEP_ALIVE_S", 0.001)
    body = json.dumps(chat(stream=True)).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    async with served([ROUTE]) as (_, http), await trio.open_tcp_stream("127.0.0.1", http.base_url.port or 0) as stream:
        await stream.send_all(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
        seen = b""
        while seen.count(b": waiting for the next token\n\n") < 2:
            seen += await stream.receive_some()
    assert seen.startswith(b"HTTP/1.1 200") and b"x-mycelia-route" in seen


@pytest.mark.parametrize("stream", [True, False])
async def test_that_a_node_is_still_there_is_no_text(stream: bool) -> None:
    script: list[EntryFrame] = [
        ROUTE,
        KEEP_ALIVE,
        BEGUN,
        KEEP_ALIVE,
        Text(text="a"),
        KEEP_ALIVE,
        Text(text="b"),
        ANSWERED,
    ]
    async with served(script) as (_, http):
        response = await http.post("/v1/chat/completions", json=chat(stream=stream))
    if stream:
        before, comment, after = response.text.partition(": waiting for the next token\n\n")
        assert comment and '"content":"a"' in before and '"content":"b"' in after and ": waiting" not in after
    else:
        assert response.json()["choices"][0]["message"]["content"] == "ab"


class HoldingNode(ScriptedNode):
    """Holds every prompt for as long as entry nodes do, and then refuses it."""

    @asynccontextmanager
    async def ask(
        self, ask: Ask, deadline_s: float | None = None, client: bytes = b""
    ) -> AsyncIterator[AsyncIterator[EntryFrame]]:
        async def frames() -> AsyncGenerator[EntryFrame]:
            await trio.sleep(MAX_HELD_S)
            yield BUSY

        async with aclosing(frames()) as held:
            yield held


async def test_a_stream_that_is_held_at_the_entry_and_then_refused_is_no_200(
    autojump_clock: trio.testing.MockClock,
) -> None:
    wanted = wanted_chat(msgspec.convert(chat(stream=True), ChatRequest))
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    answer = OpenAiAnswer(HoldingNode([ROUTE]), wanted, ChatShape(wanted, "fake"), b"")
    await answer({}, trio.sleep_forever, send)
    assert sent[0]["status"] == 429 and (b"retry-after", b"3") in sent[0]["headers"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("script", [[ROUTE], [ROUTE, BEGUN, Text(text="Hi")]], ids=["before text", "after text"])
async def test_a_client_that_goes_away_cancels_all_that_it_asked(stream: bool, script: list[EntryFrame]) -> None:
    async with served(script) as (node, http):
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                await http.post("/v1/chat/completions", json=chat(stream=stream, n=2))

            nursery.start_soon(ask)
            while node.num_running < 2:
                await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        await node.left.wait()
        while node.num_running:
            await trio.testing.wait_all_tasks_blocked()


# --- keys -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/models", "/api/state", "/nothing"])
@pytest.mark.parametrize(
    ("given", "says"),
    [
        *((one, "an API key is needed") for one in ("", "Bearer", f"Basic {KEY}", KEY)),
        *((one, "none of the node's API keys") for one in ("Bearer wrong", f"Bearer {KEY}x")),
    ],
)
async def test_with_keys_nothing_is_told_without_one(path: str, given: str, says: str) -> None:
    async with served(access=Access(keys=(unnamed(KEY), unnamed(OTHER_KEY)))) as (_, http):
        response = await http.get(path, headers={"authorization": given})
    assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer"
    assert KEY not in response.text and says in response.text


async def test_keys_open_everything_from_everywhere_and_each_has_a_share_of_its_own() -> None:
    async with served(access=Access(keys=(unnamed(KEY), unnamed(OTHER_KEY)))) as (node, http):
        for key in (KEY, OTHER_KEY, KEY):
            headers = {"authorization": f"bearer {key}", "host": "node.example"}
            assert (await http.post("/v1/chat/completions", json=chat(), headers=headers)).status_code == 200
            turns = {"messages": [{"role": "user", "content": "x"}]}
            assert (await http.post("/api/ask", json=turns, headers=headers)).status_code == 200
    one, same, other = node.clients[0], node.clients[1], node.clients[2]
    assert one == same == node.clients[4] != other and len(one) == 16


async def test_without_keys_only_local_hosts_and_any_key_are_good() -> None:
    async with served() as (node, http):
        for host in ("localhost", "LOCALHOST:7118", "127.0.0.1:7118", "127.0.0.5:7118", "[::1]:7118", "[::1]"):
            assert (await http.get("/v1/models", headers={"host": host})).status_code == 200, host
        for host in ("node.example", "localhost.evil.example", "192.0.2.7:7118", "", "[::1", "127.0.0.1:80:80", "\xe9"):
            refused = await http.get("/v1/models", headers={b"host": host.encode("latin-1")})
            assert refused.status_code == 400 and "--api-key-file" in refused.json()["error"]["message"], host
        assert (await http.get("/v1/models", headers={"authorization": "Bearer none"})).status_code == 200
        await http.post("/v1/chat/completions", json=chat())
    assert node.clients == [b""]


async def test_scripts_of_web_pages_are_let_in_where_that_is_set() -> None:
    asks = {"origin": "https://chat.example", "access-control-request-method": "POST"}
    for origins, allowed in (((), None), (("https://chat.example",), "https://chat.example"), (("https://x",), None)):
        async with served(access=Access(keys=(unnamed(KEY),), origins=origins)) as (_, http):
            before = await http.options("/v1/chat/completions", headers=asks)
            assert before.headers.get("access-control-allow-origin") == allowed
            after = await http.get("/v1/models", headers={"origin": asks["origin"], "authorization": f"Bearer {KEY}"})
            assert after.headers.get("access-control-allow-origin") == allowed
