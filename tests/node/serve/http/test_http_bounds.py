"""How much of a node's event loop and memory one client may take over HTTP."""

import tracemalloc
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio
import trio.testing
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from mycelia.node.serve.http import client_socket, http1, places
from mycelia.node.serve.http.bodies import read_json
from mycelia.node.serve.http.client_socket import ClientSocket
from mycelia.node.serve.http.errors import HttpError
from mycelia.node.serve.http.http1 import MAX_HEAD_LINES, MAX_PIECES, MAX_REST_PIECES
from mycelia.node.serve.http.places import admit
from mycelia.node.serve.http.turns import Turns
from tests.node.serve.http.serving import closing, connected, dial, reply, request, rest_of, served, until
from tests.node.serve.http.test_http1 import deaf, echo

JSON = "application/json"
CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


class Body(msgspec.Struct):
    text: str = ""


class Reader:
    """Admits each request as that of the client in its path, reads its JSON, and answers when allowed."""

    def __init__(self) -> None:
        self.may_end = trio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        admit(scope, scope["path"].encode())
        try:
            body = await read_json(Request(scope, receive), Body)
        except HttpError as exc:
            await reply(send, exc.message.encode(), exc.status, **exc.headers)
            return
        await self.may_end.wait()
        await reply(send, body.text.encode(), content_length=str(len(body.text)))


class Rounds(trio.abc.Instrument):
    """Counts the rounds of the scheduler."""

    def __init__(self) -> None:
        self.num = 0

    def after_io_wait(self, timeout: float) -> None:
        self.num += 1


# --- pieces ---------------------------------------------------------------------------------------------------------


async def test_a_body_in_too_many_pieces_is_refused() -> None:
    async with served(Reader()) as stream:
        await stream.send_all(CHUNKED + b"1\r\n \r\n" * (MAX_PIECES + 1))
        seen = await rest_of(stream)
    assert b" 400 " in seen and b"chunks" in seen and b"\r\nconnection: close\r\n" in seen.lower()


async def test_a_body_in_as_many_pieces_as_there_may_be_is_read() -> None:
    async with connected(echo) as stream:
        await stream.send_all(CHUNKED + b"1\r\nx\r\n" * MAX_PIECES + END + request("GET", "/", Connection="close"))
        seen = await rest_of(stream)
    assert seen.count(b" 200 ") == 2 and b"x" * MAX_PIECES in seen


