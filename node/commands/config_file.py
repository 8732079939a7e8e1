"""The configuration: a TOML file, overridden by environment variables, overridden by command line options.

The settings are the options of the commands: a section is a command, and a key is the long name of one of its options.
The environment variable of a key is MYCELIA_SECTION_KEY. Keys that several commands share stand above the sections, and
their variables have no section.
"""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from mycelia.node.commands.option_words import example_of, help_of, nothing_set, said_default, toml_of, wrapped
from mycelia.node.plugins import Plugged
from mycelia.node.settings import LOAD, WHEN, UsageError

MAX_FILE_BYTES = 262_144
PREFIX = "MYCELIA_"
SHARED = ("data_dir", "bootstrap", "swarm_key")
_NOT_SET = {"as_json", "help", "exit_with_parent", "version", "since_s", "for_s"}
"""Parameters that belong to one call and cannot be configured."""
_ORDER = ("node", "ask", "chat", "swarm")
"""The first sections of the written file: the ones that users change most."""
ALIASES, KEYS, MODELS = "aliases", "keys", "models"
"""The sections that spell the options --alias, --key and --model of nodes as tables."""
_ONE_OR_MORE = {"model"}
"""Keys of repeatable options that may also have one value that is no list."""
_PATH_OR_NAME = {"model", "bootstrap"}
"""Keys whose values are files or something else, such as a name."""
_LIKE_NODE = ("doctor",)
"""Commands that also take the settings of [node], unless their own sections override them."""
_ONE_CALL = ("setup",)
"""Commands whose options are answers to questions, and not settings."""
_OTHER_VARIABLES = {"MYCELIA_CONFIG", "MYCELIA_API_KEY"}


@dataclass(frozen=True)
class Setting:
    value: object
    source: str
    """The path of the file, the name of the variable, or "default"."""


Settings = dict[tuple[str, str], Setting]
"""(Section, key) -> setting; the section of shared keys is empty."""


SYSTEM_FILE = Path("/etc/mycelia/config.toml")
"""For services of the system, and for users without a file of their own."""


def default_file() -> Path:
    """The path of the configuration file when ``--config`` is not given."""
    from platformdirs import user_config_path

    own = user_config_path("mycelia", appauthor=False) / "config.toml"
    return SYSTEM_FILE if not own.exists() and SYSTEM_FILE.exists() else own


