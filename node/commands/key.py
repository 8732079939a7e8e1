"""``mycelia key``: make, list and remove API keys with names and limits. ``mycelia usage``: what they used."""

from pathlib import Path

import click

from mycelia.node.commands.configure import changing, config_file_of, write_config
from mycelia.node.commands.options import data_dir_option, json_option

MAX_DAYS = 92
"""The same as in ``telemetry/usage.py``, which takes longer to import."""


@click.group(
    epilog="""\b
Examples:
  mycelia key add alice
  mycelia key add bob --requests-per-minute 60 --tokens-per-day 200000 --concurrent 2
  mycelia key list
  mycelia key remove alice"""
)
def key() -> None:
    """Make, list and remove API keys with names and limits.

    The keys are sections [keys.NAME] of the configuration file, which has only their hashes. A running node reads them
    with 'mycelia config reload'. With keys, every HTTP request needs one.
    """


@key.command(
    epilog="""\b
Examples:
  mycelia key add alice
  mycelia key add bob --requests-per-minute 60 --tokens-per-day 200000 --concurrent 2
  mycelia key add carol > carol.key"""
)
@click.argument("name")
@click.option("--requests-per-minute", type=click.IntRange(1), help="Requests per minute.  [default: no limit]")
@click.option(
    "--tokens-per-day",
    type=click.IntRange(1),
    help="Tokens of prompts and answers per day (UTC), cached ones too.  [default: no limit]",
)
@click.option("--concurrent", type=click.IntRange(1), help="Requests answered at once.  [default: no limit]")
@click.pass_context
def add(
    context: click.Context,
    name: str,
    requests_per_minute: int | None,
    tokens_per_day: int | None,
    concurrent: int | None,
) -> None:
    """Make an API key with the name NAME and print it. It is shown only now: the file keeps its hash."""
    import secrets

    from mycelia.node.commands.key_texts import check_key_name, section_of
    from mycelia.node.serve.api_keys import Limits, digest_of

    check_key_name(name)
    made = secrets.token_hex(24)
    limits = Limits(requests_per_minute, tokens_per_day, concurrent)
    path = config_file_of(context)
    with changing(path):
        text, sections = _sections(path)
        if name in sections:
            raise click.UsageError(
                f"there is a key with the name {name} already; remove it first, or choose another name"
            )
        section = section_of(name, digest_of(made.encode()), limits)
        write_config(path, f"{text.rstrip()}\n\n{section}" if text.strip() else section)
    click.echo(made)
    click.echo(f"it is in {path}, as a hash; a running node takes it over with: mycelia config reload", err=True)


@key.command(
    "list",
    epilog="""\b
Examples:
  mycelia key list
  mycelia key list --json | jq -r '.[].name'""",
)
@json_option
@click.pass_context
def list_(context: click.Context, as_json: bool) -> None:
    """List the names and limits of the keys in the configuration file."""
    import json

    from mycelia.node.commands.key_texts import read_keys, texts_of_section

    path = config_file_of(context)
    _, sections = _sections(path)
    keys = read_keys(texts_of_section(sections, path.parent))
    rows = [{"name": one.name, **vars(one.limits)} for one in keys]
    if as_json:
        click.echo(json.dumps(rows))
        return
    from rich.table import Table

    from mycelia.node.commands.running import console

    if not rows:
        click.echo(f"no keys in {path}; make one with: mycelia key add NAME")
        return
    table = Table("name", "requests a minute", "tokens a day", "at once")
    for row in rows:
        table.add_row(*("-" if value is None else str(value) for value in row.values()))
    console().print(table)


@key.command(
    epilog="""\b
Examples:
  mycelia key remove alice"""
)
@click.argument("name")
@click.pass_context
def remove(context: click.Context, name: str) -> None:
    """Remove the key NAME. A running node accepts it until 'mycelia config reload'."""
    import tomllib

    path = config_file_of(context)
    with changing(path):
        text, sections = _sections(path)
        if name not in sections:
            raise click.UsageError(f"there is no key with the name {name} in {path}")
        lines = text.splitlines(keepends=True)
        begin = next((n for n, line in enumerate(lines) if _heading(line) == f"keys.{name}"), len(lines))
        end = next((n for n in range(begin + 1, len(lines)) if _heading(lines[n])), len(lines))
        without = "".join([*lines[:begin], *lines[end:]])
        wanted = tomllib.loads(text)
        del wanted["keys"][name]
        try:
            is_right = (tomllib.loads(without) | {"keys": {}}) == (wanted | {"keys": {}})
            is_right = is_right and tomllib.loads(without).get("keys", {}) == wanted["keys"]
        except tomllib.TOMLDecodeError:
            is_right = False
        if not is_right:
            raise click.ClickException(f"the section [keys.{name}] of {path} has an unusual form: remove it by hand")
        write_config(path, without)
    click.echo(f"removed {name}; a running node accepts it until: mycelia config reload")


@click.command(
    epilog="""\b
Examples:
  mycelia usage                  today
  mycelia usage --days 30
  mycelia usage --days 7 --json | jq 'group_by(.key)[] | {key: .[0].key, tokens: map(.completion_tokens) | add}'"""
)
@click.option(
    "--days", type=click.IntRange(1, MAX_DAYS), default=1, show_default=True, help="Days to show, with today (UTC)."
)
@data_dir_option
@json_option
def usage(days: int, data_dir: Path | None, as_json: bool) -> None:
    """Show what each API key used of each model per day: requests and tokens.

    'local' is this machine. Without a running node, what is on disk is shown.
    """
    from mycelia.node.commands.running import print_view, run

    async def show() -> None:
        from mycelia.node.client.local import fetch_usage
        from mycelia.node.storage.data_dir import default_data_dir
        from mycelia.node.storage.rundir import find_running
        from mycelia.node.telemetry.usage import UsageMeter
        from mycelia.node.terminal.usage import show_usage

        where = data_dir or default_data_dir()
        info = find_running(where)
        rows = await (fetch_usage(info, days) if info else UsageMeter(where).since(days))
        print_view(rows, as_json, show_usage)

    run(show)


def _sections(path: Path) -> tuple[str, dict[str, object]]:
    """The text of the configuration file, and its sections [keys.NAME] by name. Raises click.UsageError."""
    import tomllib

    from mycelia.node.commands.config_file import read_text

    text = read_text(path) if path.exists() else ""
    sections = tomllib.loads(text).get("keys", {})
    return text, sections if isinstance(sections, dict) else {}


def _heading(line: str) -> str:
    """The name of the section that begins with this line; empty: none does."""
    text = line.strip()
    return "".join(text[1 : text.index("]")].split()).replace('"', "") if text.startswith("[") and "]" in text else ""
