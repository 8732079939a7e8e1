"""``mycelia setup``: from nothing to a first answer, with four questions."""

import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from mycelia.node.commands.options import data_dir_option
from mycelia.node.commands.running import run
from mycelia.node.errors import one_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from mycelia.node.setup.offers import Giving, Machine, Offer
    from mycelia.node.storage.rundir import RunInfo

PROMPT = "Why is the sky blue? Answer in one sentence."
AUTO = "auto"
"""The answer instead of a model's name."""
POLL_S = 0.1
START_DEADLINE_S = 600.0
"""For a large model on a slow disk."""


@click.command(
    epilog="""\b
Examples:
  mycelia setup
  mycelia setup --yes                                       the proposals, no questions
  mycelia setup --model qwen3-4b --give nights --boot
  mycelia setup --auto                                      the node chooses its model, by what the swarm lacks
  mycelia setup --invite mycelia1... --no-boot"""
)
@click.option("--model", metavar="NAME|PATH", help="Model to serve: see 'mycelia model catalogue'.")
@click.option(
    "--auto",
    "is_auto",
    is_flag=True,
    help="Let the node choose a model that the swarm lacks: see 'mycelia node --help'.",
)
@click.option(
    "--give",
    type=click.Choice(["guest", "nights", "all"]),
    help="What others may use: half of the free memory while you do not use the machine, half of it at night, or all"
    " that is free.",
)
@click.option("--invite", "invitation", metavar="INVITATION", help="Join this private swarm.  [default: ask]")
@click.option("--open", "is_open", is_flag=True, help="Be in the open network; do not ask for an invitation.")
@click.option("--boot/--no-boot", default=None, help="Run as a service that starts at boot.  [default: ask]")
@click.option("--yes", "-y", is_flag=True, help="Take the proposals for all that is not given; ask nothing.")
@data_dir_option
@click.pass_context
def setup(
    context: click.Context,
    model: str | None,
    is_auto: bool,
    give: str | None,
    invitation: str | None,
    is_open: bool,
    boot: bool | None,
    yes: bool,
    data_dir: Path | None,
) -> None:
    """Set up this machine: choose a model and what to give, join a swarm, start at boot, and ask a first prompt.

    The answers are written to the configuration file; other settings there stay. Run it again to change them.
    """
    from mycelia.node.service.manager import is_system, own_folders
    from mycelia.node.setup.offers import givings
    from mycelia.node.storage.data_dir import STATE_DIR, default_data_dir, prepare_data_dir

    if invitation and is_open:
        raise click.UsageError("give --invite or --open, not both")
    if model and is_auto:
        raise click.UsageError("give --model or --auto, not both")
    if not yes and not has_terminal():
        raise click.UsageError("there is no terminal to ask questions on: give --yes, and options for what differs")
    where = prepare_data_dir(data_dir or default_data_dir())
    _check_free(where)
    machine, offered = _machine()
    name = "" if is_auto else model or _model(offered, yes)
    if name == AUTO:
        name = ""
    if Path(name).is_file():
        name = str(Path(name).absolute())
    giving = _giving(givings(machine), give, yes)
    text = "" if is_open else invitation or ("" if yes else _ask_invitation())
    boot = _boot(yes) if boot is None else boot
    if boot and is_system():
        if data_dir is not None:
            raise click.UsageError(f"a service of the system keeps its data in {STATE_DIR}: leave out --data-dir")
        where = prepare_data_dir(STATE_DIR)
        _check_free(where)
        os.environ.update(own_folders(where))  # (where the service looks for models)
    swarm = _join(where, text) if text else None
    if name:
        _fetch(name)
    chosen = {"model": [name] if name else None, "auto": None if name else True}
    settings = {**chosen, "memory": None, "hours": None, "polite": None, "swarm": swarm, **giving.settings}
    _write(context, settings, is_of_system=boot and is_system())
    if boot:
        from mycelia.node.commands.service import install_service

        _reread(context)
        install_service(context, ["--data-dir", str(where)] if data_dir else [])
    _first_answer(context, where, data_dir, is_service=boot)


