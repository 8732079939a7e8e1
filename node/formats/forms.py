"""One form in which models write calls of functions."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from mycelia.node.formats.patterns import Pattern

Body = Literal["calls", "json", "tagged", "gemma", "python"]
"""How a call goes on after its beginning. calls: JSON objects with the name and the arguments, or lists of such. json:
the arguments as JSON. tagged: each argument between tags. gemma: Gemma's notation of a JSON object. python: a list of
Python's calls."""


@dataclass(frozen=True)
class Form:
    """One way to write calls."""

    begins: tuple[Pattern, ...]
    body: Body
    next_chars: str = ""
    """The body begins with one of these characters; empty: any."""
    ends: tuple[Pattern, ...] = ()
    """Comes after the body; may be missing at the end of an answer, except with body "tagged"."""
    after: tuple[Pattern, ...] = ()
    """Marks between and after calls, which belong to them."""
    arguments: tuple[Pattern, ...] = ()
    """Tagged: the mark before an argument's value, in one of these spellings."""
    argument_end: str = ""
    """Tagged: the mark after it; "{key}" stands for the argument's name."""
    padding: str = ""
    """Tagged: comes before and after each value."""
    nested: str = ""
    """Tagged: the mark before each tag inside a value that is an object or a list."""
    names_are_keys: bool = False
    """Calls: the object's only key is the name of the function."""
    only_at_start: bool = False
    """Only where an answer, or what follows a thought or a call, begins."""


def names_in(forms: Collection[Form]) -> set[str]:
    """The literal marks of ``forms``."""
    patterns = [pattern for form in forms for pattern in (*form.begins, *form.ends, *form.after, *form.arguments)]
    return {pattern.source for pattern in patterns} | {form.argument_end for form in forms}
