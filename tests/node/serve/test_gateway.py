"""The local API over real sockets: mistakes of clients, and attacks that must fail."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio

from mycelia.node.serve.api_keys import unnamed
from mycelia.node.serve.gateway import Access, serve_gateway
from mycelia.node.serve.http.server import MAX_CONNECTIONS, bind_api
from mycelia.node.views.state import ModelRow, NodeState, TreeRowView
from mycelia.proto.wire.errors import LocalError
from mycelia.proto.wire.messages import Answered, Ask, Conversation, EntryFrame, Failed, Route, Text, Usage
from tests.node.serve.unobserved import Unobserved

DEADLINE_S = 30.0
KEY = "a key of sixteen or more"
TURN = {"role": "user", "content": "hello"}
USAGE = Usage(prompt_tokens=1, cached_tokens=0, completion_tokens=1, queue_ms=0, prefill_ms=0, decode_ms=0)
ANSWERED = Answered(served_by=b"\x01" * 38, reason="stop", usage=USAGE, ttft_ms=0, resumed=0)

ROUTE = Route(chosen=b"\x01" * 38, reason="the only node", prompt_tokens=1, candidates=())
BUSY = Failed(code="overloaded", message="all nodes are busy", retryable=True, retry_after_ms=2_001)


class FakeNode(Unobserved):
    """Answers "endless" for ever, routes "slow" and then waits, is too busy for "busy" and, after some text, for
    "late", and answers all else at once. Its state is broken, and its tokens are many."""

    def __init__(self) -> None:
        self.left = trio.Event()
        """Set when the reader of an answer is gone."""
        self.deadlines_s: list[float | None] = []

    @asynccontextmanager
    async def ask(
        self, ask: Ask, deadline_s: float | None = None, client: bytes = b""
    ) -> AsyncIterator[AsyncIterator[EntryFrame]]:
        self.deadlines_s.append(deadline_s)
        send, receive = trio.open_memory_channel[EntryFrame](10)
        content = ask.messages[0].content
        if content in ("slow", "busy"):
            send.send_nowait(ROUTE)
        else:
            send.send_nowait(Text(text="hi"))
        if content not in ("endless", "slow"):
            send.send_nowait(BUSY if content in ("busy", "late") else ANSWERED)
            send.close()
        try:
            yield receive
        finally:
            self.left.set()

    model = "fake"

    def models(self) -> list[ModelRow]:
        return [ModelRow("fake", 1, 4_096)]

    def state(self) -> NodeState:
        raise ZeroDivisionError("a bug")

    async def tree(self, client: bytes = b"") -> list[TreeRowView]:
        raise LocalError("the engine died while it looked at the text")

    async def tokenize(self, conversation: Conversation, client: bytes = b"", model: str = "") -> list[int]:
        return [1] * 10_000_000


@asynccontextmanager
async def served(access: Access = Access()) -> AsyncIterator[tuple[FakeNode, int]]:
    """A node's API and its port. Leaving must not wait for any client."""
    node = FakeNode()
    listener = bind_api("127.0.0.1", 0)
    port = listener.getsockname()[1]
    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_gateway, node, listener, access)
            yield node, port
            nursery.cancel_scope.cancel()


def request(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    given = {"Host": "127.0.0.1", "Content-Type": "application/json", "Connection": "close"}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items())]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


def conversation(content: str = "hello") -> bytes:
    return json.dumps({"messages": [TURN | {"content": content}]}).encode()


async def exchange(port: int, data: bytes) -> tuple[int, bytes]:
    """Status and everything after the headers, up to the end of the connection."""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(data)
        reply = b"".join([bytes(chunk) async for chunk in stream])
    head, _, body = reply.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


@pytest.mark.parametrize(
    ("data", "status", "says"),
    [
        (request("GET", "/api/nothing"), 404, "there is no path /api/nothing"),
        (request("GET", "/api/ask"), 405, "use POST"),
        (request("POST", "/api/ask", b"{"), 400, "not valid"),
        (request("POST", "/api/ask", b'{"messages":[{"role":"user","content":"\xff"}]}'), 400, "not valid"),
        (request("POST", "/api/ask", b'{"messages":[]}'), 400, "length >= 1"),
        (request("POST", "/api/ask", conversation(), Content_Type="image/png"), 415, "application/json"),
        (request("POST", "/api/ask", b" " * 4_000_000), 413, "more than"),
        (request("POST", "/api/ask", b'{"messages": [' + b"[]," * 140_000 + b"[]]}"), 413, "brackets"),
        (request("GET", "/api/state", Host="evil.example"), 400, "--api-key-file"),
        (request("GET", "/api/state"), 500, "see its log"),
        (request("GET", "/api/tree"), 503, "the engine died"),
    ],
    ids=["path", "method", "json", "utf-8", "empty", "type", "huge", "brackets", "host", "bug", "engine"],
)
async def test_refusals(data: bytes, status: int, says: str) -> None:
    async with served() as (_, port):
        got, body = await exchange(port, data)
    assert got == status and says in body.decode()


EVIL = "https://evil.example"
FOREIGN = [
    {"Origin": EVIL},
    {"Origin": "null"},
    {"Origin": "http://localhost:3000"},
    {"Origin": "http://127.0.0.1:1", "Sec_Fetch_Site": "same-site"},
    {"Sec_Fetch_Site": "cross-site"},
    {"Sec_Fetch_Site": "same-site"},
    {"Sec_Fetch_Site": "what comes next"},
]


@pytest.mark.parametrize("path", ["/api/requests", "/api/events", "/api/links", "/metrics", "/v1/models", "/none"])
async def test_pages_of_other_origins_are_refused_also_when_they_only_read(path: str) -> None:
    async with served() as (_, port):
        for headers in FOREIGN:
            status, body = await exchange(port, request("GET", path, b"", **headers))
            assert status == 403 and b"--cors" in body, headers


