"""Dataclass fields that a user may set. A field holds all that ``bench/options.py`` needs to make its option."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

METADATA = "setting"
"""The key of a field's ``Setting`` in its metadata."""


@dataclass(frozen=True)
class Setting:
    help: str
    flag: str
    least: float | None
    most: float | None
    above: float | None
    below: float | None
    choices: Sequence[str]
    metavar: str | None
    path: str
    scale: float
    shows_default: bool


def setting(
    default: Any,
    help: str,
    flag: str = "",
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: Sequence[str] = (),
    metavar: str | None = None,
    path: str = "",
    scale: float = 1.0,
    shows_default: bool = True,
) -> Any:
    """A field with an option.

    ``flag``: the option, if it is not the field's name. ``least``, ``most``: the closed ends of its range; ``above``,
    ``below``: open ends. ``path``: "file" or "folder", which must exist, or "output", a file to write. ``scale``: the
    field's value / the number given to the option.
    """
    option = Setting(help, flag, least, most, above, below, choices, metavar, path, scale, shows_default)
    return field(default=default, metadata={METADATA: option})
