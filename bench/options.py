"""Command-line options made from the fields of dataclasses, see ``sim/setting.py``."""

import math
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import wraps
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import click

from mycelia.sim.setting import METADATA, Setting

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")


class _Choice(click.Choice[str]):
    """One of some texts, as a value of the field's type, which may be a StrEnum: click would ask for its names."""

    def __init__(self, choices: Sequence[str], kind: type) -> None:
        super().__init__([str(one) for one in choices])
        self._kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return self._kind(super().convert(str(value), param, ctx))


class FiniteRange(click.FloatRange):
    """A range of floats without NaN and infinity, which click accepts."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is no finite number.", param, ctx)
        return number


def options_of(plan: type) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator that gives a command one option for each field of ``plan`` that is a ``setting``. The command gets
    one ``plan`` instead of them, after the arguments of decorators above this one."""
    hints = get_type_hints(plan)
    options = {one.name: (one.metadata[METADATA], one.default) for one in fields(plan) if METADATA in one.metadata}

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def command(*before: object, **values: Any) -> Any:
            taken = {name: _scaled(values.pop(name), option.scale) for name, (option, _) in options.items()}
            given = {name: value for name, value in taken.items() if value not in (None, ())}
            return function(*before, plan(**given), **values)

        for name, (option, default) in reversed(options.items()):
            command = _click_option(name, option, default, hints[name])(command)
        return command

    return decorate


def epilog(*examples: str) -> str:
    """The examples at the end of a command's help."""
    return "\n".join(["\b", "Examples:", *(f"  mycelia {example}" for example in examples)])


def _click_option(name: str, option: Setting, default: Any, hint: Any) -> Callable[..., Any]:
    """hint: the field's type: ``T``, ``T | None`` or ``tuple[T, ...]``."""
    is_many = get_origin(hint) is tuple
    (kind, *_) = [one for one in get_args(hint) or (hint,) if one not in (NoneType, Ellipsis)]
    shows = option.shows_default and default not in (None, ())
    flag = option.flag or f"--{name.replace('_', '-')}"
    if kind is bool:
        return click.option(flag, name, is_flag=True, default=default, show_default="/" in flag, help=option.help)
    return click.option(
        flag,
        name,
        type=_type(option, kind),
        multiple=is_many,
        default=_scaled(default, 1 / option.scale) if shows else None,
        show_default=shows,
        metavar=option.metavar,
        help=option.help,
    )


def _type(option: Setting, kind: type) -> Any:
    if option.choices:
        return _Choice(option.choices, kind)
    if kind is Path:
        is_folder, is_there = option.path == "folder", option.path != "output"
        return click.Path(exists=is_there, file_okay=not is_folder, dir_okay=is_folder, path_type=Path)
    low, high = (next((x for x in ends if x is not None), None) for ends in _ends(option))
    if kind is float:
        return FiniteRange(low, high, min_open=option.above is not None, max_open=option.below is not None)
    if kind is int and low is not None:
        return click.IntRange(int(low), None if high is None else int(high))
    return kind


def _ends(option: Setting) -> tuple[tuple[float | None, float | None], tuple[float | None, float | None]]:
    return (option.least, option.above), (option.most, option.below)


def _scaled(value: Any, scale: float) -> Any:
    return value * scale if scale != 1.0 and value is not None else value
