"""A model's Jinja template as a bounded program.

A template comes with the model, its input from strangers. It runs in Jinja's sandbox, with counted steps: each round of
a loop and each call of a macro is one step. This bounds nested loops and recursion over a stranger's input. The output
and the results of ``*`` and ``**`` are bounded, too.
"""

import threading
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mycelia.proto.wire.errors import LocalError

MAX_STEPS = 100_000
"""Maximum number of steps of a rendering: about ten passes over 1,024 messages and 10,000 values. Takes 0.3 s."""
MAX_CHARS = 4 << 20
"""Maximum number of characters that are written: all marks of a conversation, ten times over."""
MAX_NUMBER_BITS = 1_024
_MAX_REASON_CHARS = 200


class Template:
    """A compiled template. Any thread may use it."""

    def __init__(self, source: str, to_json: Callable[..., str]) -> None:
        """to_json: the filter ``tojson``. Raises LocalError when the source does not compile."""
        self._environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        self._environment.filters["tojson"] = to_json
        try:
            tree = self._environment.parse(source)
            self._environment.count_steps_in(tree)
            code = self._environment.compile(tree)
        except (jinja2.TemplateError, RecursionError) as exc:
            raise LocalError(f"the model's chat template does not compile: {exc}") from exc
        self._template = jinja2.Template.from_code(self._environment, code, self._environment.make_globals(None))

    def render(self, context: dict[str, Any]) -> str:
        """The rendered text. Raises LocalError when the template refuses ``context``, fails, or exceeds a bound."""
        self._environment.begin()
        try:
            return "".join(_bounded(self._template.generate(context)))
        except LocalError:
            raise
        except Exception as exc:
            reason = str(exc)[:_MAX_REASON_CHARS]
            raise LocalError(f"the model's chat template refuses the conversation: {reason}") from exc


def _bounded(pieces: Iterable[str]) -> Iterable[str]:
    num_chars = 0
    for piece in pieces:
        num_chars += len(piece)
        if num_chars > MAX_CHARS:
            raise LocalError("the model's chat template writes too much of this conversation")
        yield piece


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("*", "**"))

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._steps = threading.local()
        self.globals["raise_exception"] = _raise_exception
        # UTC, so that a template writes the same date on every node: prompts must stay equal.
        self.globals["strftime_now"] = lambda form: datetime.now(UTC).strftime(form)

    def begin(self) -> None:
        """Reset this thread's counter of steps."""
        self._steps.left = MAX_STEPS

    def count_step(self) -> bool:
        """Count a step; always True. Raises LocalError when there are too many. Called by templates."""
        self._steps.left -= 1
        if self._steps.left < 0:
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
