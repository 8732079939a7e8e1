"""A node behind the gateway for tests that do not look at its state."""

import trio

from mycelia.node.views import LinksRow, RequestRow, TraceView


class Unobserved:
    """A part of ``Api`` in which nothing ever happens."""

    def recent_requests(self) -> list[RequestRow]:
        return []

    async def requests_changed(self, version: int) -> int:
        await trio.sleep_forever()
        raise AssertionError("not reached")

    async def trace(self, prefix: str) -> TraceView | None:
        return None

    async def links(self) -> list[LinksRow]:
        return []

    def metrics(self) -> bytes:
        return b""
