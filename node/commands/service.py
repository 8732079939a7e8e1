"""``mycelia service``: run the node as a service of the operating system."""

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mycelia.node.commands.node import node
from mycelia.node.commands.options import data_dir_option

if TYPE_CHECKING:
    from mycelia.node.service.systemd import Installation


@click.group(
    epilog="""\b
Examples:
  mycelia service install --polite --hours 22:00-08:00
  sudo mycelia service install                    for the whole machine, as a user of its own
  mycelia service logs --follow
  mycelia service uninstall"""
)
def service() -> None:
    """Run the node as a service, which starts at boot and again after a crash.

    On Linux a unit of systemd: as root one of the system, whose node runs as a user of its own and keeps its data in
    /var/lib/mycelia; otherwise one of your own. On macOS an agent of launchd.
    """


@service.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    epilog="""\b
Examples:
  mycelia service install
  mycelia service install --model ./model.gguf --polite
  mycelia service install --print                 show the unit, install nothing""",
)
@click.option("--print", "only_print", is_flag=True, help="Print the service manager's file; change nothing.")
@click.pass_context
def install(context: click.Context, only_print: bool) -> None:
    """Install and start the service, or install it anew with other options.

    All options of 'mycelia node' may follow. The service also reads the configuration file when it starts, so what
    stands there need not be repeated. As root that is /etc/mycelia/config.toml.
    """
    install_service(context, context.args, only_print=only_print)


def install_service(context: click.Context, arguments: list[str], *, only_print: bool = False) -> None:
    """Installs the service with these options of ``mycelia node``, and prints what was done. Raises LocalError."""
    from mycelia.node.service.manager import Manager, check_readable, file_text
    from mycelia.node.storage.data_dir import prepare_data_dir
    from mycelia.node.storage.rundir import is_held

    made = _installation(context, arguments)
    if only_print:
        click.echo(file_text(made), nl=False)
        return
    manager = Manager()
    if is_held(made.data_dir) and not manager.is_active():
        raise click.ClickException(f"a node runs with the data directory {made.data_dir}: end it with 'mycelia leave'")
    if made.is_system:
        check_readable(made.readable)
    else:
        for folder in (made.data_dir, *made.writable):
            prepare_data_dir(folder)
    click.echo(f"starting {manager.file.stem} ...", err=True)
    told = manager.install(made)
    click.echo(f"the node runs as a service and starts at boot: {manager.file}")
    for line in told:
        click.echo(line)
    if made.is_system:
        click.echo(f"its data is in {made.data_dir}; commands of root find it there")


def _installation(context: click.Context, arguments: list[str]) -> "Installation":
    from mycelia.node.commands.checks import read_models
    from mycelia.node.commands.config_file import SYSTEM_FILE
    from mycelia.node.engine.models import is_fake
    from mycelia.node.models.find import MissingError, find_model
    from mycelia.node.service.manager import has_gpu_device, is_system, model_folders, own_folders, program
    from mycelia.node.service.systemd import Installation
    from mycelia.node.storage.data_dir import STATE_DIR, default_data_dir

    root = context.find_root()
    with node.make_context("node", list(arguments), parent=root) as checked:
        options = checked.params
    system, data_dir, cache_dir = is_system(), options["data_dir"], options["cache_dir"]
    if system and data_dir is not None:
        raise click.UsageError(f"a service of the system keeps its data in {STATE_DIR}: leave out --data-dir")
    file = root.params["config"] or (SYSTEM_FILE if system and SYSTEM_FILE.exists() else None)
    command = [*program(), *(["--config", str(file.absolute())] if file else []), "node", *_absolute(arguments)]
    readable = [Path(command[0]), *([file.absolute()] if file else [])]
    for one in read_models(options["models"]):
        with suppress(MissingError):  # (the node fetches it when it starts)
            if not is_fake(one.name):
                readable.append(find_model(one.name).absolute())
    where = STATE_DIR if system else (data_dir or default_data_dir()).absolute()
    return Installation(
        command=command,
        is_system=system,
        data_dir=where,
        drain_s=options["drain_s"],
        has_gpu=options["gpu_layers"] != 0 and has_gpu_device(),
        readable=readable,
        writable=[*([] if system else model_folders()), *([cache_dir.absolute()] if cache_dir else [])],
        environment={"MYCELIA_DATA_DIR": str(where)} | (own_folders(where) if system else {}),
    )


def _absolute(arguments: list[str]) -> list[str]:
    """The options with absolute paths: a service has another working directory."""
    of_paths = {name for option in node.params if isinstance(option.type, click.Path) for name in option.opts}
    made: list[str] = []
    for one in arguments:
        name, separator, value = one.partition("=")
        if made and made[-1] in of_paths:
            made.append(str(Path(one).absolute()))
        elif separator and name in of_paths:
            made.append(f"{name}={Path(value).absolute()}")
        else:  # (a model and a list of bootstrap addresses may be a file or a name)
            made.append(str(Path(one).absolute()) if not one.startswith("-") and Path(one).is_file() else one)
    return made


@service.command(
    epilog="""\b
Examples:
  mycelia service uninstall"""
)
def uninstall() -> None:
    """Stop the service and remove it. Its data and the configuration stay."""
    from mycelia.node.service.manager import Manager
    from mycelia.node.storage.data_dir import STATE_DIR, default_data_dir

    manager = Manager()
    if not manager.uninstall():
        raise click.ClickException(f"there is no service: {manager.file} does not exist")
    place = STATE_DIR if os.geteuid() == 0 else default_data_dir()
    click.echo(f"the service is removed; its data stays in {place}")


@service.command(
    epilog="""\b
Examples:
  mycelia service status"""
)
def status() -> None:
    """Show what the service manager knows of the node; 'mycelia status' shows what the node itself says."""
    from mycelia.node.service.manager import Manager

    _become(Manager().status_command())


@service.command(
    epilog="""\b
Examples:
  mycelia service logs
  mycelia service logs --follow
  mycelia service logs --lines 1000 > node.log"""
)
@click.option("--lines", "-n", type=click.IntRange(1), default=100, show_default=True, help="Last lines to show.")
@click.option("--follow", "-f", is_flag=True, help="Go on with new lines until Ctrl-C.")
@data_dir_option
def logs(lines: int, follow: bool, data_dir: Path | None) -> None:
    """Show the log of the service."""
    from mycelia.node.service.manager import Manager
    from mycelia.node.storage.data_dir import default_data_dir

    _become(Manager().logs_command(lines, follow, data_dir or default_data_dir()))


def _become(command: list[str]) -> None:
    try:
        os.execvp(command[0], command)  # noqa: S606  a fixed program
    except OSError as exc:
        raise click.ClickException(f"cannot run {command[0]}: {exc.strerror}") from exc