async def test_own_pages_programs_and_allowed_origins_are_answered() -> None:
    async with served(Access(origins=(EVIL,))) as (_, port):
        own = {"Origin": f"http://localhost:{port}", "Host": f"localhost:{port}", "Sec_Fetch_Site": "same-origin"}
        allowed = {"Origin": EVIL, "Sec_Fetch_Site": "cross-site"}
        for headers in ({}, own, {"Sec_Fetch_Site": "none"}, {"Sec_Fetch_Site": "same-origin"}, allowed):
            assert (await exchange(port, request("GET", "/api/requests", b"", **headers)))[0] == 200, headers
        assert (await exchange(port, request("GET", "/api/requests", Origin=f"{EVIL}.example")))[0] == 403
        followed_link = request("GET", "/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate")
        assert (await exchange(port, followed_link))[0] == 200
    async with served(Access(keys=(unnamed(KEY),))) as (_, port):
        keyed = request("GET", "/api/requests", Authorization=f"Bearer {KEY}", Origin=EVIL)
        assert (await exchange(port, keyed))[0] == 200, "a page that knows a key was given it"


async def test_clients_without_a_key_keep_no_key_holder_out() -> None:
    """Half a head, a page whose bytes are not read, a body that does not come."""
    half = b"GET /api/state HTTP/1.1\r\nHost: x"
    unread = request("GET", "/", Connection="keep-alive") * 400
    no_body = request("POST", "/api/ask", conversation())[:-20]
    async with served(Access(keys=(unnamed(KEY),))) as (_, port):
        others = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(MAX_CONNECTIONS + 20)]
        try:
            for number, other in enumerate(others):
                with suppress(trio.BrokenResourceError):
                    await other.send_all((half, unread, no_body)[number % 3])
            async with await trio.open_tcp_stream("127.0.0.1", port, local_address="127.0.0.2") as stream:
                await stream.send_all(request("GET", "/api/requests", Authorization=f"Bearer {KEY}"))
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 200 ")
        finally:
            for other in others:
                await trio.aclose_forcefully(other)


async def test_who_sends_too_much_is_told_so_and_may_send_on() -> None:
    data = request("POST", "/api/ask", b" " * 8_000_000)
    async with served() as (_, port), await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(data[:4_000_000])
        reply = await stream.receive_some()
        await stream.send_all(data[4_000_000:])  # (closing with unread bytes resets the connection)
        reply += b"".join([bytes(chunk) async for chunk in stream])
    assert b" 413 " in reply.partition(b"\r\n")[0] and b"more than" in reply


async def test_the_connection_ends_after_the_answer_when_the_client_asked_for_that() -> None:
    async with served() as (_, port):
        status, body = await exchange(
            port, request("POST", "/api/ask", conversation(), Content_Type="Application/JSON")
        )
    assert status == 200 and b'"type":"answered"' in body and body.endswith(b"0\r\n\r\n")


async def test_an_answers_timeout_reaches_the_node() -> None:
    async with served() as (node, port):
        for timeout in ("null", "2.5", "7"):
            body = b'{"timeout_s": %s, %s' % (timeout.encode(), conversation()[1:])
            assert (await exchange(port, request("POST", "/api/ask", body)))[0] == 200
        assert node.deadlines_s == [None, 2.5, 7.0]
        for timeout in ("0", "-1", "1e9", '"soon"', "NaN"):
            body = b'{"timeout_s": %s, %s' % (timeout.encode(), conversation()[1:])
            assert (await exchange(port, request("POST", "/api/ask", body)))[0] == 400


async def test_a_refusal_for_load_is_a_status_that_says_when_to_come_back() -> None:
    async with served() as (_, port), await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(request("POST", "/api/ask", conversation("busy")))
        reply = b"".join([bytes(chunk) async for chunk in stream])
    assert reply.startswith(b"HTTP/1.1 429 ") and b"\r\nretry-after: 3\r\n" in reply.lower()
    assert b'"retry_after_s":2.001' in reply and b'"route"' not in reply


async def test_a_refusal_after_some_text_ends_the_stream() -> None:
    async with served() as (_, port):
        status, body = await exchange(port, request("POST", "/api/ask", conversation("late")))
    assert status == 200 and b'"text":"hi"' in body and b'"code":"overloaded"' in body


async def test_a_route_does_not_wait_for_a_long_prefill() -> None:
    async with served() as (node, port):
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(request("POST", "/api/ask", conversation("slow")))
            seen = b""
            while b'"type":"route"' not in seen:
                seen += await stream.receive_some()
            assert b" 200 " in seen.partition(b"\r\n")[0] and not node.left.is_set()
        await node.left.wait()


async def test_a_client_that_goes_away_cancels_its_request() -> None:
    async with served() as (node, port):
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(request("POST", "/api/ask", conversation("endless")))
            seen = b""
            while b'"text":"hi"' not in seen:
                seen += await stream.receive_some()
            assert not node.left.is_set()
        await node.left.wait()


async def test_a_client_that_does_not_read_does_not_hold_the_end() -> None:
    async with served() as (_, port):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(request("POST", "/api/tokenize", conversation()))
        await stream.receive_some(1)
    await stream.aclose()


async def test_garbage_and_broken_off_bodies_end_nothing() -> None:
    async with served() as (_, port):
        for data in (b"\x16\x03\x01\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff", b"GET"):
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(data)
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(request("POST", "/api/ask", conversation())[:-5])
        status, _ = await exchange(port, request("POST", "/api/ask", conversation()))
    assert status == 200
