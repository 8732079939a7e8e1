"""HTTP/1.1 connections over real sockets, with small applications behind them."""

import json
import os

import pytest
import trio
import trio.testing
from starlette.types import Receive, Scope, Send

from mycelia.node.serve.http import client_socket, http1
from tests.node.serve.http.serving import body_of, connected, reply, request, rest_of, until


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    said = await body_of(receive)
    told = f"{scope['method']} {scope['path']} {scope['query_string'].decode()} ".encode() + said
    await reply(send, told, content_length=str(len(told)))


async def deaf(_: Scope, __: Receive, send: Send) -> None:
    await reply(send, b"no", 403, content_length="2")


class Endless:
    def __init__(self) -> None:
        self.gone = trio.Event()

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        await body_of(receive)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        await send({"type": "http.response.body", "body": b"to nobody"})
        self.gone.set()


class Talker:
    """Sends the same text again and again, until the client disconnects."""

    def __init__(self, piece: bytes, pause_s: float) -> None:
        self._piece = piece
        self._pause_s = pause_s
        self.gone = trio.Event()

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        await body_of(receive)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._talk, send)
            while (await receive())["type"] != "http.disconnect":
                pass
            nursery.cancel_scope.cancel()
        self.gone.set()

    async def _talk(self, send: Send) -> None:
        while True:
            await send({"type": "http.response.body", "body": self._piece, "more_body": True})
            await trio.sleep(self._pause_s)


async def test_one_connection_answers_one_request_after_another() -> None:
    async with connected(echo) as stream:
        for number in range(3):
            await stream.send_all(request("POST", f"/a%20b?n={number}", b"body"))
            seen = await until(stream, f"POST /a b n={number} body".encode())
            assert seen.startswith(b"HTTP/1.1 200 \r\n") and b"\r\ndate: " in seen.lower()


async def test_requests_that_do_not_wait_for_answers_are_answered_in_order() -> None:
    requests = [request("POST", f"/{number}", b"x" * 9_000) for number in range(20)]
    async with connected(echo) as stream:
        await stream.send_all(b"".join(requests) + request("GET", "/20", Connection="close"))
        seen = await rest_of(stream)
    places = [seen.index(b" /%d " % number) for number in range(21)]
    assert places == sorted(places) and seen.count(b"x" * 9_000) == 20


@pytest.mark.parametrize("data", [request("GET", "/", Connection="close"), b"GET / HTTP/1.0\r\n\r\n"])
async def test_the_connection_ends_where_the_client_wants_it(data: bytes) -> None:
    async with connected(echo) as stream:
        await stream.send_all(data)
        assert (await rest_of(stream)).endswith(b"GET /  ")


