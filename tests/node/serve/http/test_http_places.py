"""Which HTTP connections get a place, and which end for them."""

import random
from collections.abc import Sequence
from contextlib import suppress

import pytest
import trio
from starlette.types import Receive, Scope, Send

from mycelia.node.serve.http import server
from mycelia.node.serve.http.places import HttpPlace, HttpPlaces, admit
from mycelia.node.serve.http.server import MAX_CONNECTIONS
from tests.node.serve.http.serving import (
    body_of,
    closing,
    connected,
    dial,
    reply,
    request,
    rest_of,
    served,
    until,
)
from tests.node.serve.http.test_http1 import echo


async def ended(streams: Sequence[trio.SocketStream], count: int) -> None:
    """Wait until the server has ended ``count`` of them."""
    send, receive = trio.open_memory_channel[None](len(streams))

    async def wait(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            await stream.receive_some()
        send.send_nowait(None)

    async with trio.open_nursery() as nursery:
        for stream in streams:
            nursery.start_soon(wait, stream)
        for _ in range(count):
            await receive.receive()
        nursery.cancel_scope.cancel()


HALF_HEAD = b"GET / HTTP/1.1\r\nHost: x"


@pytest.mark.parametrize("begun", [b"", HALF_HEAD, request("GET", "/")], ids=["silent", "half a head", "idle"])
async def test_connections_that_wait_keep_nobody_out(begun: bytes) -> None:
    async with connected(echo) as stream:
        others = [await dial(stream) for _ in range(MAX_CONNECTIONS + 20)]
        async with closing(others):
            for other in others:
                with suppress(trio.BrokenResourceError):
                    await other.send_all(begun)
            if not begun.endswith(b"\r\n\r\n"):
                await ended([stream, *others], 20)
            for source in ("127.0.0.2", "127.0.0.1"):
                async with await dial(stream, source) as honest:
                    await honest.send_all(request("GET", "/"))
                    await until(honest, b"GET /  ")


class Admitting:
    """Admits each request as that of the client in its path, reports whether it could, and answers on demand."""

    def __init__(self) -> None:
        self.may_end = trio.Event()
        self.num_waiting = 0
        self.all_wait = trio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await body_of(receive)
        if not admit(scope, scope["path"].encode()):
            await reply(send, b"no", 503, content_length="2")
            return
        self.num_waiting += 1
        if self.num_waiting == 6:
            self.all_wait.set()
        await self.may_end.wait()
        await reply(send, b"yes", content_length="3")


async def test_requests_that_are_answered_are_not_ended_and_one_client_cannot_take_all_places(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 8)
    app = Admitting()
    async with served(app) as stream:
        admitted = [stream, *[await dial(stream) for _ in range(5)]]
        for one in admitted:
            await one.send_all(request("GET", "/key"))
        await app.all_wait.wait()
        waiting = [await dial(stream) for _ in range(4)]
        async with closing([*admitted, *waiting]):
            await ended(waiting, 2)
            async with await dial(stream) as same, await dial(stream) as other:
                await same.send_all(request("GET", "/key"))
                await until(same, b"no")
                await other.send_all(request("GET", "/another"))
                app.may_end.set()
                await until(other, b"yes")
            for one in admitted:
                await until(one, b"yes")


async def test_a_connection_without_a_place_is_told_to_try_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 6)
    monkeypatch.setattr(server, "MAX_REFUSING", 2)
    app = Admitting()
    async with served(app) as stream:
        admitted = [stream]
        for number in range(6):
            await admitted[-1].send_all(request("GET", f"/{number}"))
            while app.num_waiting <= number:  # (a connection that waits takes a place of its network)
                await trio.lowlevel.checkpoint()
            if number < 5:
                admitted.append(await dial(stream))
        late = [await dial(stream) for _ in range(2)]
        async with closing([*admitted, *late]):
            for one in late:
                await one.send_all(request("POST", "/", b"body"))
                assert is_full(await until(one, b"}}"))
            async with await dial(stream) as too_late:
                assert await rest_of(too_late) == b"", "too many are being refused"
            for one in late:
                assert await rest_of(one) == b""
                await one.aclose()
            answer = b""
            while not is_full(answer):
                async with await dial(stream) as later:
                    with suppress(trio.BrokenResourceError):
                        await later.send_all(request("GET", "/"))
                        answer = await rest_of(later)
            app.may_end.set()
            for one in admitted:
                await until(one, b"yes")


def is_full(answer: bytes) -> bool:
    return answer.startswith(b"HTTP/1.1 503 ") and b"retry-after: 1\r\n" in answer and answer.endswith(b"}}")


async def test_a_connection_that_loses_its_place_with_a_request_under_way_is_told_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 2)
    async with connected(echo) as idle:
        await idle.send_all(request("GET", "/"))
        await until(idle, b"GET /  ")
        async with await dial(idle) as begun:
            await begun.send_all(HALF_HEAD)
            async with await dial(idle) as first, await dial(idle) as second:
                assert is_full(await rest_of(begun))
                assert await rest_of(idle) == b"", "an answer to nothing would confuse its client"
                await second.send_all(request("GET", "/"))
                await until(second, b"GET /  ")
                await first.send_all(request("GET", "/"))
                await until(first, b"GET /  ")


def test_places_are_never_more_than_there_are_and_newcomers_get_one_while_anybody_waits() -> None:
    rng = random.Random(5)
    for num_places in (1, 2, 7, 30):
        places = HttpPlaces(num_places)
        held: set[HttpPlace] = set()
        admitted: set[HttpPlace] = set()
        num_ended = 0

        def end() -> None:
            nonlocal num_ended
            num_ended += 1

        for _ in range(2_000):
            kind = rng.randrange(4)
            num_ended = 0
            if kind == 0:
                subnet = rng.choice(("", "local 127.0.0.1", "192.0.2.0/24", "198.51.100.0/24"))
                place = places.enter(subnet, end)
                assert (place is None) == (len(admitted) == num_places)
                if place is not None:
                    held.add(place)
            elif held:
                place = rng.choice(sorted(held, key=id))
                if kind == 1:
                    if place not in admitted and place.admit(rng.choice((b"", b"one", b"two"))):
                        admitted.add(place)
                elif kind == 2:
                    place.rest()
                    admitted.discard(place)
                else:
                    place.leave()
                    admitted.discard(place)
                    held.remove(place)
            gone = {place for place in held if place.counted_for is None}
            assert len(gone) == num_ended <= 1 and not gone & admitted
            assert not any(place.admit(b"") for place in gone)
            held -= gone
            assert len(held) <= num_places
