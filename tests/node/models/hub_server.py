"""A hub on loopback, which speaks as much of Hugging Face's protocol as a download needs, and fails as asked."""

import hashlib
import json
import random
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from tests.node.engine.gguf_files import header, text_field

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "owner/tiny-GGUF"


def model_bytes(size: int, seed: int = 1) -> bytes:
    """A file that begins as a model of llama's kind."""
    begin = header(1, [text_field("general.architecture", "llama")])
    return begin + random.Random(seed).randbytes(size - len(begin))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass
class Hub:
    """Its repository and its faults; may be changed while it runs."""

    files: dict[str, bytes]
    commit: str = COMMIT
    gated: bool = False
    """Wants the token ``good`` for files."""
    cuts: list[tuple[int, bool]] = field(default_factory=list)
    """The ends of connections: for each following answer with a file the bytes after which it ends, and whether it is
    reset."""
    statuses: list[int] = field(default_factory=list)
    """Answers to the following requests for files."""
    knows_ranges: bool = True
    is_sign_in: bool = False
    """Everything is a web page, as behind a captive portal."""
    is_small: bool = False
    """Files are in git itself, without large file storage: their hashes are git's."""
    listing: bytes = b""
    """The answer about the repository; empty: the true one."""
    listing_headers: dict[str, str] = field(default_factory=dict)
    wrong: bytes = b""
    """What is sent in the place of each file."""
    etag: str = ""
    """The header ETag of files asked for by plain URLs; empty: none."""
    sent: int = 0
    """Bytes of files."""
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Path and Authorization of each."""
    endpoint: str = ""
    on_request: Callable[[str], None] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def storage(self) -> str:
        """Where the files themselves are: another origin, as hubs have it."""
        return self.endpoint.replace("127.0.0.1", "localhost")

    def info(self) -> dict[str, object]:
        siblings = [
            {
                "rfilename": name,
                "size": len(data),
                "blobId": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(),
                "lfs": None if self.is_small else {"sha256": sha256(data), "size": len(data), "pointerSize": 130},
            }
            for name, data in self.files.items()
        ]
        return {"id": REPO, "sha": self.commit, "gated": "manual" if self.gated else False, "siblings": siblings}

    def next_of(self, items: list[object]) -> object | None:
        with self._lock:
            return items.pop(0) if items else None

    def count(self, num_bytes: int) -> None:
        with self._lock:
            self.sent += num_bytes


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None: ...

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        hub.requests.append((path, self.headers.get("Authorization", "")))
        if hub.on_request is not None:
            hub.on_request(path)
        if hub.is_sign_in:
            self._send(200, b"<!DOCTYPE html><title>Sign in</title>", {"Content-Type": "text/html"})
        elif path.startswith(f"/api/models/{REPO}/revision/"):
            if path.rpartition("/")[2] not in ("main", hub.commit):
                self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            else:
                headers = {"Content-Type": "application/json"} | hub.listing_headers
                self._send(200, hub.listing or json.dumps(hub.info()).encode(), headers)
        elif path.startswith("/api/"):
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        else:
            self._answer_file(path, with_body)

    def _answer_file(self, path: str, with_body: bool) -> None:
        hub = self.hub
        status = hub.next_of(hub.statuses)  # type: ignore[arg-type]
        found = re.fullmatch(rf"(?:/{REPO}/resolve/[^/]+|/cdn|/web)/(.+)", path)
        data = hub.files.get(found[1]) if found else None
        if isinstance(status, int):
            self._send(status, b"no", {})
        elif data is None or found is None:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        elif hub.gated and path.startswith(f"/{REPO}") and self.headers.get("Authorization") != "Bearer good":
            self._send(403, b"", {"X-Error-Code": "GatedRepo"})
        elif path.startswith(f"/{REPO}"):
            linked = {
                "X-Repo-Commit": hub.commit,
                "X-Linked-Etag": f'"{sha256(data)}"',
                "X-Linked-Size": str(len(data)),
            }
            if with_body:
                self._send(302, b"", linked | {"Location": f"{hub.storage}/cdn/{found[1]}"})
            else:  # (as a hub says it of a file at another host, where huggingface_hub does not look)
                self._send(200, data, linked, with_body)
        else:
            self._send_file(hub.wrong or data, with_body)

    def _send_file(self, data: bytes, with_body: bool) -> None:
        hub, headers = self.hub, {"ETag": f'"{self.hub.etag}"'} if self.hub.etag else {}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        version = self.headers.get("If-Range")
        if asked and hub.knows_ranges and version in (None, headers.get("ETag")):
            first, last = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            self._send(206, data[first : last + 1], headers, with_body, is_file=not asked[2])
        else:
            self._send(200, data, headers, with_body, is_file=not asked or not asked[2])

    def _send(
        self, status: int, body: bytes, headers: dict[str, str], with_body: bool = True, is_file: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if not with_body:
            return
        cut = self.hub.next_of(self.hub.cuts) if is_file else None  # type: ignore[arg-type]
        if isinstance(cut, tuple) and cut[0] < len(body):
            self._write(body[: cut[0]], is_file)
            self._end(is_reset=cut[1])
        else:
            self._write(body, is_file)

    def _write(self, body: bytes, is_file: bool) -> None:
        if is_file:
            self.hub.count(len(body))  # (before the client can have all of it)
        try:
            self.wfile.write(body)
        except OSError:
            self.close_connection = True  # (the client has gone)

    def _end(self, is_reset: bool) -> None:
        self.close_connection = True
        if is_reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()


@contextmanager
def serving(hub: Hub) -> Iterator[str]:
    """Serves on loopback; gives the URL."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        hub.endpoint = f"http://127.0.0.1:{server.server_port}"
        try:
            yield hub.endpoint
        finally:
            server.shutdown()
            thread.join()
