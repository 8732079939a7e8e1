"""Keeps a port of this machine open at its router, where the router lets itself be asked: by PCP, NAT-PMP or UPnP, and
for IPv6, where it is a hole in the router's firewall, by PCP.

A mapping is asked for when peers cannot connect, renewed at half of its lease and given back at the end. If the node is
killed, the router closes the port when the lease ends. What a router says is only a hint: an address is announced when
peers have connected to it (``queries/reach.py``).
"""

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import NamedTuple

import structlog
import trio

from mycelia.node.network.deadlines import shielded
from mycelia.node.network.mapping.gateways import default_gateways, default_gateways_v6
from mycelia.node.network.mapping.pcp import PcpRouter
from mycelia.node.network.mapping.router import MakeRouter, Mapping, MappingError, Router, is_useful
from mycelia.node.network.mapping.upnp import UpnpRouter
from mycelia.node.network.supervise import supervised
from mycelia.node.signals import Signal

log = structlog.get_logger()

ROUTER_DEADLINE_S = 8.0
"""Time for one router in one protocol."""
SEARCH_EVERY_S = 600.0
"""Time after which routers are asked again that gave no port, or one at which peers could not connect."""
SHORTEST_PAUSE_S = 5.0
"""Routers may give short leases, but are not asked more often than this."""
RELEASE_DEADLINE_S = 2.0

PROTOCOLS: tuple[MakeRouter, ...] = (PcpRouter, UpnpRouter)


class PortMapper:
    """The mapping of one port of this machine."""

    def __init__(
        self,
        protocols: tuple[MakeRouter, ...] = PROTOCOLS,
        gateways: Callable[[], Awaitable[list[str]]] = default_gateways,
    ) -> None:
        self._protocols = protocols
        self._gateways = gateways
        self._held: tuple[Router, Mapping] | None = None
        self._renew_at = self._ends_at = math.inf
        self._search_at = -math.inf
        """The time from which routers may be searched again."""
        self._asking = trio.Lock()
        self._said: set[str] = set()
        self._changed = Signal()
        """``_held`` has been set."""
        self.lost = Signal()
        """The mapping ended by itself or became another one."""

    @property
    def mapping(self) -> Mapping | None:
        """The mapping that is held now."""
        return self._held[1] if self._held else None

    async def request(self, port: int, seen_host: str) -> Mapping | None:
        """A mapping of ``port``, which peers cannot reach now; None: there is none to be had. A mapping that is held is
        asked for again, as a router may have forgotten it. seen_host: this machine's address as peers see it."""
        async with self._asking:
            if self._held is not None and await self._is_renewed():
                return self.mapping
            self._hold(None)
            if trio.current_time() >= self._search_at:
                self._search_at = trio.current_time() + SEARCH_EVERY_S
                self._hold(await self._found(port, seen_host))
            if (mapping := self.mapping) is not None:
                outside = host_and_port(mapping)
                log.info(
                    "port_mapped",
                    by=mapping.protocol,
                    router=mapping.gateway,
                    external=outside,
                    lease_s=mapping.lease_s,
                )
            return self.mapping

    async def release(self) -> None:
        """Gives the mapping back, within RELEASE_DEADLINE_S. The next one is searched in SEARCH_EVERY_S."""
        async with self._asking:
            held = self._held
            self._hold(None)
            self._search_at = trio.current_time() + SEARCH_EVERY_S
            if held is not None:
                await self._give_back(*held)

    def search_again(self) -> None:
        """Lets the next request search at once: this machine has other routers now."""
        self._search_at = -math.inf
        self._said.clear()

    async def keep_renewed(self) -> None:
        """Renews the mapping while one is held. Never returns."""
        while True:
            changed = self._changed.next
            with trio.move_on_at(self._renew_at):
                await changed.wait()
            async with self._asking:
                if not changed.is_set() and self._held is not None:
                    await self._renew()

    async def _renew(self) -> None:
        before, now = self.mapping, trio.current_time()
        assert before is not None
        if not await self._is_renewed():
            self._renew_at = now + max(before.lease_s / 16, SHORTEST_PAUSE_S)
            if now >= self._ends_at:
                log.info("port_mapping_lost", router=before.gateway)
                self._hold(None)
                self._search_at = -math.inf
        if self.mapping is None or _outside(self.mapping) != _outside(before):
            self.lost.notify()

    async def _is_renewed(self) -> bool:
        """Asks for the mapping that is held once more. Returns whether the router gave it."""
        assert self._held is not None
        router, before = self._held
        try:
            with trio.fail_after(ROUTER_DEADLINE_S):
                self._hold((router, await router.map(before.port, before.external_port)))
        except (MappingError, OSError, trio.TooSlowError) as exc:
            log.debug("port_mapping_not_renewed", router=before.gateway, reason=_why(exc))
            return False
        return True

    def _hold(self, held: tuple[Router, Mapping] | None) -> None:
        now = trio.current_time()
        self._held = held
        self._renew_at = self._ends_at = math.inf
        if held is not None:
            self._renew_at = now + max(held[1].lease_s / 2, SHORTEST_PAUSE_S)
            self._ends_at = now + held[1].lease_s
        self._changed.notify()

    async def _found(self, port: int, seen_host: str) -> tuple[Router, Mapping] | None:
        """The mapping whose external address peers see, or else the first one that may work."""
        fitting: tuple[Router, Mapping] | None = None
        for gateway in await self._gateways():
            held = await self._given_by(gateway, port)
            if held is None:
                continue
            if held[1].external_host == seen_host:
                if fitting is not None:
                    await self._give_back(*fitting)
                return held
            if fitting is None:
                fitting = held
            else:
                await self._give_back(*held)
        return fitting

    async def _given_by(self, gateway: str, port: int) -> tuple[Router, Mapping] | None:
        for make in self._protocols:
            router = make(gateway)
            try:
                with trio.fail_after(ROUTER_DEADLINE_S):
                    mapping = await router.map(port, port)
            except (MappingError, OSError, trio.TooSlowError) as exc:
                self._say("no_port_mapping", router=gateway, by=router.name, reason=_why(exc))
                continue
            if is_useful(mapping.external_host):
                return router, mapping
            why = "the router's own address is not public: a second router is in front of it"
            self._say("no_port_mapping", router=gateway, external=mapping.external_host[:64], reason=why)
            await self._give_back(router, mapping)
            return None
        return None

    async def _give_back(self, router: Router, mapping: Mapping) -> None:
        with shielded(RELEASE_DEADLINE_S):
            try:
                await router.unmap(mapping)
            except (MappingError, OSError) as exc:
                log.debug("port_not_given_back", router=mapping.gateway, reason=_why(exc))

    def _say(self, event: str, **fields: str) -> None:
        """Logs it at debug level, once."""
        if (text := repr(fields)) not in self._said:
            self._said.add(text)
            log.debug(event, **fields)