class Schema:
    def __init__(self, group: click.Group) -> None:
        self.sections: dict[str, dict[str, click.Option]] = {"": {}}
        self._commands: dict[tuple[str, ...], tuple[click.Command, str]] = {}
        """Names, as on the command line -> command, and the section of its own options; empty: they have none."""
        self._unknown: set[str] = set()
        """Sections of commands that are not imported; they are ignored."""
        others = sorted(set(group.commands) - set(_ORDER))
        for name in [*(name for name in _ORDER if name in group.commands), *others]:
            command = group.commands[name]
            if isinstance(command, Plugged):
                self._unknown.add(name)
                continue
            if isinstance(command, click.Group):
                for inner in sorted(command.commands):
                    # (the options of a group's default command are those of its section)
                    is_default = inner == getattr(command, "default_cmd_name", None)
                    self._add_command((name, inner), command.commands[inner], name if is_default else "")
            else:
                self._add_command((name,), command, "" if name in _ONE_CALL else name)

    def _add_command(self, names: tuple[str, ...], command: click.Command, section: str) -> None:
        options = {_key(option): option for option in _options(command)}
        for key in SHARED:
            if key in options:
                self.sections[""].setdefault(key, options[key])
        own = {key: option for key, option in options.items() if key not in SHARED}
        if own and section:
            self.sections[section] = own
        self._commands[names] = command, section

    def variables(self) -> dict[str, tuple[str, str]]:
        """Name of the environment variable -> section and key."""
        return {_variable(section, key): (section, key) for section, key in self.all_keys()}

    def all_keys(self) -> Iterator[tuple[str, str]]:
        for section, options in self.sections.items():
            for key in options:
                yield section, key

    def option(self, section: str, key: str) -> click.Option:
        return self.sections[section][key]

    def default_map(self, settings: Settings) -> dict[str, Any]:
        """The settings as click's ``default_map``: command -> parameter -> value, nested for groups."""
        found: dict[str, Any] = {}
        # ([node] first, so that the commands in _LIKE_NODE can override it)
        for (section, key), setting in sorted(settings.items(), key=lambda item: item[0][0] != "node"):
            for names, (command, own) in self._commands.items():
                if section in ("", own) or (section == "node" and names[0] in _LIKE_NODE):
                    for option in _options(command):
                        if _key(option) == key and option.name is not None:
                            _at(found, names)[option.name] = _value_for(option, setting.value)
        return found

    def read(self, file: Path | None, environment: Mapping[str, str]) -> Settings:
        """The settings of ``environment`` and ``file``. file: None for the default one, which may be missing.

        Raises click.UsageError that names the file or the variable.
        """
        path = file or default_file()
        return (self.read_file(path) if file or path.exists() else {}) | self.read_environment(environment)

    # --- reading ----------------------------------------------------------------------------------------------------

    def read_file(self, path: Path) -> Settings:
        """The settings of one file. Raises click.UsageError that names the file and the mistake in it."""
        import tomllib

        document = tomllib.loads(read_text(path))
        settings: Settings = {}
        # (the sections of aliases, keys and models last, as they go beside those of [node])
        for name, value in sorted(document.items(), key=lambda item: item[0] in (ALIASES, KEYS, MODELS)):
            if name in self._unknown:
                continue
            if name == ALIASES and ("node", "alias") in set(self.all_keys()):
                if pairs := _pairs(path, value, document.get("node")):
                    self._add(settings, path, "node", "alias", pairs)
            elif name == KEYS and ("node", "key") in set(self.all_keys()):
                self._add(settings, path, "node", "key", _keys(path, value, document.get("node")))
            elif name == MODELS and ("node", "model") in set(self.all_keys()):
                if models := _models(path, value, document.get("node")):
                    self._add(settings, path, "node", "model", models)
            elif name in self.sections and name:
                if not isinstance(value, dict):
                    raise click.UsageError(f"{path}: {name} is a section; write [{name}] on a line of its own")
                for key, inner in value.items():
                    self._add(settings, path, name, key, inner)
            else:
                self._add(settings, path, "", name, value)
        return settings

    def read_environment(self, environment: Mapping[str, str]) -> Settings:
        """The settings of MYCELIA_* variables. Raises click.UsageError that names the variable."""
        known = self.variables()
        settings: Settings = {}
        for name in sorted(environment):
            if not name.startswith(PREFIX) or name in _OTHER_VARIABLES:
                continue
            if name.startswith(tuple(_variable(section, "") for section in self._unknown)):
                continue
            if name not in known:
                nearest = _nearest(name, [*known, *_OTHER_VARIABLES])
                raise click.UsageError(f"there is no setting for the environment variable {name}{nearest}")
            section, key = known[name]
            option = self.option(section, key)
            value: object = environment[name]
            if option.multiple:
                is_file = key in _ONE_OR_MORE and Path(environment[name]).is_file()
                value = [environment[name]] if is_file else environment[name].split()
            settings[section, key] = Setting(self._checked(name, option, value), name)
        return settings

    def _add(self, settings: Settings, path: Path, section: str, key: str, value: object) -> None:
        where = f"{section}.{key}" if section else key
        if key not in self.sections[section]:
            names = [*self.sections[section], *([name for name in self.sections if name] if not section else [])]
            kind = "section" if isinstance(value, dict) and not section else "key"
            raise click.UsageError(f"{path}: there is no {kind} {where}{self._elsewhere(key) or _nearest(key, names)}")
        option = self.option(section, key)
        if option.multiple and key in _ONE_OR_MORE and isinstance(value, str):
            value = [value]
        _check_type(path, where, option, value)
        value = _located(path.parent, key, option, value)
        settings[section, key] = Setting(self._checked(f"{path}: {where}", option, value), str(path))

    def _elsewhere(self, key: str) -> str:
        """A hint which sections have ``key``; empty: none."""
        found = [
            f"[{name}]" if name else "the top, above all sections"
            for name, keys in self.sections.items()
            if key in keys
        ]
        return f"; it belongs in {' or '.join(found)}" if found else ""

    def _checked(self, where: str, option: click.Option, value: object) -> object:
        """``value`` unchanged. Raises click.UsageError when the option does not accept it."""
        try:
            option.type_cast_value(click.Context(click.Command("config")), value)
        except click.BadParameter as exc:
            message = exc.message.replace("values: , ", "values: ")  # (click's list begins with the empty text)
            raise click.UsageError(f"{where}: {message}") from exc
        return value

    # --- writing ----------------------------------------------------------------------------------------------------

    def template(self) -> str:
        """The text of a file that lists every key with its meaning and default. Each key is commented out."""
        lines = [
            "# Configuration of Mycelia. To change a setting, remove the # before it.",
            "# An environment variable overrides this file, and a command line option overrides both. For api_port",
            "# in [node] these are MYCELIA_NODE_API_PORT and --api-port. Paths are relative to this folder.",
        ]
        for section, options in self.sections.items():
            lines += ["", f"[{section}]  # options of 'mycelia {section}'"] if section else []
            for key, option in options.items():
                lines += ["", *(f"# {line}" for line in wrapped(help_of(option)))]
                is_default = nothing_set(option) is not None or said_default(option) is not None
                note = "" if is_default else "  # an example"
                lines.append(f"# {key} = {toml_of(example_of(option))}{note}")
        if ("node", "alias") in set(self.all_keys()):
            lines += ["", "# Other names of models, for clients that ask for them by these names: --alias as a table."]
            lines.append(f"# [{ALIASES}]")
            lines.append('# "gpt-4o-mini" = "smollm2"')
        if ("node", "model") in set(self.all_keys()):
            lines += ["", "# Models to serve, beside those of model in [node]: from the start, or when asked for."]
            lines += [f"# [{MODELS}]", '# "smollm2" = "start"', '# "./large.gguf" = "demand"']
        if ("node", "key") in set(self.all_keys()):
            lines += [
                "",
                "# API keys with names and limits, as 'mycelia key add NAME' writes them:",
                f"#     [{KEYS}.alice]",
            ]
            settings = ('file = "alice.key"', "requests_per_minute = 60", "tokens_per_day = 200000", "concurrent = 2")
            lines += [f"#     {setting}" for setting in settings]
        return "\n".join(lines) + "\n"