def has_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


# --- the questions ---------------------------------------------------------------------------------------------------


def _model(offered: "list[Offer]", yes: bool) -> str:
    from mycelia.node.models.find import source_of
    from mycelia.node.models.sizes import size_text

    if not offered:
        raise click.ClickException("no model of the catalogue fits into the free memory: free some, or give --model")
    if yes:
        return offered[0].name
    click.echo("Which model shall this machine serve?")
    for number, one in enumerate(offered, 1):
        size = "is here" if one.is_here else f"{size_text(one.size_bytes)} to fetch"
        click.echo(f"  {number}  {one.name:<22} {one.about} ({size}, needs {size_text(one.memory_bytes)} of memory)")
    click.echo(f"  {AUTO:<25} the node chooses one that the swarm lacks, and looks again from time to time")

    def read(said: str) -> str:
        if said.isdecimal():
            return _numbered(said, [one.name for one in offered])
        name = os.path.expanduser(said)
        if name != AUTO:
            source_of(name)
        return name

    return _asked(f"Number, name, path or {AUTO}", "1", read)


def _giving(ways: "list[Giving]", give: str | None, yes: bool) -> "Giving":
    if give is None and not yes:
        click.echo("What may prompts of others use?")
        for number, one in enumerate(ways, 1):
            click.echo(f"  {number}  {one.name:<8} {one.about}")
        give = _asked("Number or name", "1", lambda said: _numbered(said, [one.name for one in ways]))
    return next((one for one in ways if one.name == give), ways[0])


def _ask_invitation() -> str:
    from mycelia.proto.swarm.invitations import read_invitation

    def read(said: str) -> str:
        if said:
            read_invitation(said)
        return said

    return _asked("An invitation to a private swarm (empty: the open network)", "", read)


def _boot(yes: bool) -> bool:
    from mycelia.node.service.manager import Manager
    from mycelia.proto.wire.errors import LocalError

    try:
        Manager()
    except LocalError:
        return False  # (there is nothing to ask)
    return yes or click.confirm("Start it at boot?", default=True)


def _asked(question: str, default: str, read: "Callable[[str], str]") -> str:
    """The user's answer, asked for again while ``read`` raises LocalError."""
    from mycelia.proto.wire.errors import LocalError

    def checked(said: str) -> str:
        try:
            return read(said.strip())
        except LocalError as exc:
            raise click.UsageError(one_line(str(exc))) from exc

    return str(click.prompt(question, default=default, show_default=bool(default), value_proc=checked))


def _numbered(said: str, names: list[str]) -> str:
    """The name that the user means, by itself or by its number. Raises LocalError."""
    from mycelia.proto.wire.errors import LocalError

    if said in names:
        return said
    if said.isdecimal() and 1 <= int(said) <= len(names):
        return names[int(said) - 1]
    raise LocalError(f"{said!r} is none of 1 to {len(names)}")


# --- what follows from them ------------------------------------------------------------------------------------------


def _check_free(where: Path) -> None:
    from mycelia.node.storage.rundir import is_held

    if is_held(where):
        raise click.ClickException("a node is running here: end it with 'mycelia leave' or 'mycelia service uninstall'")


def _machine() -> "tuple[Machine, list[Offer]]":
    from mycelia.node.engine.kinds import TEXT
    from mycelia.node.engine.models import PACKAGED_MODELS, resolve_model
    from mycelia.node.engine.probe.probe import free_gpu_bytes
    from mycelia.node.engine.settings import available_memory_bytes
    from mycelia.node.models.catalogue import load_catalogue
    from mycelia.node.setup.offers import Machine, Offer, offers
    from mycelia.proto.wire.errors import LocalError

    machine = Machine(available_memory_bytes() or 2**32, free_gpu_bytes())
    here = []
    for name in PACKAGED_MODELS:
        try:
            size = resolve_model(name).stat().st_size
        except (LocalError, OSError):
            continue
        here.append(Offer(name, "135M, to try things out", size, size + 600_000_000, is_here=True))
    talking = {name: entry for name, entry in load_catalogue().items() if entry.kind == TEXT}
    return machine, offers(talking, machine, here[:1])