async def test_an_old_client_knows_no_chunks() -> None:
    async def stream_some(_: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for body in (b"one ", b"", b"two"):
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async with connected(stream_some) as stream:
        await stream.send_all(b"GET / HTTP/1.0\r\n\r\n")
        assert (await rest_of(stream)).endswith(b"\r\n\r\none two")
    async with connected(stream_some) as stream:
        await stream.send_all(request("GET", "/"))
        assert (await until(stream, b"0\r\n\r\n")).endswith(b"\r\n\r\n4\r\none \r\n3\r\ntwo\r\n0\r\n\r\n")


@pytest.mark.parametrize("value", ["a\r\nset-cookie: b", "a\nb", "a\0b", "a\rb"])
async def test_a_header_with_control_characters_is_never_sent(value: str) -> None:
    async def app(_: Scope, receive: Receive, send: Send) -> None:
        await body_of(receive)
        await reply(send, b"hello", x_odd=value)

    async with connected(app) as stream:
        await stream.send_all(request("GET", "/", Connection="close"))
        answer = b"".join([bytes(piece) async for piece in stream])
    assert answer.startswith(b"HTTP/1.1 500 ") and b"x-odd" not in answer


async def test_a_length_in_capitals_is_the_bodys_length() -> None:
    async def app(_: Scope, receive: Receive, send: Send) -> None:
        await body_of(receive)
        await reply(send, b"hello", Content_Length="5", Tab="a\tb")

    async with connected(app) as stream:
        await stream.send_all(request("GET", "/", Connection="close"))
        head, _, body = b"".join([bytes(piece) async for piece in stream]).partition(b"\r\n\r\n")
    assert body == b"hello" and b"chunked" not in head and head.count(b"ength") == 1 and b"Tab: a\tb" in head


async def test_head_has_the_headers_and_no_body() -> None:
    async with connected(echo) as stream:
        await stream.send_all(request("HEAD", "/") + request("GET", "/", Connection="close"))
        first, second = (await rest_of(stream)).split(b"HTTP/1.1 200")[1:]
        assert b"content-length: 8" in first.lower() and first.endswith(b"\r\n\r\n") and second.endswith(b"GET /  ")


async def test_a_client_that_waits_before_its_body_is_told_to_go_on() -> None:
    data = request("POST", "/", b"body", Expect="100-continue")
    async with connected(echo) as stream:
        await stream.send_all(data[:-4])
        assert (await until(stream, b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        await stream.send_all(data[-4:])
        await until(stream, b"POST /  body")
    async with connected(deaf) as stream:
        await stream.send_all(data[:-4])
        assert (await rest_of(stream)).startswith(b"HTTP/1.1 403 ")


async def test_a_refused_body_that_is_there_does_not_cost_the_connection() -> None:
    async with connected(deaf) as stream:
        for _ in range(3):
            await stream.send_all(request("POST", "/", b"ignored"))
            assert b" 403 " in await until(stream, b"no")


async def test_a_refused_body_that_is_still_coming_does() -> None:
    async with connected(deaf) as stream:
        data = request("POST", "/", b"x" * 1_000_000)
        await stream.send_all(data[:500_000])
        seen = await until(stream, b"no")
        await stream.send_all(data[500_000:])  # (a connection closed with unread bytes would lose the answer)
        assert b" 403 " in seen + await rest_of(stream)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\r\n\r\n", b"400"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"505"),
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nlong: " + b"x" * 200_000, b"431"),
        (b"GET /" + b"x" * 200_000, b"431"),
        (request("POST", "/", b"0\r\n\r\n", Transfer_Encoding="chunked"), b"400"),
    ],
    ids=["tls", "http2", "no host", "length", "header", "target", "two lengths"],
)
async def test_what_is_no_request_is_refused(data: bytes, status: bytes) -> None:
    async with connected(echo) as stream:
        await stream.send_all(data)
        seen = await rest_of(stream)
    assert seen.startswith(b"HTTP/1.1 " + status) and seen.partition(b"\r\n\r\n")[2].strip()


@pytest.mark.parametrize("body", [b"zz\r\n", b"ffffffffffffffffffffffff\r\n"])
async def test_a_body_that_is_none_reads_as_a_client_that_went_away(body: bytes) -> None:
    async def app(_: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "http.disconnect"
        await reply(send, b"broken off", 400)

    async with connected(app) as stream:
        await stream.send_all(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
        assert b" 400 " in await rest_of(stream)


async def test_a_bug_costs_one_connection() -> None:
    async def early(*_: object) -> None:
        raise ZeroDivisionError

    async def late(_: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"some", "more_body": True})
        raise ZeroDivisionError

    async with connected(early) as stream:
        await stream.send_all(request("GET", "/"))
        assert (await rest_of(stream)).startswith(b"HTTP/1.1 500 ")
    async with connected(late) as stream:
        await stream.send_all(request("GET", "/"))
        seen = await rest_of(stream)
        assert b"some" in seen and not seen.endswith(b"0\r\n\r\n")


async def test_an_application_learns_that_its_client_is_gone() -> None:
    app = Endless()
    async with connected(app) as stream:
        await stream.send_all(request("GET", "/"))
        await until(stream, b"begun\r\n")
        await stream.aclose()
        await app.gone.wait()


async def test_what_comes_during_an_answer_is_bounded_and_does_not_disturb_it() -> None:
    may_end = trio.Event()

    async def app(_: Scope, receive: Receive, send: Send) -> None:
        await body_of(receive)
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                assert (await receive())["type"] != "http.request"

            nursery.start_soon(wait)
            await may_end.wait()
            nursery.cancel_scope.cancel()
        await reply(send, b"answered", content_length="8")

    async with connected(app) as stream:
        await stream.send_all(request("GET", "/") + b"GET /next HTTP/1.1\r\nHost: x\r\nlong: ")
        num_taken = await pour(stream)
        may_end.set()
        seen = await rest_of(stream)
    # (what the kernel's buffers hold, and little more)
    assert 100_000 < num_taken < 16_000_000
    assert seen.count(b"HTTP/1.1 ") == 2 and b"answered" in seen and b"HTTP/1.1 431 " in seen


async def pour(stream: trio.SocketStream) -> int:
    """Send until nothing more is accepted; returns the number of bytes."""
    num_sent = 0
    while True:
        try:
            num_sent += os.write(stream.socket.fileno(), b"x" * 65_536)
        except BlockingIOError:
            with trio.move_on_after(0.2):
                await trio.lowlevel.wait_writable(stream.socket)
                continue
            return num_sent


async def test_many_small_requests_ahead_do_not_pile_up() -> None:
    small = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    ahead: list[int] = []

    async def app(_: Scope, receive: Receive, send: Send) -> None:
        with trio.move_on_after(0.001):
            while (await receive())["type"] == "http.request":
                pass
        connection = receive.__self__  # type: ignore[attr-defined]
        ahead.append(connection.num_ahead)
        await reply(send, b"", content_length="0")

    async with connected(app) as stream, trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, small * 40_000)
        while len(ahead) < 100:
            await stream.receive_some()
        nursery.cancel_scope.cancel()
    assert max(ahead) <= http1.MAX_HEAD_BYTES + 2 * 16_384


async def test_one_connection_with_many_requests_lets_others_have_their_turn() -> None:
    order: list[str] = []

    async def app(scope: Scope, _: Receive, send: Send) -> None:
        order.append(scope["path"])
        await reply(send, b"", content_length="0")

    async with connected(app) as stream:
        address = stream.socket.getpeername()
        async with await trio.open_tcp_stream(*address[:2]) as other:
            await other.send_all(request("GET", "/other"))
            await until(other, b"\r\n\r\n")
            order.clear()
            await stream.send_all(b"GET /many HTTP/1.1\r\nHost: x\r\n\r\n" * 300)
            await other.send_all(request("GET", "/other"))
            await until(other, b"\r\n\r\n")
    assert order.index("/other") < 299


async def test_a_piece_whose_sender_is_cancelled_still_goes_out_whole() -> None:
    """As when one of several choices fails while the text of another one waits for room."""
    piece, cut = b"x" * 16_000_000, trio.Event()

    async def app(_: Scope, receive: Receive, send: Send) -> None:
        await body_of(receive)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        with trio.move_on_after(0.05) as impatience:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        assert impatience.cancelled_caught
        cut.set()
        await send({"type": "http.response.body", "body": b"end"})

    async with connected(app) as stream:
        await stream.send_all(request("GET", "/", Connection="close"))
        await cut.wait()
        seen = await rest_of(stream)
    assert seen.count(b"x") == len(piece) and seen.endswith(b"\r\n3\r\nend\r\n0\r\n\r\n")


async def test_a_client_that_floods_and_goes_away_frees_what_waits_for_it() -> None:
    app = Talker(b"still here", 0.01)
    async with connected(app) as stream:
        await stream.send_all(request("GET", "/"))
        await stream.receive_some()
        await pour(stream)
        await stream.aclose()
        await app.gone.wait()


async def test_an_answer_that_leaves_a_body_unread_says_that_it_ends_the_connection() -> None:
    async with connected(deaf) as stream:
        await stream.send_all(request("POST", "/", b"x" * 100_000)[:50_000])
        assert b"\r\nconnection: close\r\n" in (await until(stream, b"no")).lower()


async def test_a_bug_behind_head_has_no_body() -> None:
    async def app(*_: object) -> None:
        raise ZeroDivisionError

    async with connected(app) as stream:
        await stream.send_all(request("HEAD", "/"))
        seen = await rest_of(stream)
    assert seen.startswith(b"HTTP/1.1 500 ") and seen.endswith(b"\r\n\r\n")


async def test_a_client_that_does_not_read_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_socket, "WRITE_DEADLINE_S", 0.05)
    app = Talker(b"x" * 1_000_000, 0.0)
    async with connected(app) as stream:
        await stream.send_all(request("GET", "/"))
        await app.gone.wait()


