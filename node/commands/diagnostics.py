"""``mycelia diagnostics``: one archive for a bug report."""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mycelia.node.commands.options import data_dir_option
from mycelia.node.commands.running import run

if TYPE_CHECKING:
    from mycelia.node.storage.rundir import RunInfo


@click.command(
    epilog="""\b
Examples:
  mycelia diagnostics
  mycelia diagnostics /tmp/report.tar.gz && tar -tzf /tmp/report.tar.gz"""
)
@click.argument("file", required=False, type=click.Path(path_type=Path, dir_okay=False))
@data_dir_option
@click.pass_context
def diagnostics(context: click.Context, file: Path | None, data_dir: Path | None) -> None:
    """Write an archive for a bug report: versions, doctor, configuration, log, metrics, reports of crashes.

    It has no prompts, answers, keys or invitations. Public addresses, names of hosts and your home folder are replaced.
    Nothing is sent anywhere: look through it, then attach it to your report.
    """
    from mycelia.node.commands.checks import read_models
    from mycelia.node.commands.config_file import default_file
    from mycelia.node.diagnostics.archive import collected, pack, redactor
    from mycelia.node.storage.data_dir import default_data_dir
    from mycelia.node.storage.rundir import find_running

    root = context.find_root()
    where = data_dir or default_data_dir()
    path = file or Path(time.strftime("mycelia-%Y-%m-%dT%H-%M-%S.tar.gz"))
    info = find_running(where)
    said = run(lambda: _asked(info)) if info else {"state.json": "no node is running\n"}
    settings = (root.default_map or {}).get("node", {})
    config = root.params["config"] or default_file()
    (model, *_) = read_models(tuple(settings.get("models") or ["smollm2"]))
    parts = collected(model.name, where, config, _unit(), info, said)
    names = [*settings.get("allow_host", ()), *settings.get("cors", ())]
    hosts = [name.rpartition("//")[2].partition(":")[0] for name in names]
    try:
        pack(parts, redactor(where, info, _keys(settings), hosts, parts.values()), path)
    except OSError as exc:
        raise click.ClickException(f"cannot write {path}: {exc.strerror}") from exc
    click.echo(f"{path}: {', '.join(parts)}")
    click.echo("look through it before you send it: it has no prompts, keys or public addresses", err=True)


async def _asked(info: "RunInfo") -> dict[str, str]:
    """What the running node says of itself. What it does not answer is a line that says so."""
    import httpx
    import msgspec

    from mycelia.node.client.local import HTTP_ERRORS, http_client
    from mycelia.proto.wire.errors import LocalError

    paths = {"state.json": "/api/state", "requests.json": "/api/requests", "metrics.txt": "/metrics"}
    said = {}
    for name, path in paths.items():
        try:
            async with http_client(info, httpx.Timeout(10)) as http:
                text = (await http.get(path)).text
            said[name] = msgspec.json.format(text, indent=1) if name.endswith(".json") else text
        except (*HTTP_ERRORS, LocalError) as exc:
            said[name] = f"the node does not answer: {exc or type(exc).__name__}\n"
    return said


def _unit() -> Path | None:
    from mycelia.node.service.manager import Manager
    from mycelia.proto.wire.errors import LocalError

    try:
        return Manager().file
    except LocalError:
        return None


def _keys(settings: object) -> list[str]:
    """API keys that the configuration names, which may stand in any text."""
    if not isinstance(settings, dict) or not (file := settings.get("api_key_file")):
        return []
    try:
        with open(os.path.expanduser(str(file)), "rb") as keys:
            return keys.read(65_536).decode("utf-8", "replace").split()
    except OSError:
        return []
