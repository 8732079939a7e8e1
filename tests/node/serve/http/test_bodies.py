"""Bodies as clients send them: compressed, badly declared, with half a character. And what no web page may send."""

import gzip
import json
import zlib
from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
import pytest
import trio
import zstandard
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message

from mycelia.node.errors import BusyError
from mycelia.node.serve.http.bodies import MAX_BODY_BYTES, read_json, refusing
from mycelia.node.serve.http.errors import HttpError
from mycelia.node.serve.http.inflate import inflated
from mycelia.proto.wire.errors import LocalError

TEXT = json.dumps({"text": "hello " * 100}).encode()


class Part(msgspec.Struct):
    kind: Literal["prose"]


class Body(msgspec.Struct):
    text: str
    kind: Annotated[Literal["prose", "verse"] | None, msgspec.Meta(title="Kind")] = None
    parts: list[Part] | int = 0
    named: dict[str, Literal[1, 2, "no"]] | None = None


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


def streamed_zstd(data: bytes) -> bytes:
    """Without the size in its head."""
    packer = zstandard.ZstdCompressor(level=19).compressobj()
    return packer.compress(data) + packer.flush()


PACKED = {
    "gzip": gzip.compress(TEXT),
    "x-gzip": gzip.compress(TEXT),
    "deflate": zlib.compress(TEXT),
    "Deflate, identity": raw_deflate(TEXT),
    "zstd": zstandard.compress(TEXT),
    " ZSTD ": streamed_zstd(TEXT),
    "identity": TEXT,
}


def read(body: bytes, headers: Mapping[str, str]) -> Body:
    sent: list[Message] = [{"type": "http.request", "body": body[:9], "more_body": True}]
    sent.append({"type": "http.request", "body": body[9:], "more_body": False})

    async def receive() -> Message:
        return sent.pop(0)

    given = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    request = Request({"type": "http", "method": "POST", "path": "/", "headers": given}, receive)
    return trio.run(read_json, request, Body)


def refusal(body: bytes, headers: Mapping[str, str]) -> HttpError:
    with pytest.raises(HttpError) as caught:
        read(body, headers)
    return caught.value


JSON = {"content-type": "application/json"}


@pytest.mark.parametrize("encoding", PACKED)
def test_a_compressed_body_is_read(encoding: str) -> None:
    assert read(PACKED[encoding], JSON | {"content-encoding": encoding}).text.startswith("hello hello")