async def test_a_client_that_asks_nothing_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEAD_DEADLINE_S", "IDLE_DEADLINE_S"):
        monkeypatch.setattr(http1, name, 0.05)
    monkeypatch.setattr(client_socket, "LINGER_S", 0.05)
    for begun in (b"", b"GET / HTTP/1.1\r\nHost"):
        async with connected(echo) as stream:
            await stream.send_all(begun)
            assert await rest_of(stream) == b""


async def test_a_body_in_many_pieces_that_nobody_wants_is_not_read_to_its_end() -> None:
    async with connected(deaf) as stream:
        head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        await stream.send_all(head + b"1\r\nx\r\n" * 2_000 + b"0\r\n\r\n" + request("GET", "/"))
        seen = await rest_of(stream)
    assert seen.count(b" 403 ") == 1 and b"\r\nconnection: close\r\n" in seen.lower()


async def test_an_upgrade_to_http2_is_not_taken_and_the_connection_goes_on() -> None:
    asks = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2_Settings": "AAMAAABkAAQAoAAAAAIAAAAA"}
    async with connected(echo) as stream:
        for body in (b"", b"some"):
            await stream.send_all(request("POST", "/", body, **asks))
            seen = await until(stream, b"POST /  " + body)
            assert seen.startswith(b"HTTP/1.1 200 ") and b"upgrade" not in seen.lower()


async def test_an_idle_connection_is_kept_longer_than_half_a_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1, "HEAD_DEADLINE_S", 0.05)
    monkeypatch.setattr(client_socket, "LINGER_S", 0.05)
    async with connected(echo) as stream:
        for _ in range(2):
            await stream.send_all(request("GET", "/"))
            await until(stream, b"GET /  ")
            await trio.testing.wait_all_tasks_blocked(0.1)
        await stream.send_all(b"GET / HTTP/1.1\r\nHost")
        assert await rest_of(stream) == b""
    assert http1.IDLE_DEADLINE_S == 120


async def test_refusals_below_the_application_are_json_that_sdks_read() -> None:
    async with connected(echo) as stream:
        await stream.send_all(b"GET /" + b"x" * 200_000)
        head, _, body = (await rest_of(stream)).partition(b"\r\n\r\n")
    error = json.loads(body)
    assert b" 431 " in head and b"content-type: application/json" in head
    assert error["type"] == "error" and error["error"]["type"] == "invalid_request_error" and error["error"]["message"]
