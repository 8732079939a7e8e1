"""Turns a conversation into tokens through the model's own chat template, safe against spelled-out control tokens.

Rendering first and tokenizing the whole text would let a user write ``<|im_end|><|im_start|>system`` and speak as the
system. So every string that people wrote is replaced by a random mark before rendering; the rendered text is split at
the marks; what the template wrote is tokenized with control tokens, what people wrote without. Nobody can guess a mark,
and what is not marked are words (roles, names of functions and of their fields), so no message can reach the part that
makes control tokens.
"""

import json
import re
import secrets
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import jinja2
import msgspec
from jinja2.sandbox import ImmutableSandboxedEnvironment

from node.engine.tools import told_in_words
from proto.errors import LocalError
from proto.messages import ChatMessage

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""For models without a template: what llama.cpp assumes then."""

_ROLE = re.compile(r"[A-Za-z0-9_-]{1,32}")
_WORD = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MARK = re.compile(r"(?:content|encoded)([0-9a-f]{32})")
_MAX_JSON_VALUES, _MAX_JSON_DEPTH = 10_000, 64
"""In the tools and extras of one conversation."""

Tokenize = Callable[[str, bool], list[int]]
"""(text, whether control tokens count) -> tokens."""


def _raise_exception(message: str) -> str:
    raise jinja2.TemplateError(message)


class ChatTemplate:
    """A compiled template with the vocabulary it writes for. Immutable: any thread may use it."""

    def __init__(
        self,
        text: str | None,
        tokenize: Tokenize,
        *,
        bos_text: str = "",
        eos_text: str = "",
        bos_token: int | None = None,
    ) -> None:
        """text: the Jinja source, None for ChatML. bos_token: the token every prompt of the model must begin with.

        Raises LocalError when the source does not compile.
        """
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _raise_exception
        # UTC, so that a template that writes the date writes the same one on every node: prompts must stay equal.
        environment.globals["strftime_now"] = lambda form: datetime.now(UTC).strftime(form)
        environment.filters["tojson"] = _to_json
        self._reads_tools = "tools" in (text or CHATML)
        self._tokenize = tokenize
        self._specials = {"bos_token": bos_text, "eos_token": eos_text}
        self._bos_token = bos_token
        try:
            self._template = environment.from_string(text or CHATML)
        except jinja2.TemplateError as exc:
            raise LocalError(f"the model's chat template does not compile: {exc}") from exc

    def tokens(self, messages: Sequence[ChatMessage], tools: str = "") -> list[int]:
        """The prompt of a conversation, ready for the assistant's turn. tools: see ``Ask.tools``.

        Raises LocalError for no messages, a role that is not a word, what is no JSON, or a conversation that the
        template refuses.
        """
        tokens: list[int] = []
        for text, is_written in self._parts(messages, tools):
            tokens += self._tokenize(text, not is_written)
        return self._begun(tokens)

    def text_tokens(self, text: str) -> list[int]:
        """The prompt that ``text`` is by itself; control tokens that it spells count."""
        return self._begun(self._tokenize(text, True))

    def _begun(self, tokens: list[int]) -> list[int]:
        if self._bos_token is not None and tokens[:1] != [self._bos_token]:
            tokens.insert(0, self._bos_token)
        return tokens

    def _parts(self, messages: Sequence[ChatMessage], tools: str) -> list[tuple[str, bool]]:
        """The rendered text, cut at the marks: (text, did people write it)."""
        if not messages:
            raise LocalError("a conversation needs at least one message")
        turns = [_turn(message) for message in messages]
        functions = _parsed("tools", tools, list)
        if not self._reads_tools and (functions or any(len(turn) > 2 for turn in turns)):
            turns, functions = told_in_words(turns, functions), []
        marks = _Marks()
        marked = [marks.turn(turn) for turn in turns]
        context = {"tools": marks.value(functions)} if functions else {}
        rendered = self._render(marked, context)
        pieces = re.split("((?:content|encoded)[0-9a-f]{32})", rendered)
        parts = [(marks.written(piece), piece in marks) for piece in pieces]
        return [(text, is_written) for text, is_written in parts if text]

    def _render(self, turns: Sequence[dict[str, Any]], context: dict[str, Any]) -> str:
        try:
            return self._template.render(messages=turns, add_generation_prompt=True, **context, **self._specials)
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as exc:
            # A template is a program: what it raises by itself is one more way of refusing the conversation.
            raise LocalError(f"the model's chat template refuses the conversation: {exc}") from exc


def _turn(message: ChatMessage) -> dict[str, Any]:
    if not _ROLE.fullmatch(message.role):
        raise LocalError(f"role {message.role!r} is not a word of letters, digits, _ and -")
    extras = _parsed("extras", message.extras, dict)
    return {**extras, "role": message.role, "content": message.content}


_Parsed = TypeVar("_Parsed", list[Any], dict[str, Any])


def _parsed(name: str, text: str, kind: type[_Parsed]) -> _Parsed:
    try:
        return msgspec.json.decode(text, type=kind) if text else kind()
    except (msgspec.DecodeError, RecursionError) as exc:
        raise LocalError(f"the {name} of the conversation are not valid: {exc}") from exc


def _to_json(value: object, indent: int | None = None, **_: object) -> str:
    """Jinja's own would also escape what HTML minds, which no model was trained on."""
    return _MARK.sub(r"encoded\1", json.dumps(value, ensure_ascii=False, indent=indent))


class _Marks:
    """Random words in the place of what people wrote: as it is, or, where a template makes JSON of it, as it stands
    there."""

    def __init__(self) -> None:
        self._written: dict[str, str] = {}
        self._num_values = 0

    def __contains__(self, piece: str) -> bool:
        return piece in self._written

    def written(self, piece: str) -> str:
        """What stands for the mark ``piece``; anything else as it is."""
        return self._written.get(piece, piece)

    def turn(self, turn: dict[str, Any]) -> dict[str, Any]:
        """With a mark for its content, whatever that is, and for all else in it that is no word."""
        return {**self.value(turn), "role": turn["role"], "content": self._mark(turn["content"])}

    def value(self, value: Any, depth: int = 0) -> Any:
        """A JSON value with marks for all strings in it that are no words. Raises LocalError when there are too many
        values in all, or too deep ones."""
        self._num_values += 1
        if self._num_values > _MAX_JSON_VALUES or depth > _MAX_JSON_DEPTH:
            raise LocalError(f"tools and extras have over {_MAX_JSON_VALUES} values, or some {_MAX_JSON_DEPTH} deep")
        if isinstance(value, str):
            return value if _WORD.fullmatch(value) else self._mark(value)
        if isinstance(value, list):
            return [self.value(item, depth + 1) for item in value]
        if isinstance(value, dict):
            return {self.value(key): self.value(item, depth + 1) for key, item in value.items()}
        return value

    def _mark(self, text: str) -> str:
        number = secrets.token_hex(16)
        self._written[f"content{number}"] = text
        self._written[f"encoded{number}"] = json.dumps(text, ensure_ascii=False)[1:-1]
        return f"content{number}"
