"""Hostile request bodies: compressed, badly declared, with odd texts. What they say in JSON, or HttpError."""

import gzip
import json
import random
import zlib
from collections.abc import Callable
from typing import Any

import msgspec
import trio
import zstandard
from starlette.requests import Request
from starlette.types import Message

from mycelia.node.serve.http.bodies import MAX_BODY_BYTES, read_json
from mycelia.node.serve.http.errors import HttpError
from mycelia.node.serve.http.inflate import MAX_ZSTD_WINDOW
from tests.fuzz.mutate import splice, spoil_bytes


class _Body(msgspec.Struct):
    text: str = ""
    more: Any = None


def _raw(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


def _streamed(data: bytes) -> bytes:
    packer = zstandard.ZstdCompressor(level=1).compressobj()
    return packer.compress(data) + packer.flush()


_Packers = dict[str, Callable[[bytes], bytes]]
_PACKERS: _Packers = {"gzip": gzip.compress, "deflate": zlib.compress, "zstd": zstandard.compress}
_ODD_PACKERS: _Packers = {"deflate": _raw, "zstd": _streamed}
_ENCODINGS = ("gzip", "deflate", "zstd", "x-gzip", "identity", "GZIP, identity", "gzip, zstd", "br", "", ",", "\xff")
_TYPES = ("application/json", "text/plain", "", "a/b+json", "multipart/form-data", "application/json; charset=\xff")
_MORE = (("origin", "null"), ("user-agent", "Mozilla/5.0"), ("referer", "\xff"), ("sec-fetch-site", "none"))
_TEXTS = (
    rb'{"text": "hello"}', rb'{"text": "\ud83d"}', rb'{"text": "\ud83d\ude00 \\ud83d \udc00"}', b"\xef\xbb\xbf{}",
    '{"text": "a"}'.encode("utf-16"), rb'{"text": "a\u0000b"}', b'{"more": [[[[]]]]}', b"", b"null",
    b'{"text": "\xed"}',
)  # fmt: skip

Item = tuple[bytes, list[tuple[str, str]]]
"""The body, and the headers."""


class Bodies:
    """The body of a POST request."""

    name = "bodies"
    weight = 0.3

    def __init__(self) -> None:
        zeros = bytes(2 * MAX_BODY_BYTES)
        self._bombs = [
            (packer(zeros), name) for packers in (_PACKERS, _ODD_PACKERS) for name, packer in packers.items()
        ]

    def make(self, rng: random.Random) -> Item:
        if rng.random() < 0.01:
            bomb, encoding = rng.choice(self._bombs)
            return bomb, [("content-type", "application/json"), ("content-encoding", encoding)]
        text = rng.choice(_TEXTS)
        way = rng.random()
        if way < 0.1:
            text = json.dumps({"text": rng.choice('a\\"é') * rng.choice((10, 100_000)), "more": "\ud83d"}).encode()
        elif way < 0.3:
            text = spoil_bytes(text, rng)
        encoding = rng.choice(_ENCODINGS)
        packers = _ODD_PACKERS if rng.random() < 0.3 else _PACKERS
        packer = packers.get(encoding if rng.random() < 0.8 else rng.choice(tuple(_PACKERS)))
        body = packer(text) if packer else text[: 1 << 20]
        if rng.random() < 0.4:
            body = spoil_bytes(body, rng)
        elif rng.random() < 0.1:
            body = splice(body, rng.choice(tuple(_PACKERS.values()))(rng.choice(_TEXTS)), rng)
        headers = [("content-type", rng.choice((*_TYPES, _TYPES[0], _TYPES[0]))), ("content-encoding", encoding)]
        return body, [*headers, *rng.sample(_MORE, rng.choice((0, 0, 1)))]

    def check(self, item: Item) -> bool:
        body, headers = item

        async def receive() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        given = [(name.encode(), value.encode("latin-1")) for name, value in headers]
        request = Request({"type": "http", "method": "POST", "path": "/", "headers": given}, receive)
        try:
            read = trio.run(read_json, request, _Body)
        except HttpError as exc:
            refused = exc.status
        else:
            read.text.encode()
            assert not any(name in ("origin", "referer") for name, _ in headers) or "json" in headers[0][1]
            return True
        assert refused in (400, 413, 415)
        return False

    def allowance(self, item: Item) -> int:
        return 6 * MAX_BODY_BYTES + MAX_ZSTD_WINDOW + 4 * len(item[0])
