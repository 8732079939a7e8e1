"""The fields that say what an answer must look like, and what a node is asked for them."""

import json
from typing import Any

import msgspec
import pytest

from mycelia.node.engine.child.grammar.checker import read
from mycelia.node.engine.child.grammar.guidance import matcher
from mycelia.node.serve.http.errors import HttpError
from mycelia.node.serve.openai import structured
from mycelia.node.serve.openai.request_types import ChatRequest, CompletionRequest
from mycelia.node.serve.openai.requests import wanted_chat, wanted_completion
from mycelia.proto.wire.messages import Sampling
from tests.node.schemas.suite import accepts

ITEM = {"type": "object", "properties": {"sku": {"type": "string"}}, "required": ["sku"]}
ORDER = {
    "type": "object",
    "$defs": {"Item": ITEM, "Color": {"enum": ["red", "blue"]}},
    "properties": {"items": {"type": "array", "items": {"$ref": "#/$defs/Item"}}, "color": {"$ref": "#/$defs/Color"}},
    "required": ["items", "color"],
}
FOLDER = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "inside": {"type": "array", "items": {"$ref": "#"}}},
    "required": ["name"],
}


def tool(name: str, schema: object) -> dict[str, object]:
    return {"type": "function", "function": {"name": name, "parameters": schema}}


TOOLS = [tool("order", ORDER), tool("make", FOLDER), tool("stop", None)]


def sampling(**fields: Any) -> Sampling:
    body = {"messages": [{"role": "user", "content": "x"}], **fields}
    return wanted_chat(msgspec.convert(body, ChatRequest)).asks[0].sampling


def taken(wanted: Sampling, *instances: object) -> list[bool]:
    from llguidance import LLTokenizer

    tokenizer = LLTokenizer("byte")
    made = matcher(tokenizer, read(tokenizer, wanted.grammar_kind, wanted.grammar))
    return [accepts(made, instance) for instance in instances]


def call(name: str, arguments: object) -> dict[str, object]:
    return {"name": name, "arguments": arguments}


ORDERED = call("order", {"items": [{"sku": "a"}], "color": "red"})
MADE = call("make", {"name": "a", "inside": [{"name": "b"}]})


def test_forced_calls_take_references_and_recursion() -> None:
    wanted = sampling(tools=TOOLS, tool_choice="required")
    assert taken(wanted, ORDERED, MADE, call("stop", {})) == [True] * 3
    wrong = [
        call("order", {"items": [{}], "color": "red"}),
        call("order", {"items": [], "color": "green"}),
        call("make", {"name": "a", "inside": [{"title": "b"}]}),
        call("other", {}),
        [ORDERED],
        {"items": [], "color": "red"},
    ]
    assert taken(wanted, *wrong) == [False] * len(wrong)


def test_a_named_function_is_the_only_one_and_several_calls_are_a_list() -> None:
    named = sampling(tools=TOOLS, tool_choice={"type": "function", "function": {"name": "order"}})
    assert taken(named, ORDERED, MADE) == [True, False]
    several = sampling(tools=TOOLS, tool_choice="required", parallel_tool_calls=True)
    assert taken(several, ORDERED, [ORDERED, MADE], []) == [True, True, False]


@pytest.mark.parametrize(
    "schema",
    [
        {"enum": [{}, 1]},
        {"type": ["object", "null"]},
        {"type": "object", "nullable": True},
        {"nullable": True, "properties": {}},
        {"anyOf": [{"type": "object"}, {}]},
        {"$ref": "#/$defs/p", "$defs": {"p": {"type": "object", "nullable": True}}},
    ],
)
def test_arguments_are_an_object_whatever_else_the_parameters_allow(schema: dict[str, Any]) -> None:
    wanted = sampling(tools=[tool("f", schema)], tool_choice="required")
    assert taken(wanted, call("f", {}), call("f", 1), call("f", None)) == [True, False, False]


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
FORMS: list[tuple[dict[str, Any], list[object], list[object]]] = [
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}}, [{"a": 1}], [{"a": "x"}, {}]),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "", "schema": True}}}, [1, []], []),
    ({"response_format": {"type": "json_object", "schema": SCHEMA}}, [{"a": 1}], [{"b": 1}]),
    ({"response_format": {"type": "json_object"}}, [{}, {"a": []}], [1, []]),
    ({"json_schema": SCHEMA}, [{"a": 1}], [{}, {"a": 1, "b": 2}]),
    ({"guided_json": json.dumps(SCHEMA)}, [{"a": 1}], [{}]),
    ({"structured_outputs": {"json": SCHEMA}}, [{"a": 1}], [{}]),
    ({"structured_outputs": {"json_object": True}}, [{}], [1]),
    ({"guided_regex": "[0-9]{2}"}, [12], [1, 123]),
    ({"guided_choice": ["12", "[3]"]}, [12, [3]], [3]),
    ({"grammar": 'root ::= "1" | "2"'}, [1, 2], [3]),
    ({"grammar": "start: /[12]/"}, [1, 2], [3]),
    ({"guided_grammar": 'root ::= "(" root ")" | "1"'}, [1], [2]),
]


