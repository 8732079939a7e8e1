"""Work for a client ends when the client disconnects."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from starlette.types import Receive


@asynccontextmanager
async def cancelled_at_disconnect(receive: Receive) -> AsyncIterator[trio.Nursery]:
    """Cancels the block and its nursery when the client disconnects, and the nursery also after the block. Send the end
    of the response after the block: it too counts as a disconnect, and would cancel the block's clean-up."""

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cancel_at_disconnect, receive, nursery.cancel_scope)
        yield nursery
        nursery.cancel_scope.cancel()


async def cancel_at_disconnect(receive: Receive, scope: trio.CancelScope) -> None:
    """Waits until the client disconnects, and cancels ``scope``."""
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
