"""A model's Jinja template as a bounded program.

A template comes with the model, its input from strangers. It runs in Jinja's sandbox, with counted steps: each round of
a loop and each call of a macro is one step. This bounds nested loops and recursion over a stranger's input. The output
and the results of ``*`` and ``**`` are bounded, too.

Templates find here what Hugging Face's transformers, for which they are written, offers them: the same filters,
functions and extensions, with the same arguments.
"""

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mycelia.node.engine.child.literals import mark_literals
from mycelia.proto.wire.errors import LocalError

MAX_STEPS = 100_000
"""Maximum number of steps of a rendering: about ten passes over 1,024 messages and 10,000 values. Takes 0.3 s."""
MAX_CHARS = 4 << 20
"""Maximum number of characters that are written: a conversation of the longest kind, ten times over."""
MAX_NUMBER_BITS = 1_024
_MAX_REASON_CHARS = 200
_MAX_JSON_INDENT, _MAX_SEPARATOR_CHARS = 16, 16


class RefusedError(LocalError):
    """The template refuses a conversation, or fails."""


class Template:
    """A compiled template. Any thread may use it."""

    variables: frozenset[str]
    """The names that it reads, from a context or from itself."""

    def __init__(self, source: str, mark: Callable[[str], str]) -> None:
        """mark: what ``render_marked`` writes for a literal. Raises LocalError when the source does not compile."""
        self._environment = _Environment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
        )
        self._plain = self._compile(source, None)
        self._marked = self._compile(source, mark)

    def _compile(self, source: str, mark: Callable[[str], str] | None) -> jinja2.Template:
        try:
            tree = self._environment.parse(source)
            self.variables = frozenset(name.name for name in tree.find_all(nodes.Name) if name.ctx == "load")
            if mark is not None:
                mark_literals(tree, mark)
            self._environment.count_steps_in(tree)
            code = self._environment.compile(tree)
        except (jinja2.TemplateError, RecursionError, SyntaxError) as exc:
            raise LocalError(f"the model's chat template does not compile: {exc}") from exc
        return jinja2.Template.from_code(self._environment, code, self._environment.make_globals(None))

    def render(self, context: dict[str, Any], now: datetime) -> str:
        """The rendered text; lone surrogates become question marks. Raises RefusedError when the template
        refuses ``context`` or fails, LocalError when it exceeds a bound. now: the time that the template sees."""
        return self._run(self._plain, context, now)

    def render_marked(self, context: dict[str, Any], now: datetime) -> str:
        """Like ``render``, with marks in the template's literals."""
        return self._run(self._marked, context, now)

    def _run(self, template: jinja2.Template, context: dict[str, Any], now: datetime) -> str:
        self._environment.begin(now)
        # (a template may change lists, and the next rendering must not see that)
        context = {name: list(value) if isinstance(value, list) else value for name, value in context.items()}
        try:
            text = _joined(template.root_render_func(template.new_context(context)))
        except LocalError:
            raise
        except Exception as exc:
            reason = str(exc)[:_MAX_REASON_CHARS]
            raise RefusedError(f"the model's chat template refuses the conversation: {reason}") from exc
        return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _joined(pieces: Iterable[str]) -> str:
    num_chars, written = 0, []
    for piece in pieces:
        num_chars += len(piece)
        if num_chars > MAX_CHARS:
            raise LocalError("the model's chat template writes too much of this conversation")
        written.append(piece)
    return "".join(written)


class _Generation(Extension):
    """``{% generation %}``: it says which text the model was trained to write, and changes nothing."""

    tags = {"generation"}  # noqa: RUF012  Jinja's name

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("*", "**"))

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._running = threading.local()
        self.filters["tojson"] = _to_json
        self.globals["raise_exception"] = _raise_exception
        # UTC, so that a template writes the same date on every node: prompts must stay equal.
        self.globals["strftime_now"] = lambda form: self._running.now.strftime(form)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Lists may change by one item a step, which transformers allows no template, but some templates do."""
        return super().is_safe_attribute(obj, attr, value) or (isinstance(obj, list) and attr in ("append", "pop"))

    def begin(self, now: datetime) -> None:
        """Reset this thread's counter of steps and its clock."""
        self._running.steps_left = MAX_STEPS
        self._running.now = now.astimezone(UTC)

    def count_step(self) -> bool:
        """Count a step; always True. Raises LocalError when there are too many. Called by templates."""
        self._running.steps_left -= 1
        if self._running.steps_left < 0:
            raise LocalError("the model's chat template goes through this conversation for too long")
        return True

    def count_steps_in(self, tree: nodes.Template) -> None:
        """Insert a counter into every loop and every macro. Mutates ``tree``."""
        places: Iterable[Any] = tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock))
        for place in places:
            step = nodes.Call(nodes.EnvironmentAttribute("count_step"), [], [], None, None)
            place.body.insert(0, nodes.ExprStmt(step))
            if isinstance(place, nodes.For) and place.test is not None:
                place.test = nodes.And(step, place.test)
            for child in (place.body[0], step, step.node):
                child.set_lineno(place.lineno).set_environment(self)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Jinja's hook for ``intercepted_binops``."""
        if operator == "**":
            num_bits, num_items = _bits(left) * (right if isinstance(right, int) else 1), 0
        else:
            num_bits = _bits(left) + _bits(right)
            num_items = max(_length(left) * _number(right), _length(right) * _number(left))
        if num_bits > MAX_NUMBER_BITS or num_items > MAX_CHARS:
            raise LocalError(f"the model's chat template makes too much of this conversation with {operator}")
        return super().call_binop(context, operator, left, right)


def _bits(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 0


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str | list | tuple) else 0


def _raise_exception(message: str) -> str:
    raise jinja2.TemplateError(message)


def _to_json(
    value: object, ensure_ascii: bool = False, indent: object = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """The filter ``tojson`` of transformers. Jinja's own also escapes characters for HTML, which no model was trained
    on."""
    if isinstance(indent, int):
        indent = min(indent, _MAX_JSON_INDENT)
    elif isinstance(indent, str):
        indent = indent[:_MAX_JSON_INDENT]
    else:
        indent = None
    if separators is not None:
        item, key = separators
        separators = item[:_MAX_SEPARATOR_CHARS], key[:_MAX_SEPARATOR_CHARS]
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys, default=_as_list
    )


def _as_list(value: object) -> list[object]:
    """The result of a filter such as ``map``."""
    if isinstance(value, Iterator):
        return list(value)
    raise TypeError(f"{type(value).__name__} is no JSON")
