"""A client that goes away takes what is done for it along."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from starlette.types import Receive


@asynccontextmanager
async def cancelled_at_disconnect(receive: Receive) -> AsyncIterator[trio.Nursery]:
    """The block, and what it starts in the nursery, is cancelled when the client disconnects; what it started also at
    its end. Send the end of the response after it: that reads as a disconnect too, and would break off its own
    tidying up."""

    async def watch(scope: trio.CancelScope) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch, nursery.cancel_scope)
        yield nursery
        nursery.cancel_scope.cancel()
