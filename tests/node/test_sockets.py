"""Reads and writes without trio's streams: complete, in order, and ended when either side closes."""

import os
from contextlib import suppress

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from mycelia.node.sockets import receive_some, send_at_once, send_rest

PATIENCE_S = 10.0


async def test_what_the_socket_does_not_take_at_once_follows() -> None:
    one, two = trio.socket.socketpair()
    with one, trio.fail_after(PATIENCE_S):
        data = os.urandom(4_000_000)
        rest = send_at_once(one, bytearray(data))
        assert 0 < len(rest) < len(data) and data.endswith(rest)
        assert send_at_once(one, rest) == rest, "there is no room"
        received = b""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_rest, one, rest)
            while len(received) < len(data):
                received += await receive_some(two, 65_536)
        assert received == data
        two.close()
        with pytest.raises(BrokenPipeError):
            send_at_once(one, b"too late")


async def test_the_end_reads_as_nothing_and_what_arrived_before_it_is_read() -> None:
    one, two = trio.socket.socketpair()
    with two, trio.fail_after(PATIENCE_S):
        assert send_at_once(one, b"the last words") == b""
        one.close()
        assert await receive_some(two, 8) + await receive_some(two, 80) == b"the last words"
        assert await receive_some(two, 8) == b""


async def test_closing_ends_those_who_wait() -> None:
    one, two = trio.socket.socketpair()
    ended = []

    async def read() -> None:
        with suppress(trio.ClosedResourceError):
            await receive_some(one, 8)
        ended.append("read")

    async def write() -> None:
        with suppress(trio.ClosedResourceError):
            await send_rest(one, bytes(4_000_000))
        ended.append("write")

    with two, trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            nursery.start_soon(write)
            await wait_all_tasks_blocked()
            one.close()
        assert sorted(ended) == ["read", "write"]
        for _ in range(2):
            with pytest.raises(trio.ClosedResourceError):
                await receive_some(one, 8)
            with pytest.raises(trio.ClosedResourceError):
                send_at_once(one, b"x")
