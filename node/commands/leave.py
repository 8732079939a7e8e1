"""``mycelia leave``: end a node without breaking anything off."""

import os
import signal
from pathlib import Path

import click

from mycelia.node.commands.options import data_dir_option
from mycelia.node.commands.running import run, running

_LOOK_S, _TELL_S = 0.2, 5.0


@click.command(
    epilog="""\b
Examples:
  mycelia leave
  mycelia leave --data-dir /tmp/second
  mycelia leave --no-wait"""
)
@data_dir_option
@click.option("--no-wait", is_flag=True, help="Only tell it; do not wait until it has left.")
def leave(data_dir: Path | None, no_wait: bool) -> None:
    """Have the node running here leave: it takes nothing new, finishes what it is answering, and ends.

    How long that may take is its --drain. Ctrl-C ends only the waiting.
    """

    async def tell_and_wait() -> None:
        import trio

        from mycelia.node.storage.data_dir import default_data_dir
        from mycelia.node.storage.rundir import is_held
        from mycelia.proto.wire.errors import LocalError

        info, where = running(data_dir), data_dir or default_data_dir()
        try:
            os.kill(info.pid, signal.SIGTERM)
        except ProcessLookupError:
            return
        except PermissionError as exc:
            raise LocalError(f"the node is another user's (process {info.pid}); run this as that user") from exc
        began_at = told_at = trio.current_time()
        while not no_wait and is_held(where):
            if trio.current_time() - told_at >= _TELL_S:
                told_at = trio.current_time()
                click.echo(f"it is finishing its answers ... {told_at - began_at:.0f} s", err=True)
            await trio.sleep(_LOOK_S)
        click.echo("it is leaving" if no_wait else "it has left")

    run(tell_and_wait)
