"""Functions that commands share: run under trio, find the node on this machine, print its answers."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

if TYPE_CHECKING:
    from rich.console import Console

    from mycelia.node.storage.rundir import RunInfo

_T = TypeVar("_T")


def run(main: Callable[[], Awaitable[_T]]) -> _T:
    """Run a command under trio. Ctrl-C cancels it, also at the serving node, and raises KeyboardInterrupt."""
    import logging
    import signal

    import trio

    from mycelia.node import log

    log.configure(logging.WARNING)

    async def supervised() -> list[_T]:
        results: list[_T] = []

        async def watch(scope: trio.CancelScope, task_status: trio.TaskStatus[None]) -> None:
            with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                task_status.started()
                await anext(aiter(signals))
                scope.cancel()

        async with trio.open_nursery() as nursery:
            await nursery.start(lambda *, task_status: watch(nursery.cancel_scope, task_status))
            results.append(await main())
            nursery.cancel_scope.cancel()
        return results

    results = trio.run(supervised)
    if not results:
        raise KeyboardInterrupt
    return results[0]


def running(data_dir: Path | None) -> "RunInfo":
    from mycelia.node.client.local import running_node
    from mycelia.node.storage.data_dir import default_data_dir

    return running_node(data_dir or default_data_dir())


def print_view(value: _T, as_json: bool, show: "Callable[[Console, _T], None]") -> None:
    """Print ``value`` as JSON, or as ``show`` draws it for people."""
    import msgspec

    if as_json:
        click.echo(msgspec.json.encode(value))
    else:
        show(console(), value)


def console(stderr: bool = False) -> "Console":
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, markup=False, emoji=False)
