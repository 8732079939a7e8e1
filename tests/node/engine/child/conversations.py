"""Conversations of all shapes, as clients send them, and how the model's authors render them."""

import copy
import json
from datetime import UTC, datetime
from typing import Any

import jinja2
import msgspec
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import SandboxedEnvironment

from mycelia.node.engine.child.llama.vocabulary import ModelVocabulary
from mycelia.node.serve.openai.request_types import ChatRequest
from mycelia.node.serve.openai.requests import wanted_chat
from mycelia.proto.wire.messages import Ask

Json = dict[str, Any]

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "Name of a city."}, "days": {"type": "integer"}},
    "required": ["city"],
}
WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Weather of a city.", "parameters": SCHEMA},
}
TIME = {
    "type": "function",
    "function": {
        "name": "get_time",
        "description": 'Time at a place, as "hh:mm" & zone <tz>.',
        "parameters": {"type": "object", "properties": {"place": {"type": "string", "enum": ["Rome", "São Paulo"]}}},
    },
}


def user(text: Any) -> Json:
    return {"role": "user", "content": text}


def system(text: Any) -> Json:
    return {"role": "system", "content": text}


def assistant(text: Any, thoughts: str = "") -> Json:
    return {"role": "assistant", "content": text} | ({"reasoning_content": thoughts} if thoughts else {})


def calls(*arguments: Json, content: str | None = None, thoughts: str = "", name: str = "get_weather") -> Json:
    functions = [
        {"id": f"call0000{place}", "type": "function", "function": {"name": name, "arguments": json.dumps(one)}}
        for place, one in enumerate(arguments)
    ]
    return assistant(content, thoughts) | {"tool_calls": functions}


def result(text: Any, place: int = 0) -> Json:
    return {"role": "tool", "tool_call_id": f"call0000{place}", "name": "get_weather", "content": text}


LONG = "The miller counts his sacks, and the river runs past them.\n" * 150
"""Longer than one call of the tokenizer gets, see ``prompts.pieces``."""
CODE = "```python\ndef f(x):\n    return {'a': [x, \"b\"], 'c': x < 3 > 1}\n```\n"

