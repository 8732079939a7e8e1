"""The command ``mycelia``: the group of all commands, and the exit code of each kind of error.

The commands are in ``node/commands/``. Heavy imports happen inside them, so that ``--help`` is quick.
"""

import errno
import os
import re
import sys
from pathlib import Path

import click

from mycelia.node.commands.ask import ask
from mycelia.node.commands.chat import chat
from mycelia.node.commands.configure import completion, config
from mycelia.node.commands.diagnostics import diagnostics
from mycelia.node.commands.doctor import doctor
from mycelia.node.commands.guest import pause, resume
from mycelia.node.commands.key import key, usage
from mycelia.node.commands.leave import leave
from mycelia.node.commands.model import model
from mycelia.node.commands.node import node
from mycelia.node.commands.observe import identity, models, peers, stats, status, trace, tree, up
from mycelia.node.commands.private_swarm import invite, join
from mycelia.node.commands.service import service
from mycelia.node.commands.setup import setup
from mycelia.node.commands.swarm import swarm
from mycelia.node.commands.upgrade import upgrade
from mycelia.node.errors import EXIT_TRY_LATER, PassingError, first_error, one_line
from mycelia.node.plugins import Program
from mycelia.proto.wire.errors import MyceliaError

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED, EXIT_NO_READER = 1, 2, 130, 141
"""The last two are what shells report for SIGINT and SIGPIPE. See also ``EXIT_TRY_LATER``."""


@click.group(
    cls=Program,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  mycelia setup                                   choose a model, what to give, and start at boot
  mycelia up                                      run a node and watch it
  mycelia node                                    run a node
  mycelia ask "Why is the sky blue?"              ask the swarm
  mycelia ask --explain - < prompt.txt            ask, and see why a node was chosen
  mycelia chat                                    talk with the swarm
  mycelia peers                                   list the connected nodes
  mycelia models                                  list what the swarm serves
  mycelia model pull qwen3-4b                     fetch a model; 'mycelia node --model qwen3-4b' serves it
  mycelia swarm 4                                 run a swarm of 4 nodes on this machine
  mycelia swarm create home                       make a private swarm
  mycelia invite                                  print an invitation to it
  mycelia join mycelia1...                        join it from another machine
  mycelia key add alice                           make an API key, with --requests-per-minute 60 a limited one
  mycelia usage --days 7                          show what each API key used
  mycelia pause --for 2h                          take no prompts of others for two hours
  mycelia doctor                                  check this machine and its network
  mycelia upgrade --check                         compare with the versions of the swarm""",
)
@click.version_option(package_name="mycelia")
@click.option(
    "--config",
    envvar="MYCELIA_CONFIG",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Configuration file, see 'mycelia config --help'."
    "  [default: config.toml in the user's configuration directory]",
)
@click.option("--isolated", is_flag=True, help="Ignore the configuration file and all MYCELIA_* variables.")
@click.pass_context
def cli(context: click.Context, config: Path | None, isolated: bool) -> None:
    """A peer-to-peer swarm of LLM nodes. It sends each prompt to a node that has computed part of it already."""
    if isolated or context.invoked_subcommand in ("config", "completion", "key"):
        return  # (these must work with a broken or missing configuration file, to show or change it)
    from mycelia.node.commands.config_file import Schema

    schema = Schema(cli)
    settings = schema.read(config, os.environ)
    context.default_map = schema.default_map(settings)


for command in (node, ask, chat, swarm, invite, join, peers, models, model, tree, identity):
    cli.add_command(command)
for command in (setup, service, pause, resume, diagnostics):
    cli.add_command(command)
for command in (doctor, status, stats, usage, key, trace, up, leave, upgrade, config, completion):
    cli.add_command(command)


def main() -> None:
    """Run the command. Every expected error is one line on stderr and a code; a reader of the output that has gone, as
    in ``mycelia ask ... | head -1``, is only a code."""
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as exc:
        click.echo(exc.format_message(), err=True)
        sys.exit(EXIT_USAGE)
    except click.UsageError as exc:
        command = exc.ctx.command_path if exc.ctx else "mycelia"
        message = " ".join(exc.format_message().split())  # (click writes choices on lines of their own)
        _fail(f"{message} (try '{command} --help')", EXIT_USAGE)
    except click.ClickException as exc:
        _fail(exc.format_message(), EXIT_FAILED)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(EXIT_INTERRUPTED)
    except (MyceliaError, OSError, BaseExceptionGroup, SystemExit) as exc:
        _end(exc)


def _end(exc: BaseException) -> None:
    """Exit with the code and message for ``exc``. Raises unexpected errors again, with their traceback."""
    from mycelia.node.settings import UsageError

    cause = first_error(exc)
    match cause:
        case PassingError():
            _fail(str(cause), EXIT_TRY_LATER)
        case MyceliaError():
            _fail(str(cause), EXIT_USAGE if isinstance(cause, UsageError) else EXIT_FAILED)
        case KeyboardInterrupt():
            sys.exit(EXIT_INTERRUPTED)
        case BrokenPipeError() | SystemExit(__context__=BrokenPipeError()):  # (click and rich raise the latter for it)
            _discard_output()
            sys.exit(EXIT_NO_READER)
        case SystemExit():
            sys.exit(cause.code)
        case OSError(errno=errno.ENOSPC | errno.EIO):
            _discard_output()
            _fail(f"cannot write the output: {cause.strerror}", EXIT_FAILED)
        case _:
            raise exc


def _fail(message: str, code: int) -> None:
    plain = _NUMBER.sub(lambda found: "a number" if found[1] else "a whole number", message)
    click.echo(f"mycelia: {one_line(plain)}", err=True)
    sys.exit(code)


_NUMBER = re.compile(r"a valid (?:(float)|integer)(?: range)?(?=[.;]| *$)")
"""Click's words."""


def _discard_output() -> None:
    """Send buffered output to /dev/null: nothing reads stdout, and Python would print an error when it exits."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
