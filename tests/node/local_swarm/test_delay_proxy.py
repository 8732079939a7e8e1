"""The delay proxy in virtual time: all bytes arrive late and in order, and ends and breaks pass through it."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked

from mycelia.node.local_swarm import delay_proxy
from mycelia.node.local_swarm.delay_proxy import RETRANSMISSION_S, DelayProxy, Line, Quality, open_delay_proxy, relay

ONE_WAY_S = 0.04
Stream = trio.abc.HalfCloseableStream


@asynccontextmanager
async def relayed(line: Line | None = None) -> AsyncIterator[tuple[Stream, Stream]]:
    """The dialler's and the node's end of a connection through ``relay``."""
    near, left = memory_stream_pair()
    right, far = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay, left, right, line or Line(Quality(ONE_WAY_S)))
        yield near, far
        nursery.cancel_scope.cancel()


async def receive_all(stream: Stream) -> bytes:
    data = bytearray()
    async for chunk in stream:
        data += chunk
    return bytes(data)


async def test_no_byte_arrives_before_its_time(mock_clock: MockClock) -> None:
    async with relayed() as (near, far):
        await near.send_all(b"hello")
        received = []

        async def receive() -> None:
            received.append(await far.receive_some())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await wait_all_tasks_blocked()
            mock_clock.jump(ONE_WAY_S * 0.99)
            await wait_all_tasks_blocked()
            assert not received
            mock_clock.jump(ONE_WAY_S * 0.02)
        assert received == [b"hello"]


async def test_a_round_trip_takes_both_ways(autojump_clock: MockClock) -> None:
    async with relayed() as (near, far):
        began = trio.current_time()
        await near.send_all(b"ping")
        await far.receive_some()
        await far.send_all(b"pong")
        await near.receive_some()
        assert trio.current_time() - began == pytest.approx(2 * ONE_WAY_S)


async def test_everything_arrives_in_order_at_the_same_distance(autojump_clock: MockClock) -> None:
    rng = random.Random(1)
    pieces = [rng.randbytes(rng.randint(1, 3_000)) for _ in range(300)]
    async with relayed() as (near, far):

        async def send() -> None:
            for piece in pieces:
                await near.send_all(piece)
                await trio.sleep(rng.uniform(0.0, 0.01))
            await near.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            assert await receive_all(far) == b"".join(pieces)


async def test_what_is_lost_is_sent_again_and_what_follows_waits_for_it(autojump_clock: MockClock) -> None:
    line = Line(Quality(ONE_WAY_S, loss=1.0, rng=random.Random(1)))
    async with relayed(line) as (near, far):
        began = trio.current_time()
        await near.send_all(b"lost")
        await wait_all_tasks_blocked()
        line.quality = Quality(ONE_WAY_S)
        await near.send_all(b"not lost")
        assert await far.receive_some() == b"lost"
        assert ONE_WAY_S + RETRANSMISSION_S[0] <= trio.current_time() - began <= ONE_WAY_S + RETRANSMISSION_S[1]
        began = trio.current_time()
        assert await far.receive_some() == b"not lost" and trio.current_time() == began


async def test_a_bad_line_that_is_cut_is_mended_and_healed_apart(autojump_clock: MockClock) -> None:
    """Faults that overlap end independently of each other."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        proxy = DelayProxy(listener, ONE_WAY_S)
        line = proxy.line_of(1)
        async with relayed(line) as (near, far):
            proxy.cut(lambda port: True)
            proxy.spoil(Quality(10 * ONE_WAY_S))
            proxy.mend()
            await near.send_all(b"late")
            with trio.move_on_after(1) as while_cut:
                await far.receive_some()
            assert while_cut.cancelled_caught
            proxy.spoil(Quality(10 * ONE_WAY_S))
            proxy.heal()
            assert await far.receive_some() == b"late"
            began = trio.current_time()
            await near.send_all(b"slow")
            assert await far.receive_some() == b"slow"
            assert trio.current_time() - began == pytest.approx(10 * ONE_WAY_S)


async def test_one_direction_may_end_before_the_other(autojump_clock: MockClock) -> None:
    async with relayed() as (near, far):
        await near.send_all(b"question")
        await near.send_eof()
        assert await receive_all(far) == b"question"
        await far.send_all(b"answer")
        await far.send_eof()
        assert await receive_all(near) == b"answer"


async def test_the_sender_waits_when_too_much_is_under_way(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delay_proxy, "WINDOW_BYTES", 100)
    monkeypatch.setattr(delay_proxy, "READ_BYTES", 100)
    near, left = memory_stream_pair()
    right, far = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay, left, right, Line(Quality(ONE_WAY_S)))
        began = trio.current_time()
        await near.send_all(bytes(1_000))
        await near.send_eof()
        assert await receive_all(far) == bytes(1_000)
        assert trio.current_time() - began >= 10 * ONE_WAY_S - 1e-9  # (one window for each one-way time)
        nursery.cancel_scope.cancel()


async def test_a_broken_side_breaks_the_other(autojump_clock: MockClock) -> None:
    near, left = memory_stream_pair()
    right, far = memory_stream_pair()
    async with trio.open_nursery() as nursery:

        async def serve() -> None:
            async with left, right:
                await relay(left, right, Line(Quality(ONE_WAY_S)))

        nursery.start_soon(serve)
        await far.aclose()
        await near.send_all(b"to nobody")
        with trio.fail_after(10):
            assert await receive_all(near) == b""


async def test_a_proxy_forwards_to_a_port_that_is_told_later() -> None:
    async def echo(stream: trio.SocketStream) -> None:
        async for data in stream:
            await stream.send_all(data)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            (listener,) = await nursery.start(partial(trio.serve_tcp, echo, 0, host="127.0.0.1"))
            async with open_delay_proxy(0.001) as proxy:
                async with await trio.open_tcp_stream("127.0.0.1", proxy.port) as early:
                    assert await receive_all(early) == b""
                proxy.forward_to(listener.socket.getsockname()[1])
                async with await trio.open_tcp_stream("127.0.0.1", proxy.port) as stream:
                    await stream.send_all(b"x" * 200_000)
                    await stream.send_eof()
                    assert await receive_all(stream) == b"x" * 200_000
                assert proxy.num_connections == 1
            nursery.cancel_scope.cancel()
