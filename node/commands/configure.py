"""``mycelia config``: show and write the configuration. ``mycelia completion``: set up the shell."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mycelia.node.commands.config_file import Schema, Setting, default_file
from mycelia.node.commands.option_words import default_words, nothing_set
from mycelia.node.commands.options import data_dir_option, json_option
from mycelia.node.commands.running import console
from mycelia.node.plugins import COMMANDS, Program
from mycelia.node.storage.files import replacing

if TYPE_CHECKING:
    from rich.console import Console

    from mycelia.node.views.state import ReloadView


@click.group(
    epilog="""\b
Examples:
  mycelia config init                                write a file with all settings as comments
  mycelia config show                                show each setting, and where its value is from
  MYCELIA_NODE_THREADS=4 mycelia config show
  mycelia config reload                              make the running node take over changes"""
)
def config() -> None:
    """Show or write the configuration.

    Settings come from the configuration file, from MYCELIA_* variables and from command line options. A variable
    overrides the file, and an option overrides both.
    """


@config.command(
    epilog="""\b
Examples:
  mycelia config init
  mycelia config init ./mycelia.toml && mycelia --config ./mycelia.toml node"""
)
@click.argument("file", required=False, type=click.Path(path_type=Path, dir_okay=False))
@click.option("--force", is_flag=True, help="Replace an existing file.")
@click.pass_context
def init(context: click.Context, file: Path | None, force: bool) -> None:
    """Write a configuration file that lists every setting, its meaning and its default as comments."""
    path = file or config_file_of(context)
    with changing(path):
        if path.exists() and not force:
            raise click.UsageError(f"{path} exists already; --force replaces it")
        write_config(path, Schema(_root(context)).template())
    click.echo(path)


@config.command(
    epilog="""\b
Examples:
  mycelia config show
  mycelia config show --json | jq '.[] | select(.source != "default")'"""
)
@json_option
@click.pass_context
def show(context: click.Context, as_json: bool) -> None:
    """Show every setting with its value and the value's source: file, variable or default."""
    schema = Schema(_root(context))
    settings = schema.read(context.find_root().params.get("config"), os.environ)
    rows = []
    for section, key in schema.all_keys():
        setting = settings.get((section, key)) or Setting(nothing_set(schema.option(section, key)), "default")
        if setting.value is None and not as_json:
            setting = Setting(default_words(schema.option(section, key)), setting.source)
        rows.append((section, key, setting))
    if as_json:
        import json

        shown = [
            {"section": section, "key": key, "value": setting.value, "source": setting.source}
            for section, key, setting in rows
        ]
        click.echo(json.dumps(shown, ensure_ascii=False))
        return
    from rich.table import Table

    table = Table()
    for name in ("key", "value", "from"):
        table.add_column(name, overflow="fold")
    for section, key, setting in rows:
        style = "dim" if setting.source == "default" else None
        table.add_row(".".join(filter(None, (section, key))), _shown(setting.value), setting.source, style=style)
    console().print(table)
    console().print(f"MYCELIA_API_KEY is {'set' if os.environ.get('MYCELIA_API_KEY') else 'not set'}")


@config.command(
    epilog="""\b
Examples:
  mycelia config path
  $EDITOR $(mycelia config path)"""
)
@click.pass_context
def path(context: click.Context) -> None:
    """Print the path of the configuration file."""
    click.echo(config_file_of(context))


@config.command(
    epilog="""\b
Examples:
  mycelia key add alice && mycelia config reload
  mycelia config reload --json | jq .needs_restart"""
)
@data_dir_option
@json_option
@click.pass_context
def reload(context: click.Context, data_dir: Path | None, as_json: bool) -> None:
    """Make the running node read its configuration again, as SIGHUP does.

    It takes over API keys and their limits, aliases, --cors, --allow-host, --drain and the certificate. The other
    settings that have changed are listed: they need a restart. Options of its command line stay as they were given.
    """
    from mycelia.node.client.local import reload_config
    from mycelia.node.commands.running import print_view, run, running

    settings = Schema(_root(context)).read(context.find_root().params.get("config"), os.environ)
    configured = settings.get(("", "data_dir"))
    where = data_dir or (Path(str(configured.value)) if configured else None)

    async def ask() -> None:
        print_view(await reload_config(running(where)), as_json, _show_reload)

    run(ask)


@click.command(
    epilog="""\b
Examples:
  mycelia completion bash > ~/.local/share/bash-completion/completions/mycelia
  mycelia completion zsh > ~/.zfunc/_mycelia            (a folder of $fpath)
  mycelia completion fish > ~/.config/fish/completions/mycelia.fish"""
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script with which SHELL completes mycelia's commands and options."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(_root(context), {}, "mycelia", "_MYCELIA_COMPLETE").source())


def _show_reload(console: "Console", view: "ReloadView") -> None:
    changed = f"in use from now on: {', '.join(view.changed)}" if view.changed else "nothing changed"
    console.print(f"the node has read its configuration; {changed}", soft_wrap=True)
    if view.needs_restart:
        console.print(f"these need a restart: {', '.join(view.needs_restart)}", soft_wrap=True)


def _root(context: click.Context) -> click.Group:
    root = context.find_root().command
    assert isinstance(root, Program)
    root.load(*COMMANDS)
    return root


def config_file_of(context: click.Context) -> Path:
    return context.find_root().params.get("config") or default_file()


@contextmanager
def changing(path: Path) -> Iterator[None]:
    """No other command changes the configuration file meanwhile. Makes its folder. Raises click.ClickException for
    errors of the file system."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)
    except OSError as exc:
        raise click.ClickException(f"cannot write {path}: {exc.strerror}") from exc


def write_config(path: Path, text: str) -> None:
    """Write the file atomically, readable by its owner only: it may have paths of key files. Raises OSError."""
    with replacing(path, f".{path.name}.{os.getpid()}") as file:
        file.write(text.encode())


def _shown(value: object) -> str:
    if value is None or value == []:
        return "-"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
