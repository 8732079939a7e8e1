"""The command ``mycelia``: the group, its commands put together, and what each error exits with.

The commands are in ``node/commands/``. Heavy imports happen inside them, so that ``--help`` is quick.
"""

import errno
import os
import sys
from pathlib import Path

import click

from mycelia.node.commands.ask import ask
from mycelia.node.commands.chat import chat
from mycelia.node.commands.configure import completion, config
from mycelia.node.commands.doctor import doctor
from mycelia.node.commands.leave import leave
from mycelia.node.commands.node import node
from mycelia.node.commands.observe import identity, models, peers, stats, status, trace, tree, up
from mycelia.node.commands.swarm import swarm
from mycelia.node.errors import first_error, one_line
from mycelia.node.plugins import Program
from mycelia.proto.wire.errors import MyceliaError

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


@click.group(
    cls=Program,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  mycelia up                                      run a node and watch it
  mycelia node                                    run a node
  mycelia ask "Why is the sky blue?"              ask the swarm
  mycelia ask --explain - < prompt.txt            ... and see why it went where it went
  mycelia chat                                    talk with it
  mycelia peers                                   who is connected
  mycelia swarm 4                                 a whole swarm on this machine
  mycelia doctor                                  what a node has to work with here""",
)
@click.version_option(package_name="mycelia")
@click.option(
    "--config",
    envvar="MYCELIA_CONFIG",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Configuration, see 'mycelia config --help'.  [default: config.toml in the user's configuration directory]",
)
@click.option("--isolated", is_flag=True, help="Heed no configuration and no MYCELIA_* variables: for programs.")
@click.pass_context
def cli(context: click.Context, config: Path | None, isolated: bool) -> None:
    """A peer-to-peer swarm that answers LLM prompts where part of them is already computed."""
    if isolated or context.invoked_subcommand in ("config", "completion"):
        return  # (what is wrong in a file must not keep it from being looked at or replaced)
    from mycelia.node.commands.config_file import Schema

    schema = Schema(cli)
    settings = schema.read(config, os.environ)
    context.default_map = schema.default_map(settings)


for command in (node, ask, chat, swarm, peers, models, tree, identity):
    cli.add_command(command)
for command in (doctor, status, stats, trace, up, leave, config, completion):
    cli.add_command(command)


def main() -> None:
    """Entry point: every expected error is one line on stderr; 2 for a wrong command line, 1 for the rest."""
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as exc:
        click.echo(exc.format_message(), err=True)
        sys.exit(EXIT_USAGE)
    except click.UsageError as exc:
        command = exc.ctx.command_path if exc.ctx else "mycelia"
        _fail(f"{exc.format_message()} (try '{command} --help')", EXIT_USAGE)
    except click.ClickException as exc:
        _fail(exc.format_message(), EXIT_FAILED)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(EXIT_INTERRUPTED)
    except (MyceliaError, OSError, BaseExceptionGroup) as exc:
        _end(exc)


def _end(exc: BaseException) -> None:
    """Exit as ``exc`` asks for; what nothing expected keeps its traceback. Call while handling it."""
    from mycelia.node.settings import UsageError

    cause = first_error(exc)
    match cause:
        case MyceliaError():
            _fail(str(cause), EXIT_USAGE if isinstance(cause, UsageError) else EXIT_FAILED)
        case KeyboardInterrupt():
            sys.exit(EXIT_INTERRUPTED)
        case SystemExit():  # (rich, when its reader went away)
            sys.exit(cause.code)
        case BrokenPipeError():
            _discard_output()
            sys.exit(EXIT_FAILED)
        case OSError(errno=errno.ENOSPC | errno.EIO):
            _discard_output()
            _fail(f"cannot write: {cause.strerror}", EXIT_FAILED)
        case _:
            raise exc


def _fail(message: str, code: int) -> None:
    click.echo(f"mycelia: {one_line(message)}", err=True)
    sys.exit(code)


def _discard_output() -> None:
    """Nobody can take what is still buffered for stdout; Python would complain about that at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
