"""Hostile bytes for a node's HTTP. Any input gets complete responses and the end of the connection. No response is an
error inside the node, and nothing is left running.

The bytes come over a socket pair to the whole gateway, with a node behind it that does nothing.
"""

import gzip
import random
import re
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any

import h11
import msgspec
import numpy as np
import trio
from starlette.types import ASGIApp

from mycelia.node.serve.api import Embedded
from mycelia.node.serve.api_keys import unnamed
from mycelia.node.serve.gateway import Access, make_app
from mycelia.node.serve.http.http1 import MAX_HEAD_BYTES, HttpConnection
from mycelia.node.serve.http.places import HttpPlaces
from mycelia.node.views.state import ModelRow, NodeState, TreeRowView
from mycelia.proto.wire.messages import Answered, Ask, Conversation, EntryFrame, Text, Usage
from tests.fuzz.mutate import splice, spoil_bytes
from tests.node.serve.unobserved import Unobserved

KEY = "a key of sixteen or more"
_USAGE = Usage(prompt_tokens=1, cached_tokens=0, completion_tokens=1, queue_ms=0, prefill_ms=0, decode_ms=0)
_BODY = b'{"messages":[{"role":"user","content":"hello"}]}'
_EVIL = b"https://evil.example"
_PRIVATE = b"Access-Control-Request-Private-Network: true"


class _State(msgspec.Struct):
    model: str = "m"
    context_tokens: int = 1
    slots: int = 1


class _Node(Unobserved):
    """A node that answers at once."""

    model = "m"
    aliases: Mapping[str, str] = MappingProxyType({"alias": "m"})

    @asynccontextmanager
    async def ask(
        self, ask: Ask, deadline_s: float | None = None, client: bytes = b""
    ) -> AsyncIterator[AsyncIterator[EntryFrame]]:
        send, receive = trio.open_memory_channel[EntryFrame](2)
        send.send_nowait(Text(text="hi"))
        send.send_nowait(Answered(served_by=b"\x01" * 38, reason="stop", usage=_USAGE, ttft_ms=0, resumed=0))
        send.close()
        yield receive

    async def models(self) -> list[ModelRow]:
        return [ModelRow("m", 1, 4_096)]

    def state(self) -> NodeState:
        return _State()  # type: ignore[return-value]

    async def tree(self, client: bytes = b"") -> list[TreeRowView]:
        return []

    async def tokenize(self, conversation: Conversation, client: bytes = b"", model: str = "") -> list[int]:
        return [1, 2]

    async def embed(self, texts: Sequence[str | Sequence[int]], client: bytes = b"", model: str = "") -> Embedded:
        return Embedded([], 0)

    async def rank(self, query: str, documents: Sequence[str], client: bytes = b"", model: str = "") -> Embedded:
        return Embedded([np.zeros(1, np.float32) for _ in documents], 0)


def _request(method: bytes, path: bytes, body: bytes = b"", *headers: bytes) -> bytes:
    given = [b"Host: localhost", *headers]
    if body:
        given += [b"Content-Type: application/json", b"Content-Length: %d" % len(body)]
    return b"%s %s HTTP/1.1\r\n%s\r\n\r\n%s" % (method, path, b"\r\n".join(given), body)


def _chunked(body: bytes, size: int, trailer: bytes = b"") -> bytes:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    data = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n" + trailer + b"\r\n"
    head = _request(b"POST", b"/api/ask", b"", b"Content-Type: application/json", b"Transfer-Encoding: chunked")
    return head + data


_PATHS = (
    b"/ /api/state /api/models /api/tree /api/requests /api/links /metrics /v1/models /v1/models/m /openapi.json"
    b" /health /v1/health/ /props /version //v1//models/ /models /v1/v1/models /v1/models/alias /openai/v1/models"
    b" /nothing /api/trace/abcdef /api/trace/%00%ff%0d%0a /api/state/ //x/ /v1/%2e%2e/m?a=b&%c0"
)
_CORPUS = [
    *(_request(b"GET", path) for path in _PATHS.split()),
    _request(b"GET", b"/api/state", b"", b"Authorization: Bearer " + KEY.encode()),
    _request(b"GET", b"/api/state", b"", b"Origin: " + _EVIL, b"Sec-Fetch-Site: cross-site"),
    _request(b"OPTIONS", b"/v1/models", b"", b"Origin: " + _EVIL, b"Access-Control-Request-Method: POST"),
    _request(b"HEAD", b"/"),
    _request(b"POST", b"/api/ask", _BODY),
    _request(b"POST", b"/api/ask", _BODY, b"Expect: 100-continue"),
    _request(b"POST", b"/api/tokenize", _BODY),
    _request(b"POST", b"/v1/chat/completions", _BODY),
    _request(b"POST", b"/v1/chat/completions", b'{"stream":true,' + _BODY[1:]),
    _request(b"POST", b"/v1/completions", b'{"prompt":"hello"}'),
    _request(b"POST", b"/v1/embeddings", b'{"input":["a"]}'),
    _request(b"POST", b"/v2/rerank", b'{"query":"q","documents":["a",{"text":"b"}],"return_documents":true}'),
    _request(b"POST", b"/chat/completions", gzip.compress(_BODY), b"Content-Encoding: gzip"),
    _request(b"POST", b"/v1/completions", b'\xef\xbb\xbf{"prompt":"\\ud83d","model":"alias"}'),
    _request(b"OPTIONS", b"/v1/models", b"", b"Origin: " + _EVIL, b"Access-Control-Request-Method: POST", _PRIVATE),
    _chunked(_BODY, 7),
    _chunked(_BODY, 1, b"Checksum: abc\r\nContent-Length: 5\r\n"),
    b"GET / HTTP/1.0\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
]
_LINES = (
    b"Content-Length: 5",
    b"Content-Length: 99999999999999999999",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: gzip",
    b"Connection: close",
    b"Connection: upgrade",
    b"Upgrade: h2c",
    b"Content-Encoding: gzip",
    b"Content-Encoding: zstd",
    b"Content-Type: text/plain",
    b"X-Api-Key: \xff",
    b"Api-Key: " + KEY.encode(),
    b"Host: node.example",
    b"Upgrade: websocket",
    b"Host: evil.example",
    b"Host: \xff",
    b"Host: [::1]:1",
    b"Origin: null",
    b"Origin: \xff://",
    b"Authorization: Bearer \xff",
    b"Content-Type: application/json; charset=\xff",
    b"Expect: 100-continue",
    b" folded",
    b"x" * 5_000 + b": y",
)

