"""Hostile bodies for the paths of OpenAI's and Anthropic's APIs: an HttpError, or a valid request to a node."""

import json
import random
from typing import Any

import msgspec

from mycelia.node.serve.anthropic.requests import to_chat as message_to_chat
from mycelia.node.serve.anthropic.types import MessagesRequest
from mycelia.node.serve.http.errors import HttpError
from mycelia.node.serve.openai.embeddings import wanted_embeddings
from mycelia.node.serve.openai.request_types import ChatRequest, CompletionRequest, EmbeddingRequest, RerankRequest
from mycelia.node.serve.openai.requests import wanted_chat, wanted_completion
from mycelia.node.serve.openai.rerank import wanted_ranks
from mycelia.node.serve.responses.requests import to_chat as response_to_chat
from mycelia.node.serve.responses.types import ResponsesRequest
from mycelia.proto.wire.codec import decode, encode

_TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
_CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
_COMMON = {
    "model": "m",
    "stream": True,
    "stream_options": {"include_usage": True},
    "max_tokens": 5,
    "temperature": 0.5,
    "top_p": 0.5,
    "frequency_penalty": 1,
    "seed": 7,
    "n": 2,
    "stop": ["a", "b"],
    "top_k": 3,
    "min_p": 0.1,
    "repeat_penalty": 1.1,
    "timeout_s": 3,
}
_CHAT: dict[str, Any] = {
    **_COMMON,
    "messages": [
        {"role": "developer", "content": [{"type": "text", "text": "t"}]},
        {"role": "user", "content": "hello", "name": "n"},
        {"role": "assistant", "content": None, "tool_calls": [_CALL]},
        {"role": "tool", "content": "r", "tool_call_id": "c"},
    ],
    "logprobs": True,
    "top_logprobs": 2,
    "tools": [_TOOL],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
}
_CHAT_2 = {**_CHAT, "tool_choice": "auto", "response_format": {"type": "json_object"}}
_CHAT_3 = {"messages": [{"role": "user", "content": "x"}], "response_format": {"type": "json_schema"}}
_COMPLETION: dict[str, Any] = {**_COMMON, "prompt": ["a", "b"], "logprobs": 1}
_MESSAGE: dict[str, Any] = {
    "model": "m",
    "max_tokens": 5,
    "stream": True,
    "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "t"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "h", "signature": "s"},
                {"type": "tool_use", "id": "c", "name": "f", "input": {"a": 1}},
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": [{"type": "text"}]}]},
        {"role": "assistant", "content": "b"},
    ],
    "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}}],
    "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
    "stop_sequences": ["a"],
    "top_k": 3,
    "thinking": {"type": "enabled", "budget_tokens": 9},
    "output_config": {"effort": "low"},
}
_RESPONSE: dict[str, Any] = {
    "model": "m",
    "instructions": "i",
    "stream": True,
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "t"}]},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "h"}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"a": 1}'},
        {"type": "custom_tool_call", "call_id": "d", "name": "p", "input": "x"},
        {"type": "function_call_output", "call_id": "c", "output": "r"},
        {"type": "custom_tool_call_output", "call_id": "d", "output": [{"type": "output_text", "text": "t"}]},
    ],
    "tools": [{"type": "function", "name": "f", "parameters": {}}, {"type": "custom", "name": "p"}, {"type": "mcp"}],
    "text": {"format": {"type": "json_object"}},
    "reasoning": {"effort": "low"},
    "max_output_tokens": 5,
    "temperature": 0.5,
}
_BODIES = {
    "chat": (_CHAT, _CHAT_2, _CHAT_3),
    "completion": (_COMPLETION, {"prompt": [[1, 2], [3]]}, {"prompt": [1, 2]}),
    "message": (_MESSAGE, {"messages": [{"role": "user", "content": "x"}], "tool_choice": {"type": "any"}}),
    "response": (
        _RESPONSE,
        {"input": "x", "previous_response_id": "r", "tool_choice": {"type": "custom", "name": "p"}},
    ),
    "embedding": (
        {"input": ["a", "b"], "encoding_format": "base64"},
        {"input": [[1], [2]], "tokenizer": "a", "dimensions": 2},
    ),
    "rerank": (
        {"query": "q", "documents": ["a", {"text": "b", "title": "t"}], "top_n": 1, "return_documents": True},
        {"model": "a", "query": "q", "documents": ["a", ""], "top_n": None},
    ),
}
_ODD = (
    None,
    True,
    0,
    -1,
    1,
    2**32 - 1,
    2**32,
    2**64,
    -(2**63),
    10**30,
    1.5,
    -0.0,
    1e999,
    "",
    "m",
    "\x00",
    "\ud800",
    "é" * 99,
)