def port_mappers() -> dict[str, PortMapper]:
    """One for each address family that multiaddrs name."""
    return {"ip4": PortMapper(), "ip6": PortMapper((PcpRouter,), default_gateways_v6)}


@asynccontextmanager
async def open_port_mapper(mapper: PortMapper) -> AsyncIterator[PortMapper]:
    """Renews what the body asks for, and gives it back at the end."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervised, mapper.keep_renewed)
        try:
            yield mapper
        finally:
            nursery.cancel_scope.cancel()
            with shielded(RELEASE_DEADLINE_S):
                await mapper.release()


class KnownRouter(NamedTuple):
    """A router that can be asked for a port."""

    gateway: str
    protocol: str
    host: str
    """Its own address, as it says; empty: it does not say."""


async def routers_of(gateways: Iterable[str]) -> list[KnownRouter]:
    """The routers among ``gateways``. Changes nothing."""
    found: list[KnownRouter] = []

    async def ask(gateway: str) -> None:
        for make in PROTOCOLS:
            router = make(gateway)
            try:
                with trio.fail_after(ROUTER_DEADLINE_S):
                    found.append(KnownRouter(gateway, *await router.external()))
                    return
            except (MappingError, OSError, trio.TooSlowError) as exc:
                log.debug("router_does_not_map", router=gateway, by=router.name, reason=_why(exc))

    async with trio.open_nursery() as nursery:
        for gateway in gateways:
            nursery.start_soon(ask, gateway)
    return found


def host_and_port(mapping: Mapping) -> str:
    host = f"[{mapping.external_host}]" if ":" in mapping.external_host else mapping.external_host
    return f"{host}:{mapping.external_port}"


def _outside(mapping: Mapping) -> tuple[str, int]:
    return mapping.external_host, mapping.external_port


def _why(exc: Exception) -> str:
    return str(exc) or type(exc).__name__