@pytest.mark.parametrize(("fields", "valid", "invalid"), FORMS, ids=[str(fields)[:60] for fields, _, _ in FORMS])
def test_each_field_limits_the_answer(fields: dict[str, Any], valid: list[object], invalid: list[object]) -> None:
    wanted = sampling(**fields)
    assert taken(wanted, *valid) == [True] * len(valid) and taken(wanted, *invalid) == [False] * len(invalid)


def test_completions_have_forms_too() -> None:
    body = msgspec.convert({"prompt": "x", "guided_regex": "a+"}, CompletionRequest)
    made = wanted_completion(body).asks[0].sampling
    assert (made.grammar_kind, made.grammar) == ("regex", "a+")


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"response_format": {"type": "json_schema"}}, "response_format", "needs a json_schema"),
    ({"response_format": {"type": "json_object", "schema": {"uniqueItems": True}}}, "response_format", "'uniqueItems'"),
    ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice", "not among"),
    ({"tool_choice": "required"}, "tool_choice", "needs tools"),
    ({"guided_json": "{"}, "guided_json", "no JSON"),
    ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs.regex", "exclude each other"),
    ({"guided_choice": []}, "guided_choice", "not empty"),
    ({"structured_outputs": {"choice": [""]}}, "structured_outputs.choice", "not empty"),
    ({"tools": [tool("f", {"type": "string"})], "tool_choice": "required"}, "tools", "no object"),
    ({"json_schema": {"minimal": 3}}, "json_schema", "'minimal'"),
    ({"grammar": "start: /a/", "guided_regex": "a"}, "guided_regex", "exclude each other"),
    ({"json_schema": {"$ref": 5}, "tools": TOOLS, "tool_choice": "required"}, "tool_choice", "exclude each other"),
]


@pytest.mark.parametrize(("fields", "param", "says"), REFUSED, ids=[says for _, _, says in REFUSED])
def test_what_is_not_enforced_is_refused_with_its_field(fields: dict[str, Any], param: str, says: str) -> None:
    with pytest.raises(HttpError) as caught:
        sampling(**fields)
    assert (caught.value.status, caught.value.param) == (400, param) and says in caught.value.message


def test_blank_lines_before_a_grammar_are_read_in_linear_time() -> None:
    wanted = sampling(
        grammar="\n" * 60_000 + 'root ::= "a"'
    )  # (with the square of their number it would take a minute)
    assert wanted.grammar_kind == "gbnf"


def test_a_schema_that_no_node_would_take_is_refused_by_its_length() -> None:
    schema = {"enum": ["x" * 70_000]}
    with pytest.raises(HttpError, match="over 65536 characters"):
        sampling(response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}})


def test_sizes_are_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_work(*_: object) -> None:
        raise AssertionError("it is too long")

    for name in ("closed", "enforceable", "_literal"):
        monkeypatch.setattr(structured, name, no_work)
    long: dict[str, Any] = {"properties": {"a": {"anyOf": [{"type": "object", "properties": {"a": {}}}] * 1_000}}}
    longer = {"anyOf": [long] * 10}
    for fields in (
        {"guided_json": longer},
        {"guided_json": json.dumps(longer)},
        {"guided_choice": ["é" * 60_000, "!" * 60_000]},
        {"tools": [tool(f"f{n}", long) for n in range(10)], "tool_choice": "required"},
    ):
        with pytest.raises(HttpError, match="over 65536 characters"):
            sampling(**fields)
    with pytest.raises(HttpError, match="lone surrogates"):
        sampling(guided_json=r'{"const": "\ud800"}')
