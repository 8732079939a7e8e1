"""Which format a model writes, by its template or its vocabulary."""

import pytest

from mycelia.node.formats.choosing import format_name
from mycelia.node.formats.families import CALLS, THOUGHTS
from mycelia.node.formats.signs import CALL_SIGNS, CALL_TOKENS, THOUGHT_SIGNS, THOUGHT_TOKENS

NAMES = [
    ("<start_function_call>call:{{ name }}", "functiongemma"),
    ("<|im_start|>assistant\n<think>\n{{ content.split('<response>')[-1] }}", "hermes+granite"),
    ("<minimax:tool_call><think><response>{{ result }}</response>", "minimax+think"),
    ("<tool_calls>[ <|extra_0|> <think>\n\n</think>", "apriel+answer"),
    ("{{ content.split('</think>')[-1] }}<｜hy_Assistant｜>", "hermes+answer"),
    ("[gMASK]<sop><|user|><|observation|>{{ message.metadata }}", "glm4+glm4"),
    ("[gMASK]<sop><|observation|><tool_call><arg_key></think>", "glm+think"),
    ("<longcat_tool_call><longcat_arg_key> /think_on <longcat_think>", "longcat+longcat"),
    ("<tool_call>{{ name }}<param_key>", "telechat"),
    ("<|im_assistant|>assistant<|im_middle|>◁think▷", "hermes+kimi_vl"),
    ("[unused11] [unused16]", "pangu+pangu"),
    ("<|tool_call_start|> <|thought_start|>", "lfm2+minicpm"),
    ("{{ content }}", "hermes"),
]


@pytest.mark.parametrize(("template", "name"), NAMES)
def test_a_template_says_its_format(template: str, name: str) -> None:
    assert format_name(template, lambda _: False) == name


def test_a_vocabulary_says_it_for_a_template_without_signs() -> None:
    assert format_name("{{ content }}", lambda text: text in ("[TOOL_CALLS]", "[THINK]")) == "mistral+mistral"
    assert format_name(None, lambda text: text == "<longcat_tool_call>") == "longcat"


def test_all_signs_name_rows_of_the_table() -> None:
    assert {*(name for _, name in CALL_SIGNS), *CALL_TOKENS.values()} <= CALLS.keys()
    assert {*(name for _, name in THOUGHT_SIGNS), *THOUGHT_TOKENS.values()} <= THOUGHTS.keys()
