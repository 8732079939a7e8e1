"""The table of formats: how each family of models writes calls and thoughts.

A format is two names, of a row of CALLS and a row of THOUGHTS, such as "hermes+think".
"""

from collections.abc import Iterable
from functools import lru_cache

from mycelia.node.formats.format import Format, Thoughts
from mycelia.node.formats.forms import Body, Form
from mycelia.node.formats.patterns import Pattern


def _patterns(sources: Iterable[str]) -> tuple[Pattern, ...]:
    return tuple(Pattern(source) for source in sources)


def _form(
    begin: str | tuple[str, ...],
    body: Body,
    end: str = "",
    *,
    sections: tuple[tuple[str, str], ...] = (),
    argument: str | tuple[str, ...] = (),
    argument_end: str = "",
    after: tuple[str, ...] = (),
    next_chars: str = "",
    padding: str = "",
    nested: str = "",
    names_are_keys: bool = False,
    only_at_start: bool = False,
) -> Form:
    """sections: marks that may stand before the first and after the last call."""
    begins = (begin,) if isinstance(begin, str) else begin
    begins = (*(f"{before}{{_}}{one}" for before, _ in sections for one in begins), *begins)
    return Form(
        begins=_patterns(begins),
        body=body,
        next_chars=next_chars or ("{[" if body == "calls" else ""),
        ends=_patterns([end] if end else []),
        after=_patterns((*after, *(mark for _, mark in sections))),
        arguments=_patterns((argument,) if isinstance(argument, str) else argument),
        argument_end=argument_end,
        padding=padding,
        nested=nested,
        names_are_keys=names_are_keys,
        only_at_start=only_at_start,
    )


def _xml(tag: str, padding: str) -> tuple[Form, ...]:
    return (
        _form(
            (f"<{tag}>{{_}}<function={{name}}>", "<function={name}>"),
            "tagged",
            "</function>",
            argument="<parameter={key}>",
            argument_end="</parameter>",
            padding=padding,
            after=(f"</{tag}>",),
        ),
        _form(f"<{tag}>", "calls", f"</{tag}>"),
    )


def _invoke(prefix: str, sections: tuple[str, ...], typed: str = "") -> Form:
    return _form(
        f'<{prefix}invoke name="{{name}}">',
        "tagged",
        f"</{prefix}invoke>",
        sections=tuple((f"<{section}>", f"</{section}>") for section in sections),
        argument=f'<{prefix}parameter name="{{key}}"{typed}>',
        argument_end=f"</{prefix}parameter>",
    )


def _keyed(suffix: str = "", separator: str = "", *, prefix: str = "", argument: str = "arg") -> Form:
    call, calls = f"{prefix}tool_call{suffix}", f"{prefix}tool_calls{suffix}"
    key, value = f"{prefix}{argument}_key{suffix}", f"{prefix}{argument}_value{suffix}"
    return _form(
        f"<{call}>{{_}}{{name}}{separator}",
        "tagged",
        f"</{call}>",
        sections=((f"<{calls}>", f"</{calls}>"),),
        argument=(
            f"<{key}>{{key}}</{key}>{{_}}<{value}>",
            f"<{key}>{{key}}</{key}>",  # (a mark that GLM sometimes leaves out)
        ),
        argument_end=f"</{value}>",
    )


def _plamo(tag: str) -> str:
    return f"<|plamo:{tag}:plamo|>"