_UNITS = ("\n", " ", "a", "a\n", "\\", '"', "::=\n", "(a|", "{", "\ud800", "<|")
_LONG = ("grammar", "guided_regex", "guided_choice", "guided_grammar", "json_schema", "stop", "model")

Item = tuple[str, bytes]
"""The kind of body, and the body."""


class OpenAiBodies:
    """Bodies of POST requests below /v1."""

    name = "openai_bodies"

    def make(self, rng: random.Random) -> Item:
        kind = rng.choice(sorted(_BODIES))
        value = _spoiled(rng.choice(_BODIES[kind]), rng, rng.choice((0.0, 0.02, 0.1, 0.3)))
        if rng.random() < 0.01 and isinstance(value, dict):  # (what takes the square of a length is a hang)
            long = rng.choice(_UNITS) * rng.choice((1_000, 60_000))
            value |= {rng.choice((*_LONG, *value)): rng.choice((long, [long], {"a": long}, list(long[:60_000])))}
        text = json.dumps(value)
        if rng.random() < 0.02:
            depth = rng.randrange(100, 1_200)
            text = text.replace(rng.choice(('"object"', '"a"', "1", '"t"')), "[" * depth + "]" * depth)
        body = bytearray(text.encode())
        if rng.random() < 0.1:
            body[rng.randrange(len(body))] = rng.randrange(256)
        return kind, bytes(body)

    def check(self, item: Item) -> bool:
        kind, body = item
        try:
            match kind:
                case "chat":
                    asks = wanted_chat(msgspec.json.decode(body, type=ChatRequest)).asks
                case "completion":
                    asks = wanted_completion(msgspec.json.decode(body, type=CompletionRequest)).asks
                case "message":
                    asks = wanted_chat(message_to_chat(msgspec.json.decode(body, type=MessagesRequest))).asks
                case "response":
                    response = msgspec.json.decode(body, type=ResponsesRequest)
                    asks = wanted_chat(response_to_chat(response, [])).asks
                case "rerank":
                    ranks = wanted_ranks(msgspec.json.decode(body, type=RerankRequest), "m", _name_of)
                    return 0 < ranks.num_results <= len(ranks.documents)
                case _:
                    wanted = wanted_embeddings(msgspec.json.decode(body, type=EmbeddingRequest), "m", _name_of)
                    return bool(wanted.texts)
        except (HttpError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return False  # (the first of these errors is a refusal; ``read_json`` makes one of the others)
        assert asks and all(decode(encode(ask)) == ask for ask in asks), "peers would not take it"
        return True


def _name_of(named: str) -> str:
    return "m" if named == "a" else named


def _spoiled(value: Any, rng: random.Random, share: float) -> Any:
    """``value`` with parts changed, removed or repeated."""
    if rng.random() < share:
        return rng.choice((*_ODD, [], {}, [value] * rng.choice((2, 20, 70)), {"a": value}))
    if isinstance(value, dict):
        return {
            rng.choice((name, "zz")) if rng.random() < share / 4 else name: _spoiled(inner, rng, share)
            for name, inner in value.items()
            if rng.random() >= share / 2
        }
    if isinstance(value, list):
        return [_spoiled(inner, rng, share) for inner in value]
    return value
