"""Hostile answers of a hub and of web servers, when a model is fetched from them.

Whatever they say, ``pull`` returns a whole file with the right checksum, or raises a LocalError in one line. Nothing
half-written has the name of a whole file, and nothing is outside the cache.
"""

import hashlib
import json
import random
import shutil
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx2
import pytest
from huggingface_hub import close_session, constants, set_client_factory
from huggingface_hub.utils._http import default_client_factory

from mycelia.node.models import pull as pull_file
from mycelia.node.models.pull import pull
from mycelia.node.models.transfer import fetch_file
from mycelia.proto.wire.errors import LocalError
from tests.fuzz.mutate import spoil_bytes

ENDPOINT, REPO, COMMIT = "http://hub.invalid", "owner/tiny-GGUF", "0123456789abcdef0123456789abcdef01234567"
_DATA = b"GGUF" + bytes(range(96))
_SHA = hashlib.sha256(_DATA).hexdigest()
_FILE = {"rfilename": "tiny-Q4_K_M.gguf", "size": len(_DATA), "blobId": "0" * 40, "lfs": {"sha256": _SHA, "size": 1}}
_LISTING: dict[str, Any] = {"id": REPO, "sha": COMMIT, "gated": False, "siblings": [_FILE, {"rfilename": "README.md"}]}
_ODD: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    2**63,
    1e999,
    "",
    "\x00",
    "../../x.gguf",
    "/x.gguf",
    "a\nb.gguf",
    "\ud800",
    [],
    {},
    "f" * 64,
)
_NAMES = (f"hf:{REPO}", f"hf:{REPO}:Q4_K_M", f"hf:{REPO}:tiny-Q4_K_M.gguf", "http://web.invalid/tiny.gguf")
_HEADERS = (
    ("Content-Length", "1"),
    ("Content-Length", "x"),
    ("Content-Range", "bytes 0-99/100"),
    ("Content-Range", "bytes 50-99/100"),
    ("Content-Range", "bytes 0-3/18446744073709551616"),
    ("Content-Range", "\xff"),
    ("Content-Type", "text/html; charset=\xff"),
    ("Content-Encoding", "gzip"),
    ("ETag", '"a"'),
    ("ETag", 'W/"a"'),
    ("Last-Modified", "x" * 3_000),
    ("Retry-After", "9" * 300),
    ("Retry-After", "-1"),
    ("X-Error-Code", "GatedRepo"),
    ("X-Error-Message", "a\tb\x80"),
    ("Location", "http://web.invalid/other.gguf"),
    ("Location", "file:///etc/passwd"),
    ("Location", "http://[::1"),
    ("Location", ""),
)
_STATUSES = (200, 206, 206, 302, 307, 401, 403, 404, 416, 429, 500, 503, 299, 599)

Response = tuple[int, list[tuple[str, str]], bytes]
Item = tuple[str, Response, list[Response]]
"""The model's name, the answer about the repository, and those to requests for files."""


class Hub:
    """The answers of one download."""

    name = "hub"
    weight = 0.3
    """A check takes 4 ms."""

    def __init__(self) -> None:
        self._folder = TemporaryDirectory(prefix="fuzz-hub-")
        self._place = Path(self._folder.name).resolve()
        self._answers: list[Response] = []
        self._listing: Response = (404, [], b"")
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(constants, "HF_HUB_CACHE", str(self._place / "hub"))
        self._patch.setattr(constants, "HF_TOKEN_PATH", str(self._place / "token"))
        self._patch.setattr(constants, "ENDPOINT", ENDPOINT)
        self._patch.setenv("XDG_CACHE_HOME", str(self._place / "cache"))
        self._patch.setattr(pull_file, "probe", lambda question, path: [])
        self._patch.setattr(pull_file, "fetch_file", partial(fetch_file, sleep=lambda seconds: None))
        transport = httpx2.MockTransport(self._answer)
        set_client_factory(lambda: httpx2.Client(transport=transport, follow_redirects=True))

    def close(self) -> None:
        self._patch.undo()
        set_client_factory(default_client_factory)
        close_session()
        self._folder.cleanup()

    def make(self, rng: random.Random) -> Item:
        listing = json.dumps(_spoiled(_LISTING, rng, rng.choice((0.0, 0.0, 0.05, 0.3)))).encode()
        if rng.random() < 0.1:
            listing = spoil_bytes(listing, rng)
        about = (rng.choice(_STATUSES) if rng.random() < 0.1 else 200, _headers(rng, 0.05), listing)
        return rng.choice(_NAMES), about, [_response(rng) for _ in range(rng.randrange(5))]

    def check(self, item: Item) -> bool:
        name, self._listing, answers = item
        self._answers = list(answers)
        path, refusal = None, ""
        try:
            path = pull(name, _Silent())
        except LocalError as exc:
            refusal = str(exc)
        assert refusal.isprintable(), "not one line"
        assert path is None or path.read_bytes().startswith(b"GGUF")
        for file in self._place.rglob("*"):
            assert file.resolve().is_relative_to(self._place), "a link out of the cache"
            if file.is_file() and not file.is_symlink() and len(file.name) == 64:
                assert hashlib.sha256(file.read_bytes()).hexdigest() == file.name, "not what its name says"
        for folder in self._place.iterdir():
            shutil.rmtree(folder)
        return path is not None

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        if request.url.path.startswith("/api/"):
            status, headers, body = self._listing
        elif self._answers:
            status, headers, body = self._answers.pop(0)
        else:
            status, headers, body = 503, [], b""
        raw = [(key.encode(), value.encode("latin-1")) for key, value in headers]
        return httpx2.Response(status, headers=raw, stream=_Body(body))


class _Body(httpx2.SyncByteStream):
    """A body whose length no header tells unless it is given."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __iter__(self) -> Any:
        yield self._data[: len(self._data) // 2]
        yield self._data[len(self._data) // 2 :]


class _Silent:
    def say(self, line: str) -> None:
        assert line.isprintable(), "one line"

    def show(self, done: int, total: int) -> None:
        assert 0 <= done <= total


def _headers(rng: random.Random, share: float) -> list[tuple[str, str]]:
    return [header for header in _HEADERS if rng.random() < share]


def _response(rng: random.Random) -> Response:
    way = rng.randrange(4)
    if way == 0:
        return 200, [("Content-Length", str(len(_DATA))), ("ETag", '"a"')], _DATA
    if way == 1:  # (to the first request for a web model, or as the rest of a file)
        start = rng.choice((0, 0, 50))
        told = [("Content-Range", f"bytes {start}-99/{len(_DATA)}"), ("ETag", '"a"')]
        return 206, told, _DATA[start : rng.choice((4, 50, 100))]
    body = rng.choice((_DATA, _DATA[:50], _DATA[50:], b"", b"<html>", b"GGUF", _DATA * 2, spoil_bytes(_DATA, rng)))
    return rng.choice(_STATUSES), _headers(rng, 0.15), body


def _spoiled(value: Any, rng: random.Random, share: float) -> Any:
    """``value`` with parts changed, removed or repeated."""
    if rng.random() < share:
        return rng.choice((*_ODD, [value] * 3))
    if isinstance(value, dict):
        return {name: _spoiled(inner, rng, share) for name, inner in value.items() if rng.random() >= share / 2}
    return [_spoiled(inner, rng, share) for inner in value] if isinstance(value, list) else value
