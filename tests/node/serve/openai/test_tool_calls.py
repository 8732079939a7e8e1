"""The function calls of a model, read from its answer however that is cut into pieces."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycelia.node.serve.openai.tool_calls import ToolCallReader
from mycelia.node.serve.openai.types import CalledFunction

NAMES = ("weather", "time")
CALL = '<tool_call>\n{"name": "weather", "arguments": {"place": "Paris"}}\n</tool_call>'
WEATHER = ("weather", {"place": "Paris"})
TIME: tuple[str, dict[str, object]] = ("time", {})


def read(pieces: list[str], names: tuple[str, ...] = NAMES) -> tuple[str, list[tuple[str, object]]]:
    """(the text, the called functions)."""
    reader = ToolCallReader(names)
    said = "".join([*map(reader.feed, pieces), reader.end()])
    return said, [(call.name, json.loads(call.arguments)) for call in reader.calls]


ANSWERS = [
    ("Hello.", "Hello.", []),
    ("", "", []),
    (CALL, "", [WEATHER]),
    (f"I will look.\n{CALL}\n", "I will look.", [WEATHER]),
    (f'{CALL}\n<tool_call>{{"name": "time", "arguments": {{}}}}</tool_call>', "", [WEATHER, TIME]),
    ('<tool_call>{"name": "time", "arguments": {}}', "", [TIME]),
    (f"One\n\n{CALL}\n two  three", "Onetwo  three", [WEATHER]),
    ('{"name": "weather", "parameters": {"place": "Paris"}}', "", [WEATHER]),
    ('{"name": "weather", "arguments": "{\\"place\\": \\"Paris\\"}"}', "", [WEATHER]),
    ('[TOOL_CALLS][{"name": "weather", "arguments": {"place": "Paris"}}, {"name": "time"}]', "", [WEATHER, TIME]),
    ('<|python_tag|>{"name": "time", "parameters": {}}', "", [TIME]),
    ('{"name": "someone", "age": 4}', '{"name": "someone", "age": 4}', []),
    ('[TOOL_CALLS][{"name": "time"}, 5]', '[TOOL_CALLS][{"name": "time"}, 5]', []),
    ("<tool_call>nonsense</tool_call> a < b", "<tool_call>nonsense</tool_call> a < b", []),
    ("a <tool_", "a <tool_", []),
    ("{not JSON", "{not JSON", []),
    ("  {" + "[" * 5_000, "  {" + "[" * 5_000, []),
]


@pytest.mark.parametrize(("text", "said", "calls"), ANSWERS, ids=range(len(ANSWERS)))
def test_answers(text: str, said: str, calls: list[tuple[str, object]]) -> None:
    assert read([text]) == (said, calls)


@given(st.sampled_from([text for text, _, _ in ANSWERS]), st.data())
def test_where_an_answer_is_cut_makes_no_difference(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert read(pieces) == read([text])


DEEP = [f'{{"name": "time", "arguments": {"[" * depth}{"]" * depth}}}' for depth in range(900, 1_010)]


@pytest.mark.parametrize("text", ['{"name": [1]}', '[TOOL_CALLS][{"name": {}}, {"name": ["time"]}]', *DEEP])
def test_any_words_of_a_peer_are_text_or_a_call(text: str) -> None:
    said, calls = read([text])
    assert said == text or [name for name, _ in calls] == ["time"]
    assert read([f"<tool_call>{text}</tool_call>"])[0] in ("", f"<tool_call>{text}</tool_call>")


def test_without_functions_everything_is_said_at_once() -> None:
    reader = ToolCallReader(())
    assert reader.feed("{<tool_call>") == "{<tool_call>" and reader.end() == "" and reader.calls == []


def test_what_cannot_become_a_call_is_not_held_back() -> None:
    reader = ToolCallReader(NAMES)
    assert reader.feed("It is ") == "It is"
    assert reader.feed("sunny <tool") == " sunny"
    assert reader.feed("s and warm") == " <tools and warm"
    assert reader.end() == "" and reader.calls == list[CalledFunction]()
