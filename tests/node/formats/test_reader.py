"""What the text of answers means, in the forms of many families, however it is cut into pieces."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mycelia.node.formats.families import CALLS, THOUGHTS, format_named
from mycelia.node.formats.pieces import CallArguments, CallBegun, CallBroken, Content, Thought, WasThought
from mycelia.node.formats.reader import AnswerReader
from tests.node.formats.answers import TOOLS, cut, gathered, pieces_of, read

CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
XML = "<tool_call>\n<function=say>\n<parameter=text>\nx\n</parameter>\n</function>\n</tool_call>"
WEATHER = ("get_weather", {"city": "Paris"})
NOW: tuple[str, dict[str, object]] = ("now", {})

Case = tuple[str, str, str, str, list[tuple[str, Any]]]
"""(format, text, content, thought, calls)"""

CASES: list[Case] = [
    ("", "Hello.", "Hello.", "", []),
    ("", "", "", "", []),
    ("", " \n ", " \n ", "", []),
    ("", "  two  words ", "  two  words ", "", []),
    ("hermes", CALL, "", "", [WEATHER]),
    ("hermes", f"I will look.\n{CALL}\n", "I will look.", "", [WEATHER]),
    ("hermes", f'{CALL}\n<tool_call>{{"name": "now", "arguments": {{}}}}</tool_call>', "", "", [WEATHER, NOW]),
    ("hermes", '<tool_call>{"name": "now", "arguments": {}}', "", "", [NOW]),
    ("hermes", f"One\n\n{CALL}\n two  three", "Onetwo  three", "", [WEATHER]),
    ("hermes", '<tool_call>[{"name": "now"}, {"name": "now", "arguments": null}]</tool_call>', "", "", [NOW, NOW]),
    (
        "hermes",
        "<tool_call>{'name': 'now', 'arguments': {'a': True, 'b': None, 'c': 'it\\'s \"x\"'}}</tool_call>",
        "",
        "",
        [("now", {"a": True, "b": None, "c": 'it\'s "x"'})],
    ),
    ("hermes", '<tool_call>{"arguments": {"city": "Paris"}, "name": "get_weather"}</tool_call>', "", "", [WEATHER]),
    (
        "hermes",
        '<tool_call>{"id": "c1", "type": "function", "function": {"name": "now", "arguments": "{}"}}</tool_call>',
        "",
        "",
        [NOW],
    ),
    (
        "hermes",
        '<tool_call>{"name": "say", "arguments": {"text": "a\nb\t\\d \\u00e9 \\"q\\""}}</tool_call>',
        "",
        "",
        [("say", {"text": 'a\nb\t\\d é "q"'})],
    ),
    (
        "hermes",
        '<tool_call>{"name": "say", "arguments": {"text": "[1,]", "more": [1, 2,],}}</tool_call>',
        "",
        "",
        [("say", {"text": "[1,]", "more": [1, 2]})],
    ),
    ("hermes", '<tool_call>{"name": "say", "arguments": "Hello"}</tool_call>', "", "", [("say", {"text": "Hello"})]),
    (
        "hermes",
        '<tool_call>{"name": "say", "arguments": "{\\"text\\": \\"Hello\\"}"}</tool_call>',
        "",
        "",
        [("say", {"text": "Hello"})],
    ),
    ("hermes", '<tool_call>{"name": "now", "arguments": ""}</tool_call>', "", "", [NOW]),
    ("", '{"name": "get_weather", "parameters": {"city": "Paris"}}', "", "", [WEATHER]),
    ("", '{"name": "now"}; {"name": "get_weather", "parameters": {"city": "Paris"}}', "", "", [NOW, WEATHER]),
    ("", '```json\n{"name": "now", "arguments": {}}\n```', "", "", [NOW]),
    ("", '```\n[{"name": "now"}]\n```\nDone.', "Done.", "", [NOW]),
    ("", '```json\n{"a": 1}\n```', '```json\n{"a": 1}\n```', "", []),
    (
        "",
        '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris"}}, {"name": "now"}]',
        "",
        "",
        [WEATHER, NOW],
    ),
    ("", '<|python_tag|>{"name": "now", "parameters": {}}', "", "", [NOW]),
    ("", '{"name": "someone", "age": 4}', '{"name": "someone", "age": 4}', "", []),
    ("", '{"name": "now", "age": 4}', '{"name": "now", "age": 4}', "", []),
    ("", "{not JSON", "{not JSON", "", []),
    ("", "  {" + "[" * 500, "  {" + "[" * 500, "", []),
    ("", '[TOOL_CALLS][{"name": "now"}, 5]', ", 5]", "", [NOW]),
    ("hermes", "<tool_call>nonsense</tool_call> a < b", "<tool_call>nonsense</tool_call> a < b", "", []),
    ("hermes", f"<tool_call>{CALL}", "<tool_call>", "", [WEATHER]),
    ("hermes", "a <tool_", "a <tool_", "", []),
    (
        "hermes",
        '<tool_call>{"name": "rm", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "rm", "arguments": {}}</tool_call>',
        "",
        [],
    ),
    ("hermes+think", f"<think>\nHm.\n</think>\n\nYes.\n{CALL}", "Yes.", "Hm.", [WEATHER]),
    ("hermes+think", "<think>\n\n</think>\n\nYes.", "Yes.", "", []),
    ("hermes+think", "</think>\n\nYes.", "Yes.", "", []),
    ("gemma4+gemma4", "Yes.<|channel>thought\n<channel|><channel|>", "Yes.", "", []),
    (
        "kimi_k3+kimi_k3",
        "<|open|>think<|sep|>Hm.<|open|>response<|sep|>Yes.<|close|>response<|sep|>",
        "Yes.",
        "Hm.",
        [],
    ),
    (
        "harmony+harmony",
        (
            "<|channel|>commentary to=assistant<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
            "<|channel|>commentary<|channel|>final<|message|>Yes."
        ),
        "Yes.",
        "Hm.",
        [],
    ),
    ("hermes+think", "Say <think> here", "Say <think> here", "", []),
    ("hermes+think", "Hm. </think> Yes.", "Yes.", "Hm. ", []),
    ("hermes+think", "<think>Never ends", "", "Never ends", []),
    ("hermes+think", f"<think>Let me see.\n{CALL}", "", f"Let me see.\n{CALL}", [WEATHER]),
    (
        "hermes+think",
        f"<think>I could {CALL}, or not.\n{CALL}\n{CALL}",
        "",
        f"I could {CALL}, or not.\n{CALL}\n{CALL}",
        [WEATHER, WEATHER],
    ),
    ("hermes+think", f"<think>I could {CALL}.</think>No.", "No.", f"I could {CALL}.", []),
    ("hermes+think", f"{CALL}<think>More</think>{CALL}", "", "More", [WEATHER, WEATHER]),
    ("qwen_xml", "<function=now></function>", "", "", [NOW]),
    ("qwen_xml", "<tool_call>\n<function=rm>\n</function>", "<tool_call>\n<function=rm>\n</function>", "", []),
    ("qwen_xml", f"Well.\n{CALL}", "Well.", "", [WEATHER]),
    (
        "qwen_xml",
        "<function=say><parameter=text>\n\n</parameter> x\n</parameter></function>",
        "",
        "",
        [("say", {"text": "\n</parameter> x"})],
    ),
    (
        "qwen_xml",
        (
            "<function=get_weather><parameter=days>two</parameter><parameter=ok>True</parameter>"
            "<parameter=tags>['a', 'b']</parameter><parameter=other>5</parameter></function>"
        ),
        "",
        "",
        [("get_weather", {"days": "two", "ok": True, "tags": ["a", "b"], "other": 5})],
    ),
    ("glm", "<tool_call>now</tool_call>", "", "", [NOW]),
    ("gemma4", '<|tool_call>call:mcp:say{text:<|"|>a<|"|>n:1}<tool_call|>', "", "", [("say", {"text": "a", "n": 1})]),
    ("gemma4", "<|tool_call>call:say{text='a, b'}<tool_call|>", "", "", [("say", {"text": "a, b"})]),
    ("gemma4", '<|tool_call>call:say(text=<|"|>a<|"|>)<tool_call|>', "", "", [("say", {"text": "a"})]),
    (
        "kimi",
        (
            "<|tool_call_section_begin|><|tool_call_begin|>now:0<|tool_call_argument_begin|>{}<|tool_call_end|>"
            "<|tool_call_section_end|>"
        ),
        "",
        "",
        [NOW],
    ),
    ("glm", "<tool_call>say<arg_key>text</arg_key>x y</arg_value></tool_call>", "", "", [("say", {"text": "x y"})]),
    ("qwen_xml+think", f"<think>So.\n{XML}\n</think>\n", "", f"So.\n{XML}", [("say", {"text": "x"})]),
    ("qwen_xml+think", f"<think>So.\n{XML}\n</think>\nNo.", "No.", f"So.\n{XML}", []),
    ("qwen_xml", XML.replace("</parameter>", "</parameter>\n</parameter>"), "", "", [("say", {"text": "x"})]),
    ("qwen_xml", XML.replace("</parameter>\n", ""), "", "", [("say", {"text": "x"})]),
    ("qwen_xml", XML.replace("\nx\n", "\na</function>b\n"), "", "", [("say", {"text": "a</function>b"})]),
    ("glm", "<tool_call>later</tool_call>", "<tool_call>later</tool_call>", "", []),
    (
        "kimi+think_kimi",
        (
            "<think>So<|tool_calls_section_begin|><|tool_call_begin|>functions.now:0"
            "<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>"
        ),
        "",
        "So",
        [NOW],
    ),
    ("mistral+mistral", "[THINK]Hm.[/THINK]Yes.[TOOL_CALLS]now{}", "Yes.", "Hm.", [NOW]),
    (
        "mistral",
        '[TOOL_CALLS]say[CALL_ID]123456789[ARGS]{"text": "x"}[TOOL_CALLS]now[ARGS]{}',
        "",
        "",
        [("say", {"text": "x"}), NOW],
    ),
    (
        "deepseek",
        (
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```<｜tool▁call▁end｜>\n"
            '<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{"city": "Paris"}\n```<｜tool▁call▁end｜>'
            "<｜tool▁calls▁end｜>"
        ),
        "",
        "",
        [NOW, WEATHER],
    ),
    (
        "harmony+harmony",
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.",
        "Yes.",
        "Hm.",
        [],
    ),
    (
        "harmony+harmony",
        (
            "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>commentary "
            "to=functions.now <|constrain|>json<|message|>{}<|call|>"
        ),
        "I look.",
        "",
        [NOW],
    ),
    (
        "lfm2",
        (
            "<|tool_call_start|>[now(), say(text='it\\'s, \"so\"'), get_weather(tags=[1, 'b'], ok=False)]"
            "<|tool_call_end|>Done."
        ),
        "Done.",
        "",
        [NOW, ("say", {"text": 'it\'s, "so"'}), ("get_weather", {"tags": [1, "b"], "ok": False})],
    ),
    ("lfm2", "<|tool_call_start|>[rm()]<|tool_call_end|>", "<|tool_call_start|>[rm()]<|tool_call_end|>", "", []),
    ("python", "[now(), now()]", "", "", [NOW, NOW]),
    ("python", "[now()] Done.", "Done.", "", [NOW]),
    ("olmo", "<function_calls>\nnow()\nsay(text='x')\n</function_calls>", "", "", [NOW, ("say", {"text": "x"})]),
    ("phi", '<|tool_call|>[{"name": "now", "arguments": {}}]<|/tool_call|>', "", "", [NOW]),
    ("longcat", '<longcat_tool_call>{"name": "now"}</longcat_tool_call>', "", "", [NOW]),
    ("internlm", '<|action_start|><|plugin|>{"name": "now", "parameters": {}}<|action_end|>', "", "", [NOW]),
    (
        "step",
        '<steptml:invoke name="say"><steptml:parameter name="text">x</steptml:parameter></steptml:invoke>',
        "",
        "",
        [("say", {"text": "x"})],
    ),
    ("python", "[see (1)]", "[see (1)]", "", []),
    (
        "gemma4+gemma4",
        '<|channel>thought\nHm.<channel|><|tool_call>call:say{text:<|"|>a{"b<|"|>}<tool_call|>',
        "",
        "Hm.",
        [("say", {"text": 'a{"b'})],
    ),
    ("granite+granite", "<think>Hm.</think><response>Yes.</response>", "Yes.", "Hm.", []),
    ("hermes+granite", "<think>\nHm.\n</think>\n\n<response>\nYes.\n</response>\n", "Yes.", "Hm.", []),
    ("granite", '<|tool_call|>[{"name": "now", "arguments": {}}]', "", "", [NOW]),
    (
        "cohere+cohere",
        (
            '<|START_THINKING|>Hm.<|END_THINKING|><|START_ACTION|>[{"tool_call_id": "0", "tool_name": "now", '
            '"parameters": {}}]<|END_ACTION|>'
        ),
        "",
        "Hm.",
        [NOW],
    ),
    ("cohere+cohere", "<|START_RESPONSE|>Yes.<|END_RESPONSE|>", "Yes.", "", []),
    ("functools", 'functools[{"name": "now", "arguments": {}}]', "", "", [NOW]),
    ("functools", "The functools module", "The functools module", "", []),
    (
        "apertus+apertus",
        '<|inner_prefix|>Hm.<|inner_suffix|>Well.<|tools_prefix|>[{"now": {}}]<|tools_suffix|>',
        "Well.",
        "Hm.",
        [NOW],
    ),
    ("functionary", "<function=now>{}</function>", "", "", [NOW]),
    (
        "functiongemma",
        (
            "<start_function_call>call:say{text:<escape>a, {b<escape>,n:3}<end_function_call>"
            "<start_function_call>call:now{}"
        ),
        "",
        "",
        [("say", {"text": "a, {b", "n": 3}), NOW],
    ),
    (
        "longcat+longcat",
        (
            "<longcat_think>\nHm.\n</longcat_think>\n<longcat_tool_call>say\n<longcat_arg_key>text</longcat_arg_key>\n"
            "<longcat_arg_value>x</longcat_arg_value>\n</longcat_tool_call>"
        ),
        "",
        "Hm.",
        [("say", {"text": "x"})],
    ),
    (
        "telechat",
        "<tool_call>say<param_key>text</param_key><param_value>x</param_value></tool_call>",
        "",
        "",
        [("say", {"text": "x"})],
    ),
    (
        "plamo",
        (
            "<|plamo:begin_tool_requests:plamo|><|plamo:begin_tool_request:plamo|><|plamo:begin_tool_name:plamo|>now"
            "<|plamo:end_tool_name:plamo|><|plamo:begin_tool_arguments:plamo|>{}<|plamo:end_tool_arguments:plamo|>"
            "<|plamo:end_tool_request:plamo|><|plamo:end_tool_requests:plamo|>"
        ),
        "",
        "",
        [NOW],
    ),
    (
        "pangu+pangu",
        '[unused16]Hm.[unused17]Yes.[unused11][{"name": "now", "arguments": {}}][unused12]',
        "Yes.",
        "Hm.",
        [NOW],
    ),
    (
        "lfm2+minicpm",
        "<|thought_start|>\nHm.\n<|thought_end|>\n<|tool_call_start|>\n```python\nsay(text='x')\nnow()\n```\n<|tool_call_end|>",
        "",
        "Hm.",
        [("say", {"text": "x"}), NOW],
    ),
    ("hermes+answer", "<think>\nHm.\n</think>\n<answer>\nYes.\n</answer>", "Yes.", "Hm.", []),
    ("hermes+kimi_vl", "◁think▷Hm.◁/think▷Yes.", "Yes.", "Hm.", []),
    ("hermes+reka", "<reasoning>Hm.</reasoning>Yes.", "Yes.", "Hm.", []),
    ("hermes", '[get_weather(city="Paris"), now()]', "", "", [WEATHER, NOW]),
    ("hermes", "[a link](https://now) [now()]", "[a link](https://now) [now()]", "", []),
    ("hermes", "```tool_code\nget_weather(city='Paris')\n```", "", "", [WEATHER]),
    ("hermes", "```tool_code\nprint(1)\n```", "```tool_code\nprint(1)\n```", "", []),
    ("hermes+think", "<think>Then [now()]", "", "Then [now()]", []),
]


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_answers(case: Case) -> None:
    name, text, content, thought, calls = case
    said = read(name, text)
    assert (said.content, said.thought, said.calls) == (content, thought, calls)


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_without_functions_nothing_is_a_call(case: Case) -> None:
    name, text, _, thought, calls = case
    said = read(name, text, tools=None)
    assert said.calls == [] and thought in said.thought
    if not calls and "+" not in name:
        assert said.content == text


@pytest.mark.parametrize(
    ("name", "opened", "text", "content", "thought"),
    [
        ("hermes+think", "<think>", "Hm.</think>\nYes.", "Yes.", "Hm."),
        ("hermes+think", "<think>", "<think>\nHm.</think>\nYes.", "Yes.", "Hm."),
        ("hermes+think", "<think>", "", "", ""),
        ("apriel+apriel", "Here are my reasoning steps:", "Hm.\n[BEGIN FINAL RESPONSE]\nYes.", "Yes.", "Hm."),
        ("harmony+harmony", "<|start|>assistant", "Yes.", "Yes.", ""),
        ("harmony+harmony", "<|start|>assistant", "<|channel|>analysis<|message|>Hm.<|end|>", "", "Hm."),
        ("functionary_v3+functionary_v3", ">>>", "all\nYes.", "Yes.", ""),
        ("functionary_v3+functionary_v3", ">>>", "later\nYes.", "later\nYes.", ""),
        ("glm4+glm4", "<|assistant|>", "\nYes.", "Yes.", ""),
        ("glm4+glm4", "<|assistant|>", "later\n{", "later\n{", ""),
    ],
)
def test_a_prompt_may_have_begun_the_answer(name: str, opened: str, text: str, content: str, thought: str) -> None:
    said = read(name, text, opened=opened)
    assert (said.content, said.thought, said.calls) == (content, thought, [])


def test_a_prompt_may_have_begun_a_call() -> None:
    said = read("glm4+glm4", 'get_weather\n{"city": "Paris"}', opened="<|assistant|>")
    assert (said.content, said.calls) == ("", [WEATHER])


def test_a_call_streams_as_it_comes() -> None:
    reader = AnswerReader(format_named("hermes"), TOOLS)
    assert reader.feed('Let me see.\n<tool_call>\n{"name": "say", ') == [Content("Let me see.", 0)]
    assert reader.feed('"arguments": {"te') == [CallBegun("say", ""), CallArguments('{"te')]
    assert reader.feed('xt": "Hel') == [CallArguments('xt": "Hel')]
    assert gathered([CallBegun("say", ""), *reader.feed('lo"}}'), *reader.end()][:0]) is not None


def test_a_string_between_tags_streams_as_it_comes() -> None:
    reader = AnswerReader(format_named("qwen_xml"), TOOLS)
    said = reader.feed('<tool_call>\n<function=say>\n<parameter=text>\n"One"')
    assert said == [CallBegun("say", ""), CallArguments('{"text": '), CallArguments('"'), CallArguments('\\"One\\"')]
    assert reader.feed("\ntwo") == [CallArguments("\\ntwo")]


def test_what_cannot_become_a_call_is_not_held_back() -> None:
    reader = AnswerReader(format_named("hermes"), TOOLS)
    assert reader.feed("It is ") == [Content("It is", 0)]
    assert reader.feed("sunny <tool") == [Content(" sunny", 5)]
    assert reader.feed("s and warm") == [Content(" <tools and warm", 11)]
    assert reader.end() == []


def test_without_functions_and_thoughts_everything_is_said_at_once() -> None:
    reader = AnswerReader(format_named("hermes"))
    assert reader.feed("{<tool_call> ") == [Content("{<tool_call> ", 0)] and reader.end() == []


def test_thoughts_and_content_stream_as_they_come() -> None:
    reader = AnswerReader(format_named("hermes+think"), opened="<think>")
    assert reader.feed("\nOne") == [Thought("One")] and reader.feed(" two\n</th") == [Thought(" two")]
    assert reader.feed("ink>\n\nYes") == [Content("Yes", 19)] and reader.feed(".") == [Content(".", 22)]


def test_a_thought_without_its_opening_tag_is_known_at_its_end() -> None:
    reader = AnswerReader(format_named("hermes+think"))
    assert reader.feed("Hm.</think>Yes.") == [Content("Hm.", 0), WasThought("</think>", 3), Content("Yes.", 11)]


BROKEN = [
    ("hermes", '<tool_call>{"name": "say", "arguments": {"text": "unfin'),
    ("hermes", '<tool_call>{"name": "say", "arguments": {"text": yes]}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "say", "arguments": {"text" "x"}}</tool_call>'),
    ("qwen_xml", "<tool_call>\n<function=say>\n<parameter=text>\nunfin"),
    ("qwen_xml", "<tool_call>\n<function=say>\n<parameter=text>\nx\n</parameter>\n"),
    ("glm", "<tool_call>say<arg_key>text</arg_key><arg_value>x</arg_value>"),
    ("lfm2", "<|tool_call_start|>[say(text='x'"),
    ("gemma4", '<|tool_call>call:say{text:<|"|>x'),
    ("kimi", '<|tool_call_begin|>functions.say:0<|tool_call_argument_begin|>{"text": "x"'),
]


@pytest.mark.parametrize(("name", "text"), BROKEN)
def test_a_call_that_breaks_off_is_text(name: str, text: str) -> None:
    said = read(name, f"Well. {text}")
    assert said.num_broken == 1 and said.calls == []
    assert said.content.replace(" ", "") == f"Well. {text}".replace(" ", "")


def test_a_broken_call_says_what_the_model_wrote() -> None:
    text = '<tool_call>{"name": "say", "arguments": {"text": "x'
    assert pieces_of("hermes", ["Well. " + text])[-1] == CallBroken(" " + text, 5)


def test_a_model_gives_ids() -> None:
    kimi = "<|tool_call_begin|>functions.now:3<|tool_call_argument_begin|>{}<|tool_call_end|>"
    assert read("kimi", kimi).ids == ["functions.now:3"]
    assert read("mistral", "[TOOL_CALLS]now[CALL_ID]abcdefghi[ARGS]{}").ids == ["abcdefghi"]
    assert read("hermes", '<tool_call>{"id": "c7", "name": "now", "arguments": {}}</tool_call>').ids == ["c7"]


DEEP = [f'{{"name": "say", "arguments": {{"text": {"[" * depth}{"]" * depth}}}}}' for depth in (60, 64, 70, 2_000)]


@pytest.mark.parametrize("text", ['{"name": [1]}', '[TOOL_CALLS][{"name": {}}, {"name": ["now"]}]', *DEEP])
def test_any_words_of_a_peer_are_text_or_a_call(text: str) -> None:
    said = read("", text)
    assert said.calls or said.content == text
    said = read("", f"<tool_call>{text}</tool_call>")
    assert said.calls or said.content == f"<tool_call>{text}</tool_call>"


MARKS = sorted({token for name in CALLS for token in format_named(name).token_texts()})
TEXTS = st.lists(
    st.sampled_from([*MARKS, *(text for _, text, *_ in CASES), *(text for _, text in BROKEN)])
    | st.text(alphabet="ab {}[]<>\"':,\n|/=_-`", max_size=12),
    max_size=6,
).map("".join)


@given(st.sampled_from(sorted(CALLS)), st.sampled_from(sorted(THOUGHTS)), TEXTS, st.integers(1, 9), st.booleans())
@example("qwen_xml", "think", "<function=say><parameter=text>a</parameter></parameter></function>", 1, True)
@example("minimax_m3", "apriel", ']<]minimax[>[<invoke name="weather">]<]minimax[>[<}>', 1, True)
def test_no_text_is_lost_however_it_is_cut(calls: str, thoughts: str, text: str, size: int, has_tools: bool) -> None:
    name, tools = f"{calls}+{thoughts}", TOOLS if has_tools else None
    whole = pieces_of(name, [text], tools)
    assert gathered(pieces_of(name, cut(text, size), tools)) == gathered(whole)
    shown = "".join(piece.text for piece in whole if isinstance(piece, Content | Thought | CallBroken))
    if not any(isinstance(piece, CallBegun) for piece in whole) and not thoughts:
        assert shown == text


@given(st.text(max_size=60), st.integers(1, 7))
def test_any_string_comes_back_from_json(value: str, size: int) -> None:
    text = "<tool_call>" + json.dumps({"name": "say", "arguments": {"text": value}}) + "</tool_call>"
    assert gathered(pieces_of("hermes", cut(text, size))).calls == [("say", {"text": value})]


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60), st.integers(1, 7))
def test_any_string_comes_back_from_tags(value: str, size: int) -> None:
    text = f"<tool_call>\n<function=say>\n<parameter=text>\n{value}\n</parameter>\n</function>\n</tool_call>"
    assert gathered(pieces_of("qwen_xml", cut(text, size))).calls == [("say", {"text": value})]


def test_the_values_of_an_argument_are_looked_through_once_for_all_calls() -> None:
    """A hundred arguments with 155,000 possible values each held up a node for 28 s."""
    num_read = 0

    class Values(list[int]):
        def __iter__(self) -> Iterator[int]:
            nonlocal num_read
            num_read += 1
            return super().__iter__()

    schema = {"properties": {"a": {"anyOf": [{"enum": Values([1, 2])}, {"$ref": "#/$defs/b"}]}}, "$defs": {"b": {}}}
    reader = AnswerReader(format_named("qwen_xml"), {"f": schema})
    calls = "<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>" * 20
    assert len([piece for piece in reader.feed(calls) if isinstance(piece, CallBegun)]) == 20
    assert num_read == 1
