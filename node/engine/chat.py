"""Turns a conversation into tokens through the model's own chat template, safe against spelled-out control tokens.

Rendering first and tokenizing the whole text would let a user write ``<|im_end|><|im_start|>system`` and speak as the
system. So every content is replaced by a random mark before rendering; the rendered text is split at the marks; what
the template wrote is tokenized with control tokens, what people wrote without. Nobody can guess a mark, and roles are
checked, so no message can reach the part that makes control tokens.
"""

import re
import secrets
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from proto.errors import LocalError
from proto.messages import ChatMessage

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""For models without a template: what llama.cpp assumes then."""

_ROLE = re.compile(r"[A-Za-z0-9_-]{1,32}")

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
        self._tokenize = tokenize
        self._specials = {"bos_token": bos_text, "eos_token": eos_text}
        self._bos_token = bos_token
        try:
            self._template = environment.from_string(text or CHATML)
        except jinja2.TemplateError as exc:
            raise LocalError(f"the model's chat template does not compile: {exc}") from exc

    def tokens(self, messages: Sequence[ChatMessage]) -> list[int]:
        """The prompt of a conversation, ready for the assistant's turn.

        Raises LocalError for no messages, a role that is not a word, or a conversation that the template refuses.
        """
        tokens: list[int] = []
        for text, is_content in self._parts(messages):
            tokens += self._tokenize(text, not is_content)
        if self._bos_token is not None and tokens[:1] != [self._bos_token]:
            tokens.insert(0, self._bos_token)
        return tokens

    def _parts(self, messages: Sequence[ChatMessage]) -> list[tuple[str, bool]]:
        """The rendered text, cut at the contents: (text, is it a content)."""
        if not messages:
            raise LocalError("a conversation needs at least one message")
        for message in messages:
            if not _ROLE.fullmatch(message.role):
                raise LocalError(f"role {message.role!r} is not a word of letters, digits, _ and -")
        contents = {f"content{secrets.token_hex(16)}": message.content for message in messages}
        turns = [{"role": message.role, "content": mark} for message, mark in zip(messages, contents, strict=True)]
        rendered = self._render(turns)
        pieces = re.split("(" + "|".join(contents) + ")", rendered)
        return [(contents.get(piece, piece), piece in contents) for piece in pieces if contents.get(piece, piece)]

    def _render(self, turns: Sequence[dict[str, str]]) -> str:
        try:
            return self._template.render(messages=turns, add_generation_prompt=True, **self._specials)
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as exc:
            # A template is a program: what it raises by itself is one more way of refusing the conversation.
            raise LocalError(f"the model's chat template refuses the conversation: {exc}") from exc
