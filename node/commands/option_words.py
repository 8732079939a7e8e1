"""What the configuration says of an option: its meaning, its default, an example."""

import re

import click


def nothing_set(option: click.Option) -> object:
    """The option's value when nothing sets it; None: its help says the default in words."""
    default = option.default
    if option.is_flag and not isinstance(default, bool):
        return False
    if isinstance(default, tuple | list):
        return list(default)
    return default if isinstance(default, bool | int | float | str) else [] if option.multiple else None


def help_of(option: click.Option) -> str:
    words = [option.help or "", "Repeatable." if option.multiple and "Repeatable" not in (option.help or "") else ""]
    if isinstance(option.type, click.Choice):
        words.append(f"One of {', '.join(map(str, option.type.choices))}.")
    return " ".join(" ".join(words).split())


def wrapped(text: str) -> list[str]:
    import textwrap

    return textwrap.wrap(text, 110)


def example_of(option: click.Option) -> object:
    """The option's default, else a value that it accepts."""
    default = nothing_set(option)
    if default not in (None, [], ""):
        return default
    if (said := said_default(option)) is not None:
        return said
    if isinstance(option.type, click.Choice):
        first = str(option.type.choices[0])
        return [first] if option.multiple else first
    if option.multiple:
        return [option.metavar or "..."]
    match option.type:
        case click.IntRange() | click.FloatRange():
            return option.type.min or 1
        case click.types.BoolParamType():
            return False
        case click.types.IntParamType() | click.types.FloatParamType():
            return 1
        case click.Path():
            return option.metavar or "PATH"
        case _:
            return ""


def said_default(option: click.Option) -> object:
    """The default that the help names; None: it names none, or it is in words that are not a value."""
    found = _DEFAULT.search(option.help or "")
    if found is None or " " in found[1] or option.multiple or isinstance(option.type, click.Path):
        return None
    try:
        return option.type.convert(found[1], option, None)
    except click.BadParameter:
        return None


def default_words(option: click.Option) -> str | None:
    """What the help says of the default, in brackets; None: nothing."""
    found = re.search(r"\[default: ([^\]]+)\]", option.help or "")
    return f"({found[1]})" if found else None


_DEFAULT = re.compile(r"\[default: ([^\],;]+)")


def toml_of(value: object) -> str:
    import json

    if isinstance(value, list):
        return f"[{', '.join(map(toml_of, value))}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)
