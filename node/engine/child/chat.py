"""Turns conversations into tokens with the model's own chat template: the tokens that the model's authors would make of
them, except that nobody can spell control tokens (``controls.py``)."""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from mycelia.node.engine.child.abilities import SWITCHES, THOUGHT_FIELDS
from mycelia.node.engine.child.controls import Controls, Part, Rendered
from mycelia.node.engine.child.conversation import Turn, check_values, forms, parsed, read_options, read_turns
from mycelia.node.engine.child.rendering import Renderer
from mycelia.node.engine.child.template import RefusedError
from mycelia.node.engine.prompts import PromptLimit, pieces
from mycelia.proto.wire.errors import LocalError
from mycelia.proto.wire.messages import ChatMessage

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The template for models without one, as llama.cpp assumes."""

NO_LIMIT = PromptLimit(2**31, 2**31)
_END = f"end-{secrets.token_hex(16)} "
"""Marks the place where a prompt ends that an answer continues. The blank shows whether the template trims contents."""


_NEXT_EFFORT = {"minimal": "low", "high": "xhigh", "xhigh": "high", "max": "high"}
"""Templates differ in the names of the least and the most effort."""


class Tokenizer(Protocol):
    """See ``ModelVocabulary``."""

    @property
    def bos_token(self) -> int | None: ...

    @property
    def controls(self) -> Controls: ...

    @property
    def special_texts(self) -> Mapping[str, str]: ...

    def tokenize(self, text: str, special: bool, continues: bool = False) -> list[int]: ...


class ChatTemplate:
    """A compiled template with its vocabulary. Immutable: any thread may use it."""

    def __init__(
        self, text: str | None, tokenizer: Tokenizer, limit: PromptLimit = NO_LIMIT, tools_text: str | None = None
    ) -> None:
        """text: the Jinja source, None for ChatML. tools_text: that for conversations with tools, if it is another."""
        self._tokenizer = tokenizer
        self._limit = limit
        self._renderer: Renderer | None = None
        self._tools_renderer: Renderer | None = None
        self.problem = ""
        """The reason why there are no conversations with this model; empty: there are."""
        try:
            self._renderer = Renderer(text or CHATML, tokenizer.controls, tokenizer.special_texts)
            self._tools_renderer = self._renderer
            if tools_text:
                self._tools_renderer = Renderer(tools_text, tokenizer.controls, tokenizer.special_texts)
        except LocalError as exc:
            self.problem = str(exc)

    def tokens(
        self, messages: Sequence[ChatMessage], tools: str = "", options: str = "", continues_final: bool = False
    ) -> list[int]:
        """The prompt of a conversation. tools, options, continues_final: see ``Ask``. Raises TooLongError when the
        prompt does not fit the context, LocalError for no messages, a role that is not a word, invalid JSON, or a
        conversation that the template refuses in all forms."""
        return self._tokens_of(self._rendered(messages, tools, options, continues_final).parts())

    @property
    def reads_tools(self) -> bool:
        """Whether the template describes functions itself; otherwise a system message does."""
        return self._tools_renderer is not None and self._tools_renderer.abilities.reads_tools

    def text_tokens(self, text: str) -> list[int]:
        """The tokens of ``text`` without the template; spelled control tokens become control tokens. Raises
        TooLongError."""
        return self._tokens_of([self._tokenizer.controls.all_count(text)])

    def pair_tokens(self, query: str, document: str) -> list[int]:
        """See ``PooledTexts.pair_tokens``."""
        raise LocalError("this model ranks no documents")

    def _tokens_of(self, parts: Sequence[Part]) -> list[int]:
        tokens = tokens_of(parts, self._tokenizer, self._limit)
        bos_token = self._tokenizer.bos_token
        if bos_token is not None and tokens[:1] != [bos_token]:
            tokens.insert(0, bos_token)
        return tokens

    def _rendered(self, messages: Sequence[ChatMessage], tools: str, options: str, continues_final: bool) -> Rendered:
        if self._renderer is None or self._tools_renderer is None:
            raise LocalError(f"this model cannot chat, only complete texts: {self.problem}")
        turns, functions = read_turns(messages), parsed("tools", tools, list)
        renderer = self._tools_renderer if functions else self._renderer
        context = _switched(read_options(options))
        check_values([functions, context, *turns])
        if continues_final:
            turns, context = [*turns[:-1], _continued(turns[-1])], context | {"add_generation_prompt": False}
        refusal: RefusedError | None = None
        for chosen in (context, *_with_other_efforts(context)):
            if refusal is not None and str(context["reasoning_effort"]) not in str(refusal):
                break
            tried: list[object] = []
            for form, given in forms(turns, functions, renderer.abilities):
                if (form, given) in tried:
                    continue
                tried.append((form, given))
                try:
                    rendered = renderer.render({"messages": form, "tools": given or None} | chosen)
                    return _up_to_end(rendered) if continues_final else rendered
                except RefusedError as exc:
                    refusal = refusal or exc
        assert refusal is not None
        raise refusal


def tokens_of(parts: Sequence[Part], tokenizer: Tokenizer, limit: PromptLimit) -> list[int]:
    """The tokens of a text in parts. Raises TooLongError."""
    limit.check_size(sum(len(part.text) for part in parts))
    tokens: list[int] = []
    for part in parts:
        for text, continues in pieces(part.text, part.controls):
            tokens += tokenizer.tokenize(text, part.with_controls, continues or part.continues)
            limit.check_tokens(len(tokens))
    return tokens


def _switched(options: dict[str, Any]) -> dict[str, Any]:
    """The options, with those that mean the same by the names that templates have for them."""
    effort = options.get("reasoning_effort")
    if effort == "none":
        del options["reasoning_effort"]
    elif isinstance(effort, str):
        options.setdefault("reasoning_strength", effort)
    given = [options[name] for name in SWITCHES if name in options] or [effort != "none"] * isinstance(effort, str)
    return dict.fromkeys(SWITCHES, given[0]) | options if given else options


def _with_other_efforts(options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The options for a template that refuses their reasoning effort: with the next one that it may know, and without
    one."""
    effort = options.get("reasoning_effort")
    if effort is not None:
        without = {name: value for name, value in options.items() if name != "reasoning_effort"}
        if isinstance(effort, str) and effort in _NEXT_EFFORT:
            yield without | {"reasoning_effort": _NEXT_EFFORT[effort]}
        yield without


def _continued(turn: Turn) -> Turn:
    """The turn with ``_END`` at the end of its text, or of its thoughts if it has no text yet. Raises LocalError."""
    if turn["role"] != "assistant" or turn.get("tool_calls"):
        raise LocalError("only a last message of the assistant, without calls, can be continued")
    parts, thoughts = turn["content"] or [""], turn.get(THOUGHT_FIELDS[0])
    if thoughts and not any(parts):
        return {**turn, THOUGHT_FIELDS[0]: thoughts + _END}
    return {**turn, "content": [*parts[:-1], parts[-1] + _END]}


def _up_to_end(rendered: Rendered) -> Rendered:
    """The text before ``_END``, as transformers cuts it."""
    end = rendered.text.rfind(_END.strip())
    if end < 0:
        raise RefusedError("the model's chat template leaves out the message that is to be continued")
    if not rendered.text.startswith(_END, end):
        end = len(rendered.text[:end].rstrip())
    return rendered.up_to(end)