def _fetch(name: str) -> None:
    from mycelia.node.engine.models import is_fake
    from mycelia.node.models.pull import obtain
    from mycelia.node.terminal.models import watching

    if is_fake(name):
        return
    with watching() as watch:
        obtain(name, watch)


def _join(where: Path, text: str) -> str:
    import platform

    from mycelia.node.private_swarm.asking import join_swarm, name_of
    from mycelia.proto.swarm.invitations import read_invitation

    read = read_invitation(text)
    name = name_of(where, read.swarm)
    if not name:
        name = read.name
        run(lambda: join_swarm(where, read, name, platform.node()))
    click.echo(f"this machine is a member of {name}")
    return name


def _write(context: click.Context, settings: dict[str, object], is_of_system: bool) -> None:
    """Writes the configuration file."""
    from mycelia.node.commands.config_edit import with_values
    from mycelia.node.commands.config_file import SYSTEM_FILE, default_file, read_text
    from mycelia.node.commands.configure import changing, write_config

    path: Path = context.find_root().params["config"] or (SYSTEM_FILE if is_of_system else default_file())
    with changing(path):
        text = read_text(path) if path.exists() else ""
        write_config(path, with_values(text, "node", settings))
        if is_of_system:
            path.chmod(0o644)  # (the service is a user of its own)
    click.echo(f"written to {path}")


def _reread(context: click.Context) -> None:
    """The defaults of commands that run after the file has changed."""
    from mycelia.node.commands.config_file import Schema

    root = context.find_root()
    assert isinstance(root.command, click.Group)
    schema = Schema(root.command)
    root.default_map = schema.default_map(schema.read(root.params["config"], os.environ))


def _first_answer(context: click.Context, where: Path, data_dir: Path | None, is_service: bool) -> None:
    """Asks a prompt, of a node that is started only for it if there is no service. data_dir: ``where`` if the user gave
    it, which later commands then need, too."""
    from mycelia.node.service.manager import program

    file = context.find_root().params["config"]
    config = ["--config", str(file)] if file else []
    command = [*program(), *config]
    with tempfile.TemporaryFile("w+", errors="replace") as log:  # (a pipe that nobody reads would stop the node)
        node = None
        if not is_service:
            click.echo("starting the node ...", err=True)
            node = subprocess.Popen(
                [*command, "node", "--data-dir", str(where), "--exit-with-parent"], stdin=subprocess.PIPE, stderr=log
            )
        try:
            url = _wait_running(where, node, log).api_url
            click.echo(f"\n> {PROMPT}")
            asked = [*command, "ask", "--data-dir", str(where), "--max-tokens", "96", PROMPT]
            if subprocess.run(asked, check=False).returncode:
                raise click.ClickException("the node runs, but the first prompt was not answered; see above")
        finally:
            if node is not None:
                assert node.stdin is not None
                node.stdin.close()
                node.wait()
    click.echo(f"\nAll is set up. Page with chat: {url}/" if is_service else "\nAll is set up.")
    later = ["mycelia", *config, "status" if is_service else "up", *(["--data-dir", str(data_dir)] if data_dir else [])]
    click.echo(f"{'see the node' if is_service else 'run the node'} with: {shlex.join(later)}")


def _wait_running(where: Path, node: "subprocess.Popen[bytes] | None", log: IO[str]) -> "RunInfo":
    """The node that runs now. Raises click.ClickException when the node ends or does not answer."""
    from mycelia.node.storage.rundir import find_running

    deadline = time.monotonic() + START_DEADLINE_S
    while (info := find_running(where)) is None:
        if node is not None and node.poll() is not None:
            log.seek(0)
            said = log.read().strip().splitlines()
            raise click.ClickException(said[-1].removeprefix("mycelia: ") if said else "the node ended")
        if time.monotonic() > deadline:
            raise click.ClickException("the node does not start; see 'mycelia service logs'")
        time.sleep(POLL_S)
    return info
