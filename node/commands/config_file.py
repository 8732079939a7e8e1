"""Configuration: one TOML file, environment variables, flags; what is said last in that order counts.

What can be set is read off the commands' own options, so nothing of it is written twice: a section is a command, a key
the long name of one of its options. The variable of a key is MYCELIA_SECTION_KEY. Keys that several commands share
stand above the sections, and their variables have no section.
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import click

from mycelia.node.plugins import Plugged

MAX_FILE_BYTES = 262_144
PREFIX = "MYCELIA_"
SHARED = ("data_dir", "bootstrap", "swarm_key")
_NOT_SET = {"as_json", "help", "exit_with_parent", "version"}
"""Parameters that belong to one call alone."""
_ORDER = ("node", "ask", "chat", "swarm")
"""What people set first."""
_PATH_OR_NAME = {"model", "bootstrap"}
"""Keys whose values may be files, and else mean something different."""
_LIKE_NODE = ("doctor",)
"""Commands that look at what [node] says, where their own sections do not say otherwise."""
_OTHER_VARIABLES = {"MYCELIA_CONFIG", "MYCELIA_API_KEY"}


@dataclass(frozen=True)
class Setting:
    """A value, and who said it."""

    value: object
    source: str
    """The file, the variable, or "default"."""


Settings = dict[tuple[str, str], Setting]
"""(Section, key) -> what was set; the section of shared keys is empty."""


def default_file() -> Path:
    """Where the file is looked for unless told otherwise."""
    from platformdirs import user_config_path

    return user_config_path("mycelia", appauthor=False) / "config.toml"


class Schema:
    """What can be set, of a group of commands."""

    def __init__(self, group: click.Group) -> None:
        self.sections: dict[str, dict[str, click.Option]] = {"": {}}
        self._commands: dict[str, click.Command] = {}
        self._unknown: set[str] = set()
        """Sections of commands that are not imported: what is said there is not looked at."""
        others = sorted(set(group.commands) - set(_ORDER))
        for name in [*(name for name in _ORDER if name in group.commands), *others]:
            command = group.commands[name]
            if isinstance(command, Plugged):
                self._unknown.add(name)
                continue
            options = {_key(option): option for option in _options(command)}
            for key in SHARED:
                if key in options:
                    self.sections[""].setdefault(key, options[key])
            own = {key: option for key, option in options.items() if key not in SHARED}
            if own:
                self.sections[name] = own
            self._commands[name] = command

    def variables(self) -> dict[str, tuple[str, str]]:
        """Name of the environment variable -> section and key."""
        return {_variable(section, key): (section, key) for section, key in self.all_keys()}

    def all_keys(self) -> Iterator[tuple[str, str]]:
        """Section and key of everything."""
        for section, options in self.sections.items():
            for key in options:
                yield section, key

    def option(self, section: str, key: str) -> click.Option:
        return self.sections[section][key]

    def default_map(self, settings: Settings) -> dict[str, dict[str, object]]:
        """As click takes it: command -> parameter -> value."""
        found: dict[str, dict[str, object]] = {name: {} for name in self._commands}
        # ([node] first: whoever is like it may say otherwise)
        for (section, key), setting in sorted(settings.items(), key=lambda item: item[0][0] != "node"):
            names = [section] if section else list(self._commands)
            for name in names + [name for name in _LIKE_NODE if section == "node" and name in self._commands]:
                for option in _options(self._commands[name]):
                    if _key(option) == key and option.name is not None:
                        found[name][option.name] = setting.value
        return found

    def read(self, file: Path | None, environment: Mapping[str, str]) -> Settings:
        """What ``environment`` and ``file`` say. file: None for the default one, which need not be there.

        Raises click.UsageError that names the file or the variable.
        """
        path = file or default_file()
        return (self.read_file(path) if file or path.exists() else {}) | self.read_environment(environment)

    # --- reading ----------------------------------------------------------------------------------------------------

    def read_file(self, path: Path) -> Settings:
        """Raises click.UsageError that names the file and what is wrong in it."""
        import tomllib

        try:
            with path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
            if len(data) > MAX_FILE_BYTES:
                raise click.UsageError(f"{path} is over {MAX_FILE_BYTES} bytes")
            document = tomllib.loads(data.decode())
        except OSError as exc:
            raise click.UsageError(f"cannot read the configuration {path}: {exc.strerror}") from exc
        except UnicodeDecodeError as exc:
            raise click.UsageError(f"the configuration {path} is not UTF-8: {exc.reason} at byte {exc.start}") from exc
        except (tomllib.TOMLDecodeError, RecursionError) as exc:
            raise click.UsageError(f"the configuration {path} is no TOML: {exc}") from exc
        settings: Settings = {}
        for name, value in document.items():
            if name in self._unknown:
                continue
            if name in self.sections and name:
                if not isinstance(value, dict):
                    raise click.UsageError(f"{path}: {name} is a section: write [{name}] on a line of its own")
                for key, inner in value.items():
                    self._add(settings, path, name, key, inner)
            else:
                self._add(settings, path, "", name, value)
        return settings

    def read_environment(self, environment: Mapping[str, str]) -> Settings:
        """Raises click.UsageError that names the variable."""
        known = self.variables()
        settings: Settings = {}
        for name in sorted(environment):
            if not name.startswith(PREFIX) or name in _OTHER_VARIABLES:
                continue
            if name.startswith(tuple(_variable(section, "") for section in self._unknown)):
                continue
            if name not in known:
                raise click.UsageError(f"there is no variable {name}{_nearest(name, [*known, *_OTHER_VARIABLES])}")
            section, key = known[name]
            option = self.option(section, key)
            value: object = environment[name].split() if option.multiple else environment[name]
            settings[section, key] = Setting(self._checked(name, option, value), name)
        return settings

    def _add(self, settings: Settings, path: Path, section: str, key: str, value: object) -> None:
        where = f"{section}.{key}" if section else key
        if key not in self.sections[section]:
            names = [*self.sections[section], *([name for name in self.sections if name] if not section else [])]
            kind = "section" if isinstance(value, dict) and not section else "key"
            raise click.UsageError(f"{path}: there is no {kind} {where}{self._elsewhere(key) or _nearest(key, names)}")
        option = self.option(section, key)
        _check_type(path, where, option, value)
        value = _located(path.parent, key, option, value)
        settings[section, key] = Setting(self._checked(f"{path}: {where}", option, value), str(path))

    def _elsewhere(self, key: str) -> str:
        """Which sections have ``key``, as a hint; empty: none."""
        found = [
            f"[{name}]" if name else "the top, above all sections"
            for name, keys in self.sections.items()
            if key in keys
        ]
        return f"; it belongs in {' or '.join(found)}" if found else ""

    def _checked(self, where: str, option: click.Option, value: object) -> object:
        """``value`` as it is, once the option would take it."""
        try:
            option.type_cast_value(click.Context(click.Command("config")), value)
        except click.BadParameter as exc:
            raise click.UsageError(f"{where}: {exc.message}") from exc
        return value

    # --- writing ----------------------------------------------------------------------------------------------------

    def template(self) -> str:
        """A file with every key, its meaning and its default; all of it is comment."""
        lines = [
            "# Configuration of Mycelia. A line that begins with a # says nothing yet.",
            "# Environment variables go before this file, and flags before both: of api_port in [node] these are",
            "# MYCELIA_NODE_API_PORT and 'mycelia node --api-port'. Paths are relative to this file's folder.",
        ]
        for section, options in self.sections.items():
            lines += ["", f"[{section}]  # of 'mycelia {section}'"] if section else []
            for key, option in options.items():
                lines += ["", *(f"# {line}" for line in _wrapped(_help(option)))]
                lines.append(f"# {key} = {_toml(_example(option))}")
        return "\n".join(lines) + "\n"


def nothing_set(option: click.Option) -> object:
    """What counts when nobody sets it; None: what its help says."""
    default = option.default
    if option.is_flag and not isinstance(default, bool):
        return False
    if isinstance(default, tuple | list):
        return list(default)
    return default if isinstance(default, bool | int | float | str) else [] if option.multiple else None


def _options(command: click.Command) -> list[click.Option]:
    return [
        option
        for option in command.params
        if isinstance(option, click.Option)
        and option.name not in _NOT_SET
        and not option.hidden
        and not isinstance(option.type, click.File)
    ]


def _key(option: click.Option) -> str:
    return max(option.opts, key=len).lstrip("-").replace("-", "_")


def _variable(section: str, key: str) -> str:
    return PREFIX + "_".join(filter(None, (section, key))).upper().replace("-", "_")


def _nearest(name: str, names: list[str]) -> str:
    found = difflib.get_close_matches(name, names, 1, 0.5)
    return f"; did you mean {found[0]}?" if found else ""


def _check_type(path: Path, where: str, option: click.Option, value: object) -> None:
    """TOML has types, so "8" is no number and true is no 1. Raises click.UsageError."""
    if option.multiple:
        if not isinstance(value, list):
            raise click.UsageError(f"{path}: {where} is a list, as {_toml(_example(option))}")
        for item in value:
            _check_one(path, where, option, item)
    else:
        _check_one(path, where, option, value)


def _check_one(path: Path, where: str, option: click.Option, value: object) -> None:
    kind: tuple[type, ...]
    match option.type:
        case click.types.BoolParamType():
            kind, name = (bool,), "true or false"
        case click.types.IntParamType():
            kind, name = (int,), "a whole number"
        case click.types.FloatParamType():
            kind, name = (int, float), "a number"
        case _:
            kind, name = (str,), "a text in quotes"
    if not isinstance(value, kind) or (isinstance(value, bool) and bool not in kind):
        raise click.UsageError(f"{path}: {where} is {name}, not {_toml(value)}")


def _located(folder: Path, key: str, option: click.Option, value: object) -> object:
    """Paths as seen from the file."""
    if isinstance(value, list):
        return [_located(folder, key, option, item) for item in value]
    if not isinstance(value, str):
        return value
    path = folder / Path(value).expanduser()
    if isinstance(option.type, click.Path) or (key in _PATH_OR_NAME and path.is_file()):
        return str(path)
    return value


def _help(option: click.Option) -> str:
    words = [option.help or "", "Repeatable." if option.multiple and "Repeatable" not in (option.help or "") else ""]
    if isinstance(option.type, click.Choice):
        words.append(f"One of {', '.join(map(str, option.type.choices))}.")
    return " ".join(" ".join(words).split())


def _wrapped(text: str) -> list[str]:
    import textwrap

    return textwrap.wrap(text, 110)


def _example(option: click.Option) -> object:
    """Its default, or else something that it would take."""
    default = nothing_set(option)
    if default not in (None, [], ""):
        return default
    if (said := _said_default(option)) is not None:
        return said
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


def _said_default(option: click.Option) -> object:
    """What the help calls the default; None: it names none, or says it in words that are no value."""
    found = _DEFAULT.search(option.help or "")
    if found is None or " " in found[1] or option.multiple or isinstance(option.type, click.Path):
        return None
    try:
        return option.type.convert(found[1], option, None)
    except click.BadParameter:
        return None


_DEFAULT = re.compile(r"\[default: ([^\],;]+)")


def _toml(value: object) -> str:
    import json

    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)
