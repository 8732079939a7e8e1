"""A way to run libp2p's services (the swarm and gossip) so that nothing a peer sends ends them, and that they stop in
time."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import structlog
import trio
from libp2p.tools.anyio_service.trio_manager import TrioManager

from mycelia.node.network.deadlines import shielded
from mycelia.node.network.libp2p.closing import CLOSE_DEADLINE_S

log = structlog.get_logger()


class _GuardedManager(TrioManager):
    """Keeps one failing task from ending its whole service: a peer can make many of them fail."""

    def run_task(
        self,
        async_fn: Callable[..., Awaitable[Any]],
        *args: Any,
        daemon: bool = False,
        name: str | None = None,
        _internal: bool = False,
    ) -> None:
        async def guarded(*args: Any) -> None:
            while True:
                try:
                    await async_fn(*args)
                    return
                except Exception as exc:  # noqa: BLE001  supervisor of a task that a peer can make fail
                    log.debug("libp2p task failed", task=name, error=repr(exc))
                if not daemon:
                    return
                await trio.sleep(1)

        name = name or getattr(async_fn, "__qualname__", repr(async_fn))
        run = async_fn if _internal else guarded
        super().run_task(run, *args, daemon=daemon, name=name, _internal=_internal)

    def _find_parent_task(self, trio_task: trio.lowlevel.Task) -> None:
        """Does nothing. libp2p's own searches all tasks of the service for the parent of each new task, but here only
        whole services are cancelled, so no task has to know its children."""


@asynccontextmanager
async def run_service(service: Any) -> AsyncIterator[None]:
    """Runs one of libp2p's services around the body and stops it within CLOSE_DEADLINE_S."""
    async with trio.open_nursery() as nursery:
        manager = _GuardedManager(service)
        nursery.start_soon(manager.run)
        await manager.wait_started()
        try:
            yield
        finally:
            with shielded(CLOSE_DEADLINE_S):
                await manager.stop()
            nursery.cancel_scope.cancel()