_HERMES = _form("<tool_call>", "calls", "</tool_call>")
_MISTRAL = (
    _form(("[TOOL_CALLS]{_}{name}{_}[ARGS]", "[TOOL_CALLS]{_}{name}[CALL_ID]{id}[ARGS]"), "json"),
    _form("[TOOL_CALLS]{_}{name}", "json", next_chars="{"),
    _form("[TOOL_CALLS]", "calls"),
)
_FUNCTOOLS = _form("functools", "calls", next_chars="[")
_LLAMA = (_form("<|python_tag|>", "calls"),)
_DEEPSEEK = (("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),)
_M3 = "]<]minimax[>["

CALLS: dict[str, tuple[Form, ...]] = {
    "": (_HERMES, *_MISTRAL, *_LLAMA),
    "hermes": (_HERMES,),
    "mistral": _MISTRAL,
    "llama": _LLAMA,
    "qwen_xml": _xml("tool_call", "\n"),
    "seed": _xml("seed:tool_call", ""),
    "glm": (_keyed(), _HERMES),
    "glm4": (_form("<|assistant|>{_}{name}\n", "json", next_chars="{"), _HERMES),
    "telechat": (_keyed(argument="param"), _HERMES),
    "hunyuan": (_keyed(":opensource", "{_}<tool_sep:opensource>"),),
    "minimax": (_invoke("", ("minimax:tool_call",)),),
    "minimax_m1": (_form("<tool_calls>", "calls", "</tool_calls>"),),
    "minimax_m3": (
        _form(
            f'{_M3}<invoke name="{{name}}">',
            "tagged",
            f"{_M3}</invoke>",
            sections=((f"{_M3}<tool_call>", f"{_M3}</tool_call>"),),
            argument=f"{_M3}<{{key}}>",
            argument_end=f"{_M3}</{{key}}>",
            nested=_M3,
        ),
    ),
    "dsml": (_invoke("｜DSML｜", ("｜DSML｜function_calls", "｜DSML｜tool_calls"), ' string="{type}"'),),
    "muse": (
        _form(
            (
                '<|start|>assistant to={...}<|message|>{_}<atem:function_calls>{_}<atem:invoke name="{name}">',
                '<atem:invoke name="{name}">',
            ),
            "tagged",
            "</atem:invoke>",
            sections=(("<atem:function_calls>", "</atem:function_calls>"),),
            argument='<atem:parameter name="{key}">',
            argument_end="</atem:parameter>",
            after=("<|eom|>", "<|eot|>"),
        ),
    ),
    "minicpm": (
        _form(
            '<function name="{name}">',
            "tagged",
            "</function>",
            argument='<param name="{key}">',
            argument_end="</param>",
        ),
    ),
    "kimi": (
        _form(
            "<|tool_call_begin|>{_}{name}{_}<|tool_call_argument_begin|>",
            "json",
            "<|tool_call_end|>",
            sections=(
                ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
                ("<|tool_call_section_begin|>", "<|tool_call_section_end|>"),
            ),
        ),
    ),
    "kimi_k3": (
        _form(
            '<|open|>call tool="{name}"{...}<|sep|>',
            "tagged",
            "<|close|>call<|sep|>",
            sections=(("<|open|>tools<|sep|>", "<|close|>tools<|sep|>"),),
            argument='<|open|>argument key="{key}" type="{type}"<|sep|>',
            argument_end="<|close|>argument<|sep|>",
        ),
    ),
    "deepseek": (
        _form(
            "<｜tool▁call▁begin｜>{...}<｜tool▁sep｜>{name}{_}```json",
            "json",
            "```{_}<｜tool▁call▁end｜>",
            sections=_DEEPSEEK,
        ),
        _form("<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>", "json", "<｜tool▁call▁end｜>", sections=_DEEPSEEK),
    ),
    "harmony": (
        _form(
            (
                "<|start|>assistant to=functions.{name}<|channel|>{...}<|message|>",
                "<|start|>assistant<|channel|>commentary to=functions.{name}{...}<|message|>",
                "<|start|>assistant<|channel|>analysis to=functions.{name}{...}<|message|>",
                "<|channel|>commentary to=functions.{name}{...}<|message|>",
                "<|channel|>analysis to=functions.{name}{...}<|message|>",
            ),
            "json",
            "<|call|>",
            after=("<|end|>",),
        ),
    ),
    "lfm2": (
        _form("<|tool_call_start|>{_}[{name}(", "python", "<|tool_call_end|>"),
        _form("<|tool_call_start|>{_}```python{_}{name}(", "python", "```{_}<|tool_call_end|>"),  # (MiniCPM 3 and 4)
        _form("<|tool_call_start|>", "calls", "<|tool_call_end|>"),
    ),
    "python": (_form("<|python_start|>{_}[{name}(", "python", "<|python_end|>"),),
    "functiongemma": (_form("<start_function_call>call:{name}", "gemma", "<end_function_call>", next_chars="{"),),
    "gemma4": (
        _form("<|tool_call>call:{name}", "gemma", "<tool_call|>", next_chars="{"),
        _form("<|tool_call>call:{name}(", "python", "<tool_call|>"),
    ),
    "granite": (_form("<|tool_call|>", "calls", "<|/tool_call|>"), _HERMES),
    "phi": (_form("<|tool_call|>", "calls", "<|/tool_call|>"), _FUNCTOOLS),
    "olmo": (_form("<function_calls>{_}{name}(", "python", "</function_calls>"),),
    "internlm": (_form("<|action_start|>{_}<|plugin|>", "calls", "<|action_end|>"),),
    "longcat": (_form("<longcat_tool_call>", "calls", "</longcat_tool_call>"), _keyed(prefix="longcat_")),
    "pangu": (_form("[unused11]", "calls", "[unused12]"),),
    "plamo": (
        _form(
            f"{_plamo('begin_tool_request')}{{_}}{_plamo('begin_tool_name')}{{name}}{_plamo('end_tool_name')}{{_}}"
            f"{_plamo('begin_tool_arguments')}",
            "json",
            f"{_plamo('end_tool_arguments')}{{_}}{_plamo('end_tool_request')}",
            sections=((_plamo("begin_tool_requests"), _plamo("end_tool_requests")),),
        ),
    ),
    "step": (_invoke("steptml:", ("steptml:function_calls",)),),
    "cohere": (_form("<|START_ACTION|>", "calls", "<|END_ACTION|>"),),
    "command_r": (_form("Action:{_}```json", "calls", "```"),),
    "apertus": (_form("<|tools_prefix|>", "calls", "<|tools_suffix|>", names_are_keys=True),),
    "apriel": (_form("<tool_calls>", "calls", "</tool_calls>"),),
    "nemotron": (_form("<TOOLCALL>", "calls", "</TOOLCALL>"),),
    "gigachat": (
        _form(("<|message_sep|>{_}function call<|role_sep|>", "function call<|role_sep|>"), "calls"),
        _form("<|function_call|>", "calls"),
    ),
    "functools": (_FUNCTOOLS,),
    "functionary": (_form("<function={name}>", "json", "</function>"), *_LLAMA),
    "functionary_v3": (_form(">>>{name}\n", "json", next_chars="{"),),
    "solar": (
        _form(
            "<|tool_call:begin|>{id}<|tool_call:name|>{name}<|tool_call:args|>",
            "json",
            "<|tool_call:end|>",
            sections=(("<|begin|>assistant<|tool_calls|>", "<|calls|>"), ("<|tool_calls|>", "<|calls|>")),
        ),
    ),
}

ANY_MODEL = (
    _form("", "calls", only_at_start=True),
    _form("[{name}(", "python", only_at_start=True),
    _form("```tool_code{_}{name}(", "python", "```"),
    _form(("```json", "```tool_call", "```"), "calls", "```"),
)
"""Calls that models without a format of their own write: JSON or a list of Python's calls, and both in a fence."""

_THINK = Thoughts(("<think>",), ("</think>",))

THOUGHTS: dict[str, Thoughts] = {
    "": Thoughts(),
    "think": _THINK,
    "think_kimi": Thoughts(("<think>",), ("</think>",), ends_at_call=True),
    "thought": Thoughts(("<thought>",), ("</thought>",)),
    "answer": Thoughts(("<think>",), ("</think>",), dropped=("<answer>{_}", "\n</answer>{_}", "</answer>{_}")),
    "glm4": Thoughts(("<think>",), ("</think>",), dropped=("<|assistant|>{_}",), turn="<|assistant|>"),
    "kimi_vl": Thoughts(("◁think▷",), ("◁/think▷",)),
    "longcat": Thoughts(("<longcat_think>",), ("</longcat_think>",)),
    "minicpm": Thoughts(("<|thought_start|>",), ("<|thought_end|>",)),
    "pangu": Thoughts(("[unused16]",), ("[unused17]",)),
    "reka": Thoughts(("<reasoning>",), ("</reasoning>",)),
    "seed": Thoughts(("<seed:think>",), ("</seed:think>",)),
    "hunyuan": Thoughts(("<think:opensource>",), ("</think:opensource>",)),
    "minimax_m3": Thoughts(("<mm:think>",), ("</mm:think>",)),
    "mistral": Thoughts(("[THINK]",), ("[/THINK]",)),
    "cohere": Thoughts(
        ("<|START_THINKING|>",),
        ("<|END_THINKING|>",),
        dropped=("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>"),
    ),
    "granite": Thoughts(("<think>",), ("</think>",), dropped=("<response>{_}", "\n</response>{_}", "</response>{_}")),
    "apriel": Thoughts(
        ("Here are my reasoning steps:",),
        ("[BEGIN FINAL RESPONSE]",),
        dropped=("[BEGIN FINAL RESPONSE]", "[END FINAL RESPONSE]"),
    ),
    "apertus": Thoughts(("<|inner_prefix|>",), ("<|inner_suffix|>",), anywhere=True),
    "gemma4": Thoughts(("<|channel>thought\n",), ("<channel|>",), anywhere=True, dropped=("<channel|>",)),
    "harmony": Thoughts(
        (
            "<|start|>assistant<|channel|>analysis<|message|>",
            "<|channel|>analysis<|message|>",
        ),
        ("<|end|>",),
        anywhere=True,
        dropped=(
            "<|start|>assistant<|channel|>final{...}<|message|>",
            "<|start|>assistant<|channel|>commentary<|message|>",
            "<|channel|>final{...}<|message|>",
            "<|channel|>commentary<|message|>",
            *("<|channel|>commentary to=assistant", "<|channel|>commentary"),  # (stray ones before other channels)
            "<|start|>assistant",
            "<|end|>",
            "<|return|>",
            "<|call|>",
        ),
        answer="<|channel|>final{...}<|message|>",
        turn="<|start|>assistant",
    ),
    "kimi_k3": Thoughts(
        ("<|open|>think<|sep|>",),
        ("<|close|>think<|sep|>", "<|open|>response<|sep|>"),
        dropped=("<|open|>response<|sep|>", "<|close|>response<|sep|>", "<|close|>message<|sep|>"),
        answer="<|open|>response<|sep|>",
    ),
    "solar": Thoughts(
        ("<|begin|>assistant<|think|>", "<|think|>"),
        ("<|end|>",),
        anywhere=True,
        dropped=("<|begin|>assistant<|content|>", "<|begin|>assistant", "<|content|>", "<|end|>"),
        answer="<|content|>",
        turn="<|begin|>assistant",
    ),
    "muse": Thoughts(
        ("<|start|>assistant to=self<|message|>",),
        ("<|eom|>",),
        anywhere=True,
        dropped=(
            "<|start|>assistant to=user<|message|>",
            "<|start|>assistant<|message|>",
            "<|start|>assistant",
            "<|eom|>",
        ),
        answer="to=user<|message|>",
        turn="<|start|>assistant",
    ),
    "functionary_v3": Thoughts(dropped=(">>>all\n",), turn=">>>"),
}

MAX_NAME_CHARS = 32


@lru_cache(64)
def format_named(name: str) -> Format:
    """The format of this name; names that are not in the table stand for a model without one."""
    calls, _, thoughts = name.partition("+")
    forms = CALLS.get(calls, CALLS[""])
    return Format(name, (*forms, *ANY_MODEL), THOUGHTS.get(thoughts, THOUGHTS[""]))
