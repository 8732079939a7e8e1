"""Helpers for all exchanges over a stream that a peer opened."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import trio

from mycelia.node.errors import first_error
from mycelia.node.network.network import MessageStream, NetworkError
from mycelia.proto.wire.errors import RemoteError
from mycelia.proto.wire.messages import Message

OPENING_DEADLINE_S = 10.0


async def receive_opening(stream: MessageStream) -> Message:
    """The first message of an inbound exchange. Raises NetworkError also when it is late."""
    with trio.move_on_after(OPENING_DEADLINE_S):
        return await stream.receive()
    raise NetworkError(f"said nothing for {OPENING_DEADLINE_S:.0f} s")


@asynccontextmanager
async def cancelled_at_end(stream: MessageStream) -> AsyncIterator[None]:
    """Cancels the block when the other side ends the exchange. Exceptions of the block come out unchanged.

    The other side sends nothing after its opening message, so a ``receive`` returns only at the end of the exchange."""

    async def watch(scope: trio.CancelScope) -> None:
        with suppress(NetworkError, RemoteError):
            await stream.receive()
        scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch, nursery.cancel_scope)
            yield
            nursery.cancel_scope.cancel()
    except ExceptionGroup as group:
        raise first_error(group) from group
