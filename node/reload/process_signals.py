"""The signals of a node's process.

The first SIGINT or SIGTERM lets the node finish its answers, the second ends it cleanly, the third kills it. SIGHUP in
a process with a terminal means that the terminal was closed, and counts as SIGTERM. In one without a terminal, as in a
service, it means that the configuration has changed. Where SIGHUP is ignored, as under ``nohup``, it stays so.
"""

import os
import signal

import structlog
import trio

from mycelia.node.reload.reloading import Reloader
from mycelia.node.requests.drain import Drain
from mycelia.node.service.notify import notify

log = structlog.get_logger()


async def follow_signals(
    drain: Drain, reloader: Reloader, scope: trio.CancelScope, task_status: trio.TaskStatus[None]
) -> None:
    """Cancels ``scope`` when the node has to end."""
    watched = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        watched.remove(signal.SIGHUP)
    may_be_closed = _has_terminal()
    with trio.open_signal_receiver(*watched) as receiver:
        task_status.started()
        signals = aiter(receiver)

        async def to_end() -> str:
            """The name of the next signal that asks the node to end."""
            while (number := await anext(signals)) == signal.SIGHUP and not may_be_closed:
                reloader.reload_or_log()
            return signal.Signals(number).name

        log.info("leaving", signal=await to_end())
        notify("STOPPING=1", "STATUS=finishes its answers")
        async with trio.open_nursery() as nursery:

            async def cut_short() -> None:
                await to_end()
                nursery.cancel_scope.cancel()

            nursery.start_soon(cut_short)
            await drain.leave(reloader.settings.drain_s)
            nursery.cancel_scope.cancel()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # (only here: the block above ends by restoring Python's handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    scope.cancel()


def _has_terminal() -> bool:
    """Whether the process has a controlling terminal, which can be closed."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
