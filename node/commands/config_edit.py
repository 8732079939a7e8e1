"""Changes single values of a configuration file and leaves the rest, comments included, as it is."""

import json
import tomllib
from collections.abc import Mapping

import click


def with_values(text: str, section: str, values: Mapping[str, object]) -> str:
    """``text`` with these keys of a section; None removes a key. Raises click.ClickException for a file whose form is
    unusual, which then has to be edited by hand."""
    wanted = tomllib.loads(text)
    table = {name: value for name, value in {**wanted.get(section, {}), **values}.items() if value is not None}
    lines = text.splitlines()
    begin = next((n for n, line in enumerate(lines) if line.split("#")[0].strip() == f"[{section}]"), None)
    if begin is None:
        lines += [*([""] if lines else []), f"[{section}]"]
        begin = len(lines) - 1
    end = next((n for n in range(begin + 1, len(lines)) if lines[n].lstrip().startswith("[")), len(lines))
    kept = [line for line in lines[begin + 1 : end] if line.split("=")[0].strip() not in values]
    added = [f"{name} = {_toml(value)}" for name, value in values.items() if value is not None]
    made = "\n".join([*lines[: begin + 1], *added, *kept, *lines[end:]]) + "\n"
    try:
        is_right = tomllib.loads(made) == {**wanted, section: table}
    except tomllib.TOMLDecodeError:
        is_right = False
    if not is_right:
        shown = ", ".join(added)
        raise click.ClickException(f"the section [{section}] has an unusual form: write there by hand: {shown}")
    return made


def _toml(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)  # (numbers, truths, texts and lists are the same in TOML)
