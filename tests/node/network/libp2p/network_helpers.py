"""Helpers of the network tests: nodes on loopback, a log of events to wait for, and messages to send."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import trio

from mycelia.node.network.identity import new_identity
from mycelia.node.network.network import Network, NetworkEvent, NetworkSettings, Reachability
from mycelia.node.signals import Signal
from mycelia.proto.wire.messages import Announce, Final, Head, Hello, Tokens, Usage, Vitals

T = TypeVar("T")
NAMESPACE = b"namespace-------"
LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)
HIDDEN = Reachability(closed=frozenset({"ip4"}), relayed=frozenset({"ip4", "ip6"}))
"""The state of a node behind a router."""
PATIENCE_S = 60
"""Far more than any step takes: a test that exceeds it hangs."""


def node(**changes: Any) -> NetworkSettings:
    """Settings of a full node on a free loopback port."""
    settings: dict[str, Any] = {"identity": new_identity(), "listen": LOOPBACK}
    return NetworkSettings(**(settings | changes))


def light_client(**changes: Any) -> NetworkSettings:
    return node(**({"listen": (), "overlay": False} | changes))


def hello(agent: str = "test") -> Hello:
    return Hello(wire_version=1, agent=agent, served=())


def announce(owner: bytes, seq: int = 1) -> Announce:
    head = Head(
        owner=owner,
        namespace=NAMESPACE,
        epoch=1,
        seq=seq,
        count=0,
        root=bytes(16),
        issued_at=1,
        signature=bytes(64),
    )
    return Announce(head=head)


def tokens(position: int) -> Tokens:
    return Tokens(position=position, tokens=b"\0\0\0\1", text=b"word ")


def final() -> Final:
    usage = Usage(prompt_tokens=1, cached_tokens=0, completion_tokens=1, queue_ms=0, prefill_ms=1, decode_ms=1)
    vitals = Vitals(queued_tokens=0, active_requests=0, waiting_requests=0, slots=1)
    return Final(reason="stop", usage=usage, vitals=vitals)


async def eventually(holds: Callable[[], object]) -> None:
    """Polls for a state that no event announces."""
    with trio.fail_after(PATIENCE_S):
        while not holds():  # noqa: ASYNC110
            await trio.sleep(0.01)


class EventLog:
    """Reads one network's events from its start and lets tests wait for them."""

    def __init__(self) -> None:
        self.events: list[NetworkEvent] = []
        self._changed = Signal()

    async def follow(self, network: Network) -> None:
        async for event in network.events():
            self.events.append(event)
            self._changed.notify()

    def of(self, kind: type[T]) -> list[T]:
        return [event for event in self.events if isinstance(event, kind)]

    async def until(self, happened: Callable[["EventLog"], object]) -> None:
        with trio.fail_after(PATIENCE_S):
            while not happened(self):
                await self._changed.wait()

    async def has(self, kind: type[T], where: Callable[[T], object] = lambda event: True) -> T:
        """Waits for the first past or future event of ``kind`` for which ``where`` holds."""
        await self.until(lambda log: any(where(event) for event in log.of(kind)))
        return next(event for event in self.of(kind) if where(event))


@asynccontextmanager
async def following(network: Network) -> AsyncIterator[EventLog]:
    log = EventLog()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.follow, network)
        try:
            yield log
        finally:
            nursery.cancel_scope.cancel()