@pytest.mark.parametrize(
    ("data", "least"),
    [
        (CHUNKED + b"1\r\nx\r\n" * MAX_PIECES + END, MAX_PIECES // MAX_REST_PIECES),
        (request("GET", "/") * 100, 100),
        (request("POST", "/", b"x" * 10) * 100, 100),
    ],
    ids=["chunks", "heads", "bodies"],
)
async def test_what_is_parsed_of_one_read_is_spread_over_rounds(data: bytes, least: int) -> None:
    async with connected(echo) as stream:
        rounds = Rounds()
        trio.lowlevel.add_instrument(rounds)
        await stream.send_all(data + request("GET", "/last", Connection="close"))
        assert b"GET /last" in await rest_of(stream)
        trio.lowlevel.remove_instrument(rounds)
    assert rounds.num >= least


async def test_a_head_of_many_lines_is_refused() -> None:
    async with connected(echo) as stream:
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a:\r\n" * 2_000 + b"\r\n")
        assert b" 431 " in await rest_of(stream)


async def test_a_refusal_of_a_long_line_is_short() -> None:
    async with connected(echo) as stream:
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\na" + bytes(60_000) + b"\r\n\r\n")
        answer = await rest_of(stream)
    assert answer.startswith(b"HTTP/1.1 400") and len(answer) < 1_000  # (it was the line, spelled: 240 kB)


async def test_a_trailer_of_many_lines_breaks_the_body_off() -> None:
    async with served(Reader()) as stream:
        await stream.send_all(CHUNKED + b"2\r\n{}\r\n0\r\n" + b"a:\r\n" * 2_000 + b"\r\n")
        seen = await rest_of(stream)
    assert b" 400 " in seen and b"ended early" in seen


async def test_a_trailer_of_some_lines_is_let_through() -> None:
    data = CHUNKED + b"1\r\nx\r\n0\r\n" + b"a: b\r\n" * (MAX_HEAD_LINES // 2) + b"\r\n"
    async with connected(echo) as stream:
        for _ in range(2):
            await stream.send_all(data)
            await until(stream, b"POST /  x")


@asynccontextmanager
async def running_turns() -> AsyncIterator[Turns]:
    turns = Turns()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(turns.run)
        yield turns
        nursery.cancel_scope.cancel()


async def test_turns_are_one_a_round_and_of_each_share_in_turn() -> None:
    order, rounds = list[str](), Rounds()

    async def work(share: str) -> None:
        await turns.take(share)
        order.append(share)

    async with running_turns() as turns, trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(work, "many")
        while len(order) < 5:
            await trio.lowlevel.checkpoint()
        trio.lowlevel.add_instrument(rounds)
        nursery.start_soon(work, "one")
        num_before = len(order)
        while "one" not in order:
            await trio.lowlevel.checkpoint()
        num_ahead = len(order) - num_before
    trio.lowlevel.remove_instrument(rounds)
    assert len(order) == 21 and num_ahead <= 3 and rounds.num >= 21 - 5 - 1


async def test_a_turn_whose_taker_was_cancelled_is_the_next_ones() -> None:
    order = list[str]()

    async def work(share: str, scope: trio.CancelScope) -> None:
        with scope:
            await turns.take(share)
            order.append(share)

    async with running_turns() as turns, trio.open_nursery() as nursery:
        scopes = [trio.CancelScope() for _ in range(20)]
        for number, scope in enumerate(scopes):
            nursery.start_soon(work, f"{number % 3}", scope)
        for scope in scopes[::2]:
            scope.cancel()
        with trio.fail_after(5):
            await turns.take("last")
    assert len(order) >= 10


# --- bodies ---------------------------------------------------------------------------------------------------------


def body(num_bytes: int) -> bytes:
    return b'{"text":"' + b"x" * (num_bytes - 11) + b'"}'


async def test_a_body_that_is_late_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1, "BODY_DEADLINE_S", 0.05)
    monkeypatch.setattr(client_socket, "LINGER_S", 0.05)
    for begun in (CHUNKED, CHUNKED + b"2\r\n{}\r\n", request("POST", "/", b"{}", Content_Type=JSON)[:-1]):
        async with served(Reader()) as stream:
            await stream.send_all(begun)
            seen = await rest_of(stream)
        assert b" 408 " in seen and b"did not arrive within" in seen and b"connection: close" in seen


async def test_bodies_that_are_held_are_bounded_and_shared_by_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "MAX_HELD_BODY_BYTES", 1_000_000)
    app = Reader()
    async with served(app) as stream:
        greedy = [stream, *[await dial(stream) for _ in range(5)]]
        async with closing(greedy):
            for one in greedy:  # (all but the last byte, which never comes)
                await one.send_all(request("POST", "/greedy", body(150_000), Content_Type=JSON)[:-1])
            refused = await first_of(greedy)
            assert b" 503 " in refused and b"\r\nretry-after: 1\r\n" in refused and b"connection: close" in refused
            app.may_end.set()
            async with await dial(stream) as honest:
                for _ in range(20):  # (each releases what it held)
                    await honest.send_all(request("POST", "/honest", body(100_000), Content_Type=JSON))
                    await until(honest, b"x" * 99_989)


async def first_of(streams: Sequence[trio.SocketStream]) -> bytes:
    """The first reply on any of the streams."""
    said, hear = trio.open_memory_channel[bytes](len(streams))

    async def wait(stream: trio.SocketStream) -> None:
        said.send_nowait(bytes(await stream.receive_some()))

    async with trio.open_nursery() as nursery:
        for stream in streams:
            nursery.start_soon(wait, stream)
        first = await hear.receive()
        nursery.cancel_scope.cancel()
    return first


async def test_a_body_counts_until_its_request_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "MAX_HELD_BODY_BYTES", 1_000_000)
    app = Reader()
    data = request("POST", "/key", body(300_000), Content_Type=JSON)
    async with served(app) as stream, await dial(stream) as second:
        await stream.send_all(data)
        await trio.testing.wait_all_tasks_blocked(0.05)
        await second.send_all(data)
        assert b" 503 " in await second.receive_some()
        app.may_end.set()
        await until(stream, b"x" * 299_989)
        async with await dial(stream) as third:
            await third.send_all(data)
            await until(third, b"x" * 299_989)


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("app", [deaf, echo])
async def test_a_connection_ends_after_a_request_that_no_gate_let_in(app: object) -> None:
    async with served(app) as stream:  # type: ignore[arg-type]
        await stream.send_all(request("GET", "/") * 100)
        seen = await rest_of(stream)
    assert seen.count(b"HTTP/1.1 ") == 1 and b"\r\nconnection: close\r\n" in seen.lower()


# --- slow readers ---------------------------------------------------------------------------------------------------


async def test_what_a_slow_client_has_not_read_is_not_copied_for_each_piece_that_it_reads() -> None:
    """Copies took most of a core for one client that read 0.1 MB/s of an answer of 60 MB."""
    data = bytes(8 << 20)
    ours, theirs = trio.socket.socketpair()
    client = ClientSocket(trio.SocketStream(ours), None)
    tracemalloc.start()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.write, data)
            num_read = 0
            while num_read < len(data):
                num_read += len(await theirs.recv(16_384))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        ours.close()
        theirs.close()
    assert peak < len(data) // 2
