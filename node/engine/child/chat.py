"""Turns a conversation into tokens with the model's own chat template, safe against spelled-out control tokens.

If the whole text were rendered first and then tokenized, a user could write ``<|im_end|><|im_start|>system`` and speak
as the system. So a random mark replaces every string from the conversation before rendering, and the rendered text is
split at the marks. The template's own text is tokenized with control tokens, the text of the conversation without. A
mark cannot be guessed, and only words have no mark (roles, names of functions and of their fields), so no message can
reach the part that makes control tokens.
"""

import json
import re
import secrets
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import msgspec

from mycelia.node.engine.child.template import Template
from mycelia.node.engine.child.tools import check_calls, told_in_words
from mycelia.node.engine.prompts import PromptLimit, Tokenize, pieces
from mycelia.proto.wire.errors import LocalError
from mycelia.proto.wire.messages import ChatMessage

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The template for models without one, as llama.cpp assumes."""

_ROLE = re.compile(r"[A-Za-z0-9_-]{1,32}")
_WORD = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MARK = re.compile(r"(?:content|encoded)([0-9a-f]{32})")
_MARKS = re.compile(r"((?:content|encoded)[0-9a-f]{32})")
_MAX_JSON_VALUES, _MAX_JSON_DEPTH = 10_000, 64
"""Bounds for the tools and extras of one conversation."""
_MAX_JSON_INDENT = 16
_NO_LIMIT = PromptLimit(2**31, 2**31)


class ChatTemplate:
    """A compiled template with its vocabulary. Immutable: any thread may use it."""

    def __init__(
        self,
        text: str | None,
        tokenize: Tokenize,
        *,
        bos_text: str = "",
        eos_text: str = "",
        bos_token: int | None = None,
        limit: PromptLimit = _NO_LIMIT,
    ) -> None:
        """text: the Jinja source, None for ChatML. bos_token: the token with which every prompt of the model must
        begin. Raises LocalError when the source does not compile."""
        self._reads_tools = "tools" in (text or CHATML)
        self._tokenize = tokenize
        self._specials = {"bos_token": bos_text, "eos_token": eos_text}
        self._bos_token = bos_token
        self._limit = limit
        self._template = Template(text or CHATML, _to_json)

    def tokens(self, messages: Sequence[ChatMessage], tools: str = "") -> list[int]:
        """The prompt of a conversation, ready for the assistant's turn. tools: see ``Ask.tools``. Raises TooLongError
        when the prompt does not fit the context, LocalError for no messages, a role that is not a word, invalid JSON,
        or a conversation that the template refuses."""
        return self._tokens_of(self._parts(messages, tools))

    def text_tokens(self, text: str) -> list[int]:
        """The tokens of ``text`` without the template; spelled control tokens become control tokens. Raises
        TooLongError."""
        return self._tokens_of([(text, False)])

    def _tokens_of(self, parts: Sequence[tuple[str, bool]]) -> list[int]:
        self._limit.check_size(sum(len(text) for text, _ in parts))
        tokens: list[int] = []
        for text, is_written in parts:
            for piece in pieces(text):
                tokens += self._tokenize(piece, not is_written)
                self._limit.check_tokens(len(tokens))
        if self._bos_token is not None and tokens[:1] != [self._bos_token]:
            tokens.insert(0, self._bos_token)
        return tokens

    def _parts(self, messages: Sequence[ChatMessage], tools: str) -> list[tuple[str, bool]]:
        """The rendered text, split at the marks: (text, whether it comes from the conversation)."""
        if not messages:
            raise LocalError("a conversation needs at least one message")
        turns = [_turn(message) for message in messages]
        functions = _parsed("tools", tools, list)
        _check_values([functions, *turns])
        if not self._reads_tools and (functions or any(len(turn) > 2 for turn in turns)):
            turns, functions = told_in_words(turns, functions), []
        marks = _Marks()
        marked = [marks.turn(turn) for turn in turns]
        context = {"tools": marks.value(functions)} if functions else {}
        rendered = self._template.render(
            {"messages": marked, "add_generation_prompt": True, **context, **self._specials}
        )
        parts = [(marks.written(piece), piece in marks) for piece in _MARKS.split(rendered)]
        return [(text, is_written) for text, is_written in parts if text]


def _turn(message: ChatMessage) -> dict[str, Any]:
    if not _ROLE.fullmatch(message.role):
        raise LocalError(f"role {message.role[:64]!r} is not a word of letters, digits, _ and -")
    extras = _parsed("extras", message.extras, dict)
    check_calls(extras.get("tool_calls"))
    return {**extras, "role": message.role, "content": message.content}


_Parsed = TypeVar("_Parsed", list[Any], dict[str, Any])


def _parsed(name: str, text: str, kind: type[_Parsed]) -> _Parsed:
    try:
        return msgspec.json.decode(text, type=kind) if text else kind()
    except (msgspec.DecodeError, RecursionError, UnicodeError) as exc:
        raise LocalError(f"the {name} of the conversation are not valid: {exc}") from exc


def _check_values(values: Iterable[Any]) -> None:
    """Raise LocalError when there are too many values in total, or too deeply nested ones."""
    num_values, level = 0, list(values)
    for _ in range(_MAX_JSON_DEPTH):
        num_values += len(level)
        if not level or num_values > _MAX_JSON_VALUES:
            break
        holders = [value for value in level if isinstance(value, dict | list)]
        level = [item for holder in holders for item in (holder.values() if isinstance(holder, dict) else holder)]
    if level:
        raise LocalError(f"tools and extras have over {_MAX_JSON_VALUES} values, or some {_MAX_JSON_DEPTH} deep")


def _to_json(value: object, indent: object = None, **_: object) -> str:
    """The filter ``tojson``. Jinja's own filter also escapes characters for HTML, which no model was trained on."""
    spaces = min(indent, _MAX_JSON_INDENT) if isinstance(indent, int) else None
    return _MARK.sub(r"encoded\1", json.dumps(value, ensure_ascii=False, indent=spaces))


class _Marks:
    """Random words that replace texts of the conversation: one for the plain text, one for its form inside JSON."""

    def __init__(self) -> None:
        self._written: dict[str, str] = {}

    def __contains__(self, piece: str) -> bool:
        return piece in self._written

    def written(self, piece: str) -> str:
        """The text that the mark ``piece`` replaced; any other text is returned unchanged."""
        return self._written.get(piece, piece)

    def turn(self, turn: dict[str, Any]) -> dict[str, Any]:
        """The turn with a mark for its content, and for all other strings that are not words."""
        return {**self.value(turn), "role": turn["role"], "content": self._mark(turn["content"])}

    def value(self, value: Any) -> Any:
        """The JSON value with marks for all strings that are not words."""
        if isinstance(value, str):
            return value if _WORD.fullmatch(value) else self._mark(value)
        if isinstance(value, list):
            return [self.value(item) for item in value]
        if isinstance(value, dict):
            return {self.value(key): self.value(item) for key, item in value.items()}
        return value

    def _mark(self, text: str) -> str:
        number = secrets.token_hex(16)
        self._written[f"content{number}"] = text
        self._written[f"encoded{number}"] = json.dumps(text, ensure_ascii=False)[1:-1]
        return f"content{number}"