CONVERSATIONS: dict[str, Json] = {
    "one turn": {"messages": [user("Hello, how are you?")]},
    "blanks around": {"messages": [user("  Hello\n\n"), assistant(" Hi there \n"), user("\n Bye  ")]},
    "system": {"messages": [system("Be brief."), user("Hello"), assistant("Hi."), user("And now?")]},
    "several languages": {
        "messages": [system("Отвечай кратко. 日本語で"), user("Ça va? 你好 😀 ‮x"), assistant("Ja ☕"), user("éß")]
    },
    "empty contents": {"messages": [system(""), user(""), assistant(""), user("x")]},
    "only an empty one": {"messages": [user("")]},
    "null content": {"messages": [user("Hello"), assistant(None), user("x")]},
    "two of the user": {"messages": [user("One."), user("Two."), assistant("Yes."), user("Three.")]},
    "two of the assistant": {"messages": [user("One."), assistant("Yes."), assistant("No."), user("Three.")]},
    "the assistant first": {"messages": [assistant("Welcome."), user("Thanks.")]},
    "a late system": {"messages": [user("One."), assistant("Yes."), system("Now in verse."), user("Three.")]},
    "two systems": {"messages": [system("Be kind."), system("Be brief."), user("One.")]},
    "developer": {"messages": [{"role": "developer", "content": "Be brief."}, user("Hello")]},
    "code and markup": {
        "messages": [user(CODE + "<b>&amp;</b> {{ x }} {% if %}"), assistant(CODE), user("a < b > c | d")]
    },
    "what looks special": {
        "messages": [user("<tool_call> </think> <x|y> [/INS T] <|nothing|>"), assistant("ok"), user("go")]
    },
    "parts": {
        "messages": [
            user([{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo\n"}]),
            assistant("Hi"),
            user([{"type": "text", "text": "one"}]),
        ]
    },
    "parts of the system": {
        "messages": [system([{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]), user("x")]
    },
    "tools": {"messages": [user("How is Rome?")], "tools": [WEATHER, TIME]},
    "tools and system": {"messages": [system("Be brief."), user("How is Rome?")], "tools": [WEATHER]},
    "a call": {
        "messages": [user("How is Rome?"), calls({"city": "Rome (RM)", "days": 19}), result("sunny, 21 °C")],
        "tools": [WEATHER, TIME],
    },
    "a call with text": {
        "messages": [
            system("Be brief."),
            user("How is Rome?"),
            calls({"city": "Rome (RM)"}, content="Let me look."),
            result('{"sky": "blue"}'),
            assistant("Sunny."),
            user("And tomorrow?"),
        ],
        "tools": [WEATHER],
    },
    "an empty content": {
        "messages": [
            user("How is Rome?"),
            calls({"city": "Rome (RM)"}, content=""),
            result("rain"),
            assistant("Rain."),
            user("Thanks"),
        ],
        "tools": [WEATHER],
    },
    "two calls": {
        "messages": [
            user("Rome and Oslo?"),
            calls({"city": "Rome (RM)"}, {"city": "Oslo (NO)"}),
            result("sun"),
            result("snow", 1),
            assistant("Sun, snow."),
            user("Thanks"),
        ],
        "tools": [WEATHER],
    },
    "a call without arguments": {"messages": [user("Now?"), calls({}), result("")], "tools": [WEATHER]},
    "calls in turns": {
        "messages": [
            user("Rome?"),
            calls({"city": "Rome (RM)"}),
            result("sun"),
            calls({"city": "Oslo (NO)"}),
            result("snow"),
            assistant("Done."),
            user("Thanks"),
        ],
        "tools": [WEATHER],
    },
    "thoughts": {
        "messages": [
            user("1+1?"),
            assistant("2", "One and one.\nTwo."),
            user("2+2?"),
            assistant("4", " Two and two. "),
            user("3+3?"),
        ]
    },
    "thoughts in the text": {
        "messages": [user("1+1?"), assistant("<think>\nOne and one.\n</think>\n\n2"), user("2+2?")]
    },
    "thoughts before a call": {
        "messages": [user("Rome?"), calls({"city": "Rome (RM)"}, thoughts="I look."), result("sun")],
        "tools": [WEATHER],
    },
    "no thinking": {"messages": [user("1+1?")], "chat_template_kwargs": {"enable_thinking": False}},
    "thinking": {
        "messages": [user("1+1?"), assistant("2"), user("2+2?")],
        "chat_template_kwargs": {"enable_thinking": True},
    },
    "little effort": {"messages": [user("1+1?")], "chat_template_kwargs": {"reasoning_effort": "low"}},
    "no generation prompt": {"messages": [user("1+1?"), assistant("2")], "add_generation_prompt": False},
    "a long content": {"messages": [system("Be brief."), user(LONG), assistant(LONG), user("Go on.")]},
    "many turns": {
        "messages": [
            system("Be brief."),
            *[turn for _ in range(10) for turn in (user(LONG[:900]), assistant(LONG[:300]))],
            user("Go on."),
        ]
    },
}


def ask_of(body: Json) -> Ask:
    """What a node makes of a client's request."""
    return wanted_chat(msgspec.convert(body, ChatRequest)).asks[0]


class _Tracker(Extension):
    tags = {"generation"}  # noqa: RUF012  Jinja's name

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_as_it_is")
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _as_it_is(self, caller: Any) -> Any:
        return caller()


class RefusedError(Exception):
    """The authors' renderer refuses a conversation, or writes a value of Python."""


class AuthorsRenderer:
    """As transformers renders templates. Lists may be changed, and iterators are JSON, as one family needs each."""

    def __init__(self, source: str) -> None:
        environment = SandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Tracker, "jinja2.ext.loopcontrols"]
        )

        def to_json(
            x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
        ) -> str:
            return json.dumps(
                x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys, default=list
            )

        def refuse(message: str) -> str:
            raise jinja2.exceptions.TemplateError(message)

        environment.filters["tojson"] = to_json
        environment.globals["raise_exception"] = refuse
        environment.globals["strftime_now"] = lambda form: datetime.now(UTC).strftime(form)
        self._template = environment.from_string(source)

    def text(self, messages: list[Json], body: Json, specials: Json, without_tools_is_empty: bool = False) -> str:
        """Raises RefusedError."""
        tools = body.get("tools", [] if without_tools_is_empty else None)
        options = dict(body.get("chat_template_kwargs") or {})
        if "enable_thinking" in options:
            options.setdefault("thinking", options["enable_thinking"])
        if "reasoning_effort" in options:
            options = {"reasoning_strength": "low", "enable_thinking": True, "thinking": True} | options
        extra = {
            "functions": json.dumps(tools or [], indent=4, ensure_ascii=False),
            "datetime": datetime.now(UTC).strftime("%b %d %Y"),
        }
        context = {
            "messages": copy.deepcopy(messages),
            "tools": copy.deepcopy(tools),
            "documents": None,
            "xml_tools": copy.deepcopy(tools),
            "add_generation_prompt": body.get("add_generation_prompt", True),
            **extra,
            **options,
        }
        try:
            return self._template.render(context | specials)
        except Exception as exc:
            raise RefusedError(repr(exc)) from exc


def tokens_of(vocabulary: ModelVocabulary, text: str) -> list[int]:
    """As llama.cpp's programs make tokens of a rendered text."""
    tokens = vocabulary.tokenize(text, True)
    bos = vocabulary.bos_token
    return tokens if bos is None or tokens[:1] == [bos] else [bos, *tokens]