def read_text(path: Path) -> str:
    """The text of a configuration file, which is TOML. Raises click.UsageError that names the file."""
    import tomllib

    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise click.UsageError(f"the configuration {path} has more than {MAX_FILE_BYTES} bytes; shorten it")
        text = data.decode()
        tomllib.loads(text)
    except OSError as exc:
        raise click.UsageError(f"cannot read the configuration {path}: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise click.UsageError(f"the configuration {path} is not UTF-8: {exc.reason} at byte {exc.start}") from exc
    except (tomllib.TOMLDecodeError, RecursionError) as exc:
        raise click.UsageError(f"the configuration {path} is not TOML: {exc}") from exc
    return text


def _keys(path: Path, sections: object, node: object) -> list[str]:
    """The values of --key in the sections of keys, and those of [node]. Raises click.UsageError."""
    from mycelia.node.commands.key_texts import texts_of_section

    try:
        texts = texts_of_section(sections, path.parent)
    except UsageError as exc:
        raise click.UsageError(f"{path}: {exc}") from exc
    of_node = node.get("key", []) if isinstance(node, dict) else []
    return [*of_node, *texts]


def _pairs(path: Path, table: object, node: object) -> list[str]:
    """The values of --alias in the section of aliases, and those of [node]. Raises click.UsageError."""
    if not isinstance(table, dict) or not all(isinstance(model, str) for model in table.values()):
        raise click.UsageError(f'{path}: [{ALIASES}] must have lines such as "gpt-4o-mini" = "smollm2"')
    of_node = node.get("alias", []) if isinstance(node, dict) else []
    return [*of_node, *(f"{name}={model}" for name, model in table.items())]


def _models(path: Path, table: object, node: object) -> list[str]:
    """The values of --model in the section of models, and those of [node]. Raises click.UsageError."""
    if not isinstance(table, dict) or not all(when in WHEN for when in table.values()):
        words = " or ".join(f'"{when}"' for when in WHEN)
        raise click.UsageError(f'{path}: [{MODELS}] must have lines such as "smollm2" = "start", with {words}')
    of_node = node.get("model", []) if isinstance(node, dict) else []
    of_node = [of_node] if isinstance(of_node, str) else of_node
    return [*of_node, *(f"{name}{LOAD}{when}" for name, when in table.items())]


def _value_for(option: click.Option, value: object) -> object:
    """A setting of [node] for ``option`` of a command like it, which may take only one of its values."""
    return value[0] if isinstance(value, list) and value and not option.multiple else value


def _at(nested: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    for name in names:
        nested = nested.setdefault(name, {})
    return nested


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
    """Raises click.UsageError when a TOML value has the wrong type: "8" is not a number and true is not 1."""
    if option.multiple:
        if not isinstance(value, list):
            raise click.UsageError(f"{path}: {where} must be a list such as {toml_of(example_of(option))}")
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
        raise click.UsageError(f"{path}: {where} must be {name}, not {toml_of(value)}")


def _located(folder: Path, key: str, option: click.Option, value: object) -> object:
    """``value`` with paths made relative to the file's folder."""
    if isinstance(value, list):
        return [_located(folder, key, option, item) for item in value]
    if not isinstance(value, str):
        return value
    name, load, when = value.rpartition(LOAD) if key == "model" else ("", "", "")
    if load:
        return f"{_located(folder, key, option, name)}{load}{when}"
    path = folder / Path(value).expanduser()
    if isinstance(option.type, click.Path) or (key in _PATH_OR_NAME and path.is_file()):
        return str(path)
    return value
