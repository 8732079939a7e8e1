"""``mycelia leave``: stop the local node after it has finished its answers."""

import os
import signal
from pathlib import Path

import click

from mycelia.node.commands.options import data_dir_option
from mycelia.node.commands.running import run, running

_POLL_S, _REPORT_S = 0.2, 5.0


@click.command(
    epilog="""\b
Examples:
  mycelia leave
  mycelia leave --data-dir /tmp/second
  mycelia leave --no-wait"""
)
@data_dir_option
@click.option("--no-wait", is_flag=True, help="Return at once; do not wait until the node has left.")
def leave(data_dir: Path | None, no_wait: bool) -> None:
    """Make the local node leave: it accepts no new requests, finishes its answers and ends.

    The node's option --drain says how long that may take. Ctrl-C stops only the waiting.
    """

    async def signal_and_wait() -> None:
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
            raise LocalError(
                f"the node belongs to another user (process {info.pid}); run this command as that user"
            ) from exc
        began_at = reported_at = trio.current_time()
        while not no_wait and is_held(where):
            if trio.current_time() - reported_at >= _REPORT_S:
                reported_at = trio.current_time()
                click.echo(f"the node is finishing its answers ... {reported_at - began_at:.0f} s", err=True)
            await trio.sleep(_POLL_S)
        click.echo("the node is leaving" if no_wait else "the node has left")

    run(signal_and_wait)
