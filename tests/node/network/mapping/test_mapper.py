"""The life of a mapping: asked for at one of many routers, renewed, lost, given back."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from mycelia.node.network.mapping.mapper import SEARCH_EVERY_S, PortMapper, open_port_mapper
from mycelia.node.network.mapping.router import Mapping, MappingError, is_useful

PORT, SEEN, LEASE_S = 7_117, "45.1.2.3", 1_000


class World:
    """The routers of a test: gateway -> its external address, or an error; and what they were asked."""

    def __init__(self, **hosts: str) -> None:
        self.hosts = hosts
        self.open: set[str] = set()
        self.asked: list[str] = []

    async def gateways(self) -> list[str]:
        await trio.lowlevel.checkpoint()
        return list(self.hosts)


class FakeRouter:
    name = "fake"

    def __init__(self, world: World, gateway: str) -> None:
        self._world, self._gateway = world, gateway

    async def map(self, port: int, external_port: int) -> Mapping:
        await trio.lowlevel.checkpoint()
        self._world.asked.append(self._gateway)
        host = self._world.hosts[self._gateway]
        if host == "silent":
            await trio.sleep_forever()
        if host == "refuses":
            raise MappingError("no")
        self._world.open.add(self._gateway)
        return Mapping("fake", self._gateway, port, host, external_port, LEASE_S)

    async def unmap(self, mapping: Mapping) -> None:
        await trio.lowlevel.checkpoint()
        self._world.open.discard(mapping.gateway)

    async def external(self) -> tuple[str, str]:
        raise NotImplementedError


@asynccontextmanager
async def mapping_at(world: World) -> AsyncIterator[PortMapper]:
    make: Callable[[str], FakeRouter] = partial(FakeRouter, world)
    async with open_port_mapper(PortMapper((make,), world.gateways)) as mapper:
        yield mapper


@pytest.mark.parametrize("host", ["", "no address", "10.0.0.1", "192.168.1.9", "100.64.0.7", "169.254.1.1", "::1"])
def test_a_private_external_address_is_of_no_use(host: str) -> None:
    assert not is_useful(host) and is_useful(SEEN)


async def test_a_mapping_is_renewed_while_it_is_held_and_given_back_at_the_end(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = World(home=SEEN)
    async with mapping_at(world) as mapper:
        mapping = await mapper.request(PORT, SEEN)
        assert mapping is not None and mapping.external_port == PORT and len(world.asked) == 1
        await trio.sleep(3.2 * LEASE_S)
        assert len(world.asked) == 7 and world.open == {"home"}
    assert world.open == set()


async def test_a_lost_mapping_is_reported_and_searched_again(autojump_clock: trio.testing.MockClock) -> None:
    world = World(home=SEEN)
    async with mapping_at(world) as mapper:
        await mapper.request(PORT, SEEN)
        lost = mapper.lost.next
        world.hosts["home"] = "refuses"
        await trio.sleep(0.9 * LEASE_S)
        held = mapper.mapping
        assert held is not None, "the router may only be restarting"
        with trio.fail_after(LEASE_S):
            await lost.wait()
        assert mapper.mapping is None
        world.hosts["home"] = SEEN
        assert await mapper.request(PORT, SEEN) is not None


async def test_another_external_address_is_reported(autojump_clock: trio.testing.MockClock) -> None:
    world = World(home=SEEN)
    async with mapping_at(world) as mapper:
        await mapper.request(PORT, SEEN)
        lost = mapper.lost.next
        world.hosts["home"] = "45.9.9.9"
        with trio.fail_after(LEASE_S):
            await lost.wait()
        assert mapper.mapping is not None


async def test_of_many_routers_the_one_that_peers_see_is_used(autojump_clock: trio.testing.MockClock) -> None:
    world = World(one="refuses", two="silent", three="10.0.0.1", four="45.9.9.9", five=SEEN, six=SEEN)
    async with mapping_at(world) as mapper:
        mapping = await mapper.request(PORT, SEEN)
        assert mapping is not None and mapping.gateway == "five"
        assert world.open == {"five"} and "six" not in world.asked
    world = World(one="45.8.8.8", two="45.9.9.9")
    async with mapping_at(world) as mapper:
        mapping = await mapper.request(PORT, SEEN)
        assert mapping is not None and mapping.gateway == "one" and world.open == {"one"}


async def test_routers_that_give_nothing_are_asked_seldom(autojump_clock: trio.testing.MockClock) -> None:
    world = World(home="refuses")
    async with mapping_at(world) as mapper:
        for _ in range(3):
            assert await mapper.request(PORT, SEEN) is None
        assert len(world.asked) == 1
        mapper.search_again()
        assert await mapper.request(PORT, SEEN) is None and len(world.asked) == 2
        await trio.sleep(SEARCH_EVERY_S)
        world.hosts["home"] = SEEN
        assert await mapper.request(PORT, SEEN) is not None
        await mapper.release()
        assert world.open == set() and await mapper.request(PORT, SEEN) is None
