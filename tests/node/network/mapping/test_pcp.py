"""PCP and NAT-PMP against routers that answer rightly, late, wrongly or never."""

import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import IPv6Address, ip_address

import pytest
import trio

from mycelia.node.network.mapping.pcp import PcpRouter, map_request
from mycelia.node.network.mapping.router import LEASE_S, MappingError

PORT = 7_117
OUTSIDE = ip_address("45.1.2.3")
Answers = Callable[[bytes], list[bytes]]


@asynccontextmanager
async def router(answers: Answers) -> AsyncIterator[tuple[PcpRouter, list[bytes]]]:
    """A router that sends ``answers`` to each packet; and the packets that it got."""
    got: list[bytes] = []
    with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as sock:
        await sock.bind(("127.0.0.1", 0))

        async def serve() -> None:
            while True:
                data, sender = await sock.recvfrom(2_000)
                got.append(data)
                for answer in answers(data):
                    await sock.sendto(answer, sender)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            yield PcpRouter("127.0.0.1", sock.getsockname()[1]), got
            nursery.cancel_scope.cancel()


def pcp_answer(request: bytes, result: int = 0, lease_s: int = 600, port: int = 40_000) -> bytes:
    head = struct.pack(">BBxBI16x", 2, 0x81, result, lease_s)
    return head + request[24:42] + struct.pack(">H10x2s4s", port, b"\xff\xff", OUTSIDE.packed)


def nat_pmp(request: bytes, result: int = 0, lease_s: int = 600, port: int = 40_000) -> bytes:
    """The answer of a router that speaks only NAT-PMP."""
    if request[0] != 0:
        return struct.pack(">BBH4x", 0, 0x80 | request[1], 1)
    if request[1] == 0:
        return struct.pack(">BBH4x4s", 0, 0x80, result, OUTSIDE.packed)
    return struct.pack(">BBH4x2sHI", 0, 0x82, result, request[4:6], port, lease_s)


async def test_a_mapping_is_asked_for_renewed_and_given_back() -> None:
    async with router(lambda request: [pcp_answer(request)]) as (asked, got):
        mapping = await asked.map(PORT, PORT)
        assert (mapping.protocol, mapping.external_host, mapping.external_port) == ("PCP", "45.1.2.3", 40_000)
        assert mapping.lease_s == 600
        await asked.map(PORT, mapping.external_port)
        await asked.unmap(mapping)
    assert [len(request) for request in got] == [60, 60, 60]
    assert len({request[24:36] for request in got}) == 1, "one nonce, or the router would refuse the later ones"
    assert [int.from_bytes(request[4:8], "big") for request in got] == [LEASE_S, LEASE_S, 0]
    assert got[0] == map_request("127.0.0.1", got[0][24:36], PORT, PORT, LEASE_S)


async def test_a_router_that_knows_only_nat_pmp() -> None:
    async with router(lambda request: [nat_pmp(request, lease_s=90_000)]) as (asked, got):
        assert await asked.external() == ("NAT-PMP", "45.1.2.3")
        mapping = await asked.map(PORT, PORT)
        assert (mapping.protocol, mapping.external_host, mapping.external_port) == ("NAT-PMP", "45.1.2.3", 40_000)
        assert mapping.lease_s == LEASE_S, "a longer lease than was asked for is renewed as the asked one"
        await asked.unmap(mapping)
    assert got[-1] == struct.pack(">BBxxHHI", 0, 2, PORT, 0, 0)


async def test_a_router_that_knows_only_pcp_tells_no_address() -> None:
    async with router(lambda request: [struct.pack(">BBxBI16x", 2, 0x80, 1, 0)]) as (asked, _):
        assert await asked.external() == ("PCP", "")


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (lambda request: pcp_answer(request, result=2), "does not allow it"),
        (lambda request: pcp_answer(request, result=200), "result 200"),
        (lambda request: pcp_answer(request, result=8)[:24], "no port left"),
        (lambda request: pcp_answer(request, lease_s=0), "for no time"),
        (lambda request: nat_pmp(request, result=3), "not connected"),
        (lambda request: nat_pmp(request, result=99), "result 99"),
    ],
)
async def test_a_router_that_refuses(answer: Callable[[bytes], bytes], why: str) -> None:
    async with router(lambda request: [answer(request)]) as (asked, _):
        with pytest.raises(MappingError, match=why):
            await asked.map(PORT, PORT)


async def test_garbage_is_skipped_and_a_late_answer_taken() -> None:
    seen = 0

    def answers(request: bytes) -> list[bytes]:
        nonlocal seen
        seen += 1
        foreign = pcp_answer(request[:24] + bytes(12) + request[36:])
        other_port = pcp_answer(request[:40] + b"\0\1" + request[42:])
        garbage = [b"", b"\2", bytes(60), b"\xff" * 1_400, foreign, other_port, pcp_answer(request)[:59]]
        return [*garbage, pcp_answer(request)] if seen == 2 else garbage

    async with router(answers) as (asked, got):
        assert (await asked.map(PORT, PORT)).external_port == 40_000
        assert len(got) == 2


async def test_a_flood_and_silence_end_in_time(autojump_clock: trio.testing.MockClock) -> None:
    for flood in ([b"\2"] * 60, []):
        async with router(lambda request, flood=flood: flood) as (asked, got):  # type: ignore[misc]
            began = trio.current_time()
            with pytest.raises(MappingError, match="no answer"):
                await asked.map(PORT, PORT)
            assert trio.current_time() - began < 3 and len(got) <= 3


async def test_a_machine_that_takes_no_packets() -> None:
    with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as sock:
        await sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    with pytest.raises(OSError, match="refused"):
        await PcpRouter("127.0.0.1", port).map(PORT, PORT)


@pytest.mark.parametrize(
    ("client", "anywhere"), [("192.168.1.2", "::ffff:0.0.0.0"), ("2a10::5", "::"), ("fd00::5", "::")]
)
def test_a_port_is_asked_for_in_the_family_of_the_client(client: str, anywhere: str) -> None:
    request = map_request(client, bytes(12), 7_117, 7_117, 3_600)
    assert IPv6Address(request[-16:]) == IPv6Address(anywhere)
    its_own = IPv6Address(request[8:24])
    assert its_own == IPv6Address(client if ":" in client else f"::ffff:{client}")