_STATUS_LINE = re.compile(rb"HTTP/1\.1 [1-5][0-9]{2} \r\n")

Item = tuple[int, bytes, int]
"""The application, the bytes, and how many of them come at once."""


class Http:
    """The bytes of one connection."""

    name = "http"
    weight = 0.05
    """A check takes 5 ms."""

    def __init__(self) -> None:
        of_pages = [Access(origins=(_EVIL.decode(),)), Access(origins=("*",))]
        accesses = [Access(), Access(keys=(unnamed(KEY),)), *of_pages, Access(hosts=("node.example",))]
        self._apps = [make_app(_Node(), access) for access in accesses]

    def make(self, rng: random.Random) -> Item:
        data = b"".join(rng.choice(_CORPUS) for _ in range(rng.choice((1, 1, 2, 5))))
        way = rng.randrange(100)
        if way < 40:
            data = spoil_bytes(data, rng)
        elif way < 60:
            lines = data.split(b"\r\n")
            for _ in range(rng.randrange(1, 4)):
                lines.insert(rng.randrange(1, len(lines)), rng.choice(_LINES))
            data = b"\r\n".join(lines)
        elif way < 70:
            data = splice(data, rng.choice(_CORPUS), rng)
        elif way < 72:
            data = data[: data.index(b"\r\n") + 2] + b"a:\r\n" * rng.choice((50, 20_000))
        elif way < 74:
            size, trailer = rng.choice((1, 1, 16)), b"a:\r\n" * rng.choice((0, 100, 3_000))
            data = _chunked(b" " * rng.choice((3_000, 5_000)) + _BODY, size, trailer) + data
        elif way < 76:
            data = data * rng.choice((10, 40))
        elif way < 78:
            data = rng.randbytes(rng.randrange(1, 300))
        return rng.randrange(len(self._apps)), data, rng.choice((1 << 20, 1 << 20, 1_000, 17))

    def check(self, item: Item) -> bool:
        app, data, size = item
        responses = trio.run(_exchange, self._apps[app], data, size)
        assert 500 not in responses, "an error inside the node"
        return any(status < 400 for status in responses)

    def allowance(self, item: Item) -> int:
        return (4 << 20) + 8 * MAX_HEAD_BYTES


async def _exchange(app: ASGIApp, data: bytes, size: int) -> list[int]:
    """The statuses of all responses to ``data``, sent ``size`` bytes at a time."""
    ours, theirs = (trio.SocketStream(trio.socket.from_stdlib_socket(end)) for end in socket.socketpair())
    places = HttpPlaces(1)
    place = places.enter("", lambda: None)
    assert place is not None
    answer = bytearray()
    with trio.fail_after(20):
        async with ours, trio.open_nursery() as turning:
            turning.start_soon(places.turns.run)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(HttpConnection(app, theirs, place).serve)
                nursery.start_soon(_send, ours, data, size)
                async for piece in ours:
                    answer += piece
            turning.cancel_scope.cancel()
    return _statuses(bytes(answer))


async def _send(stream: trio.SocketStream, data: bytes, size: int) -> None:
    try:
        for at in range(0, len(data), size):
            await stream.send_all(data[at : at + size])
        await stream.send_eof()
    except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # (the server refused the request before its end)


def _statuses(answer: bytes) -> list[int]:
    """Raises h11's error if the bytes are no sequence of responses. The last one may be cut off, as its request was."""
    statuses: list[int] = []
    while answer:
        # (the method is not known here, and a response to HEAD has a length but no body)
        head, _, answer = answer.partition(b"\r\n\r\n")
        client: Any = h11.Connection(h11.CLIENT)
        client.send(h11.Request(method="HEAD", target="/", headers=[("host", "x")]))
        client.send(h11.EndOfMessage())
        client.receive_data(head + b"\r\n\r\n")
        response = client.next_event()
        assert isinstance(response, h11.Response | h11.InformationalResponse), response
        statuses.append(response.status_code)
        found = _STATUS_LINE.search(answer)  # (a refusal may quote a request line)
        answer = answer[found.start() :] if found else b""
    return statuses