@pytest.mark.parametrize("encoding", ["br", "gzip, zstd", "gzip, gzip", "a" * 5_000, "\xff"])
def test_another_encoding_is_refused_with_those_that_are_read(encoding: str) -> None:
    error = refusal(b"x", JSON | {"content-encoding": encoding})
    assert error.status == 415 and error.headers == {"accept-encoding": "gzip, deflate, zstd"}
    assert "gzip, deflate, zstd" in error.message and len(error.message) < 200


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd"])
def test_a_bomb_is_refused_before_it_is_large(encoding: str) -> None:
    zeros = bytes(64 << 20)
    bombs = {
        "gzip": [gzip.compress(zeros)],
        "deflate": [zlib.compress(zeros), raw_deflate(zeros)],
        "zstd": [zstandard.compress(zeros), streamed_zstd(zeros)],
    }
    for bomb in bombs[encoding]:
        assert len(bomb) < MAX_BODY_BYTES
        error = refusal(bomb, JSON | {"content-encoding": encoding})
        assert error.status in (400, 413)
        assert "more than" in error.message or "too much memory" in error.message


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd"])
def test_damaged_bodies_are_refused(encoding: str) -> None:
    packed = PACKED[encoding]
    for damaged in (packed[:-3], packed[: len(packed) // 2], b"plain", packed[:4] + b"\xff" * 20, b""):
        assert refusal(damaged, JSON | {"content-encoding": encoding}).status == 400


def test_a_body_of_the_limit_is_inflated_and_one_more_byte_is_not() -> None:
    for pack, name in ((gzip.compress, "gzip"), (zlib.compress, "deflate"), (zstandard.compress, "zstd")):
        assert len(inflated(pack(b"a" * 1_000), name, 1_000)) == 1_000
        with pytest.raises(HttpError, match="more than 999"):
            inflated(pack(b"a" * 1_000), name, 999)


@pytest.mark.parametrize("kind", [None, "text/plain", "text/plain; charset=utf-8", "application/x-www-form-urlencoded"])
def test_programs_need_not_declare_json_and_pages_must(kind: str | None) -> None:
    headers = {} if kind is None else {"content-type": kind}
    assert read(b'{"text": "a"}', headers | {"user-agent": "curl/8.5"}).text == "a"
    for of_page in (
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:7118"},
        {"sec-fetch-site": "same-origin"},
        {"sec-fetch-mode": "no-cors"},
        {"referer": "https://evil.example/"},
        {"cookie": "a=b"},
        {"user-agent": "Mozilla/5.0 (X11; Linux x86_64) Firefox/1"},
    ):
        assert refusal(b'{"text": "a"}', headers | of_page).status == 415


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=utf-8", "text/json", "a/vnd.b+json"])
def test_declared_json_is_read_from_anybody(kind: str) -> None:
    assert read(b'{"text": "a"}', {"content-type": kind, "origin": "https://a.example"}).text == "a"


@pytest.mark.parametrize(
    "kind", ["image/png", "multipart/form-data; boundary=x", "text/html", "json", "application/jsonx"]
)
def test_other_types_are_refused(kind: str) -> None:
    assert refusal(b'{"text": "a"}', {"content-type": kind}).status == 415


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'\xef\xbb\xbf{"text": "a"}', "a"),
        (rb'{"text": "a\u0000b"}', "a\0b"),
        (rb'{"text": "a\ud83d"}', "a\ufffd"),
        (rb'{"text": "\uDE00b"}', "\ufffdb"),
        (rb'{"text": "\ud83d\u0041"}', "\ufffdA"),
        (rb'{"text": "\ud83d\ud83d\ude00"}', "\ufffd\U0001f600"),
        (rb'{"text": "\\ud83d \ud83d"}', "\\ud83d \ufffd"),
        (rb'{"text": "\\\ud83d"}', "\\\ufffd"),
    ],
)
def test_odd_texts_are_read(body: bytes, text: str) -> None:
    assert read(body, JSON).text == text


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"text": "a\0b"}', "not valid"),
        (b'{"text": "\xed\xa0\x80"}', "UTF-8"),
        ('{"text": "a"}'.encode("utf-16"), "UTF-16"),
        (rb'{"text": 5, "more": "\ud83d"}', "Expected `str`"),
        (b'\xef\xbb\xbf\xef\xbb\xbf{"text": "a"}', "not valid"),
        (b'{"text": "a", "kind": "poem"}', "'poem' - at `$.kind`: it must be one of prose, verse"),
        (
            b'{"text": "a", "parts": [{"kind": "prose"}, {"kind": "verse"}]}',
            "$.parts[1].kind`: it must be one of prose",
        ),
        (b'{"text": "a", "named": {"x": "y"}}', "it must be one of 1, 2, no"),
    ],
)
def test_what_is_no_json_is_refused_with_the_reason(body: bytes, says: str) -> None:
    error = refusal(body, JSON)
    assert error.status == 400 and says in error.message


@pytest.mark.parametrize(
    ("raised", "status", "seconds"),
    [
        (HttpError(404, "no such thing"), 404, None),
        (HttpError(503, "full"), 503, "1"),
        (LocalError("too long"), 400, None),
        (BusyError("the queue is full", 2.5), 429, "3"),
        (BusyError("the queue is full"), 429, "1"),
    ],
)
def test_what_a_handler_raises_for_a_clients_mistake_is_a_response(
    raised: Exception, status: int, seconds: str | None
) -> None:
    @refusing(lambda exc: Response(exc.message, exc.status))
    async def handle(request: Request) -> Response:
        raise raised

    response = trio.run(handle, Request({"type": "http"}))
    assert response.status_code == status and response.headers.get("retry-after") == seconds


TOO_LONG = [(b"content-type", b"application/json"), (b"content-length", b"9999999999")]


def test_a_body_that_is_declared_too_long_is_not_waited_for() -> None:
    request = Request({"type": "http", "method": "POST", "headers": TOO_LONG}, no_body)
    with pytest.raises(HttpError) as caught:
        trio.run(read_json, request, Body)
    assert caught.value.status == 413


async def no_body() -> Message:
    raise AssertionError("the body is read")
