"""One HTTP/1.1 connection: h11 between a socket and an ASGI application, in a single task.

This server is our own for its bounds: strangers use a node's HTTP, and a layer below the application has to limit how
much of its memory and event loop they take. No server for trio has these limits. A new connection ends the one that has
waited longest (``places.py``). Parsing is done in turns and a few kilobytes at a time (``turns.py``). The pieces of a
body, the lines of a head and the bytes read ahead of an answer are bounded, and a client that reads nothing is dropped.
Speed is no reason: the first event of an answer comes 0.3 to 0.5 ms sooner than behind Hypercorn. See
``docs/decisions/http-loop.md``.

The application reads and writes the socket itself, in the task that calls ``receive`` and ``send``.
"""

import math
import re
import ssl
import time
from collections.abc import Sequence
from contextlib import suppress
from email.utils import formatdate
from functools import lru_cache
from urllib.parse import unquote

import h11
import structlog
import trio
from starlette.types import ASGIApp, Message, Scope

from mycelia.node.serve.http import h11_fixes
from mycelia.node.serve.http.client_socket import ClientSocket
from mycelia.node.serve.http.errors import FULL, HttpError, refusal_body
from mycelia.node.serve.http.places import PLACE, HttpPlace
from mycelia.node.serve.http.tls import NoTlsError

log = structlog.get_logger()
h11_fixes.apply()

IDLE_DEADLINE_S = 120.0
"""From the end of an answer to the first byte of the next request: clients keep their connections for about a minute.
``places.py`` ends idle connections when others need their places."""
HEAD_DEADLINE_S = 30.0
"""From there to the end of the request's head. Also the limit of a TLS handshake."""
BODY_DEADLINE_S = 30.0
"""From the head's first byte to the end of the body."""
MAX_HEAD_BYTES = 65_536
"""Also the limit of bytes that wait behind a request being answered. One read may exceed either."""
MAX_HEAD_LINES = 128
"""Lines of a head or a trailer; one feed of h11 may exceed it. 16,000 empty lines take 25 ms to parse."""
MAX_PIECES = 4_096
"""Chunks of a body: each costs h11 as much time as parsing a kilobyte of JSON."""
MAX_REST_PIECES = 64
"""Pieces read of a body that the application does not want, and of any body in one turn: half a millisecond."""

_FEED_BYTES = 4_096
"""Bytes given to h11 at once: 2 ms if the lines are of the shortest."""
_MAX_MESSAGE_CHARS = 256
_GONE: Message = {"type": "http.disconnect"}
_FRAMING = frozenset({b"connection", b"content-length", b"transfer-encoding"})
"""Headers by which h11 knows where a body ends, and whether the connection does."""
_HEADER = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+: [^\x00-\x08\x0a-\x1f\x7f]*")


class HttpConnection:
    """Call ``serve`` once."""

    def __init__(
        self, app: ASGIApp, stream: trio.SocketStream, place: HttpPlace, context: ssl.SSLContext | None = None
    ) -> None:
        """context: the connection is encrypted."""
        self._app = app
        self._socket = ClientSocket(stream, context)
        self._place = place
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._ahead = bytearray()
        """Bytes read from the socket that h11 has not got yet."""
        self._body = bytearray()
        """Parsed bytes of a body that the application has not received yet."""
        self._body_due = math.inf
        self._num_pieces = 0
        self._headers: list[tuple[bytes, bytes]] = []
        """Those of the request."""
        self._has_length = False
        """The head gives the body's length, so a feed is one piece."""
        self._head = b""
        """The head of the response. It is sent together with the first bytes of the body."""
        self._has_body = True
        self._is_resting = False
        """Whether nothing of a next request has come after an answer."""

    async def serve(self) -> None:
        """Answer requests until the client or an error ends the connection, and close it."""
        try:
            await self._shake_hands()
            while (request := await self._next_request()) is not None:
                await self._answer(request)
                await self._socket.write(b"")
                self._take_rest()
                self._place.rest()
                if self._is_gone or self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                    break
                self._http.start_next_cycle()
                self._is_resting = not self.num_ahead
            await self._socket.linger()
        except trio.Cancelled:
            if not self._place.has_place:
                self._say_full()
            raise
        finally:
            self._socket.close()

    def _say_full(self) -> None:
        """Another connection got this one's place: a request that may be under way is answered before the end."""
        if not self._is_resting and self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._socket.write_last(FULL)

    @property
    def _is_gone(self) -> bool:
        return self._socket.is_gone

    async def _shake_hands(self) -> None:
        if not self._socket.is_encrypted:
            return
        with trio.move_on_after(HEAD_DEADLINE_S) as deadline:
            try:
                self._ahead += await self._socket.shake_hands(self._place.turn)
            except NoTlsError as exc:
                await self._refuse(400, str(exc))
                self._socket.gone.set()
        if deadline.cancelled_caught:
            self._socket.gone.set()

    # --- requests ---------------------------------------------------------------------------------------------------

    async def _next_request(self) -> h11.Request | None:
        """None: the client is gone, or sent no request; in that case it got a refusal."""
        self._has_body, self._has_length, self._num_pieces = True, False, 0
        is_behind = self.num_ahead > 0
        with trio.move_on_after(IDLE_DEADLINE_S) as deadline:
            if not is_behind:
                self._ahead += await self._socket.read()
                self._is_resting = False
                if not self._ahead:
                    return None
            began = trio.current_time()
            self._body_due = began + BODY_DEADLINE_S
            try:
                if is_behind:  # (no wait was needed: other connections get their turn)
                    await trio.lowlevel.checkpoint()
                    await self._place.turn()
                while (event := self._http.next_event()) is h11.NEED_DATA:
                    if not self._ahead:  # (most heads come whole, and need no deadline of their own)
                        deadline.deadline = began + HEAD_DEADLINE_S
                    await self._feed()
            except h11.RemoteProtocolError as exc:
                await self._refuse(exc.error_status_hint, str(exc))
                return None
            if not isinstance(event, h11.Request):
                return None
            if event.http_version not in (b"1.0", b"1.1"):
                await self._refuse(505, "this server speaks HTTP/1.0 and HTTP/1.1")
                return None
            self._headers = list(event.headers)
            names = {name for name, _ in self._headers}
            if {b"content-length", b"transfer-encoding"} <= names:
                await self._refuse(400, "two lengths: Content-Length and Transfer-Encoding")  # (a proxy may use one)
                return None
            self._has_length = b"content-length" in names
            return event
        return None

    async def _feed(self) -> None:
        """Gives h11 a part of the bytes read ahead, or of the next ones; at the end of the connection, the end. Loses
        nothing when cancelled. Raises RemoteProtocolError."""
        if not self._ahead:
            self._ahead += await self._socket.read()
        if not self._has_length:
            await self._place.turn()
        self._feed_ahead()

    def _feed_ahead(self) -> None:
        """Raises RemoteProtocolError."""
        if self._http.trailing_data[0].count(b"\n") > MAX_HEAD_LINES:
            raise h11.RemoteProtocolError(f"more than {MAX_HEAD_LINES} lines", error_status_hint=431)
        self._http.receive_data(bytes(self._ahead[:_FEED_BYTES]))
        del self._ahead[:_FEED_BYTES]

    def _take_rest(self) -> None:
        """Skips the part of an unwanted body that has come already: the next request is behind it."""
        with suppress(h11.RemoteProtocolError):
            for _ in range(MAX_REST_PIECES):
                if self._http.their_state is not h11.SEND_BODY:
                    return
                event = self._http.next_event()
                if event is h11.NEED_DATA:
                    if not self._ahead:
                        return
                    self._feed_ahead()

    async def _refuse(self, status: int, message: str) -> None:
        """Sends a refusal if no answer has begun. The connection ends after it."""
        body = refusal_body(status, message[:_MAX_MESSAGE_CHARS])  # (h11 spells the whole line)
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        with suppress(h11.LocalProtocolError):  # (an answer has begun)
            data = self._http.send(h11.Response(status_code=status, headers=headers)) or b""
            if self._has_body:
                data += self._http.send(h11.Data(data=body)) or b""
            await self._socket.write(data)

    # --- one request ------------------------------------------------------------------------------------------------

    async def _answer(self, request: h11.Request) -> None:
        self._head = b""
        self._has_body = request.method != b"HEAD"
        failure = None
        try:
            await self._app(self._scope_of(request), self._receive, self._send)
        except Exception as exc:  # noqa: BLE001  the edge of the application
            failure = exc
        # (if the application's own handler has sent a response, it has also logged the error)
        if self._http.our_state is h11.ERROR or not (self._is_answered or self._is_gone):
            log.error("api_answer_broke", exc_info=failure)
            await self._refuse(500, "an error inside the node; see its log")

    @property
    def _is_answered(self) -> bool:
        return self._http.our_state not in (h11.SEND_RESPONSE, h11.SEND_BODY)

    def _scope_of(self, request: h11.Request) -> Scope:
        raw_path, _, query = request.target.partition(b"?")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": request.http_version.decode("ascii"),
            "scheme": "https" if self._socket.is_encrypted else "http",
            "method": request.method.decode("ascii"),
            "path": unquote(raw_path.decode("ascii")),
            "raw_path": raw_path,
            "root_path": "",
            "query_string": query,
            "headers": self._headers,
            PLACE: self._place,
        }

    async def _receive(self) -> Message:
        """The next piece of the body. After the end of the body, or of the answer, the disconnect of the client; a
        client that closes only its own direction counts as disconnected."""
        if self._is_gone or self._is_answered:
            return _GONE
        if self._http.their_state is not h11.SEND_BODY:
            await self._wait_gone()
            return _GONE
        try:
            is_over = await self._read_body()
        except h11.RemoteProtocolError:
            return _GONE
        body, self._body = bytes(self._body), bytearray()
        return {"type": "http.request", "body": body, "more_body": not is_over}

    async def _read_body(self) -> bool:
        """Waits for a piece of the body, and takes all that came with it. True: it was the last. Loses nothing when
        cancelled. Raises RemoteProtocolError, and HttpError for a body that is late or has too many pieces."""
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                if self._body and not self._ahead:
                    return False
                if self._http.they_are_waiting_for_100_continue:
                    await self._socket.write(self._http.send(h11.InformationalResponse(status_code=100, headers=[])))
                if self._ahead:
                    await self._feed()
                    continue
                with trio.move_on_at(self._body_due) as deadline:
                    await self._feed()
                if deadline.cancelled_caught:
                    raise HttpError(408, f"the body did not arrive within {BODY_DEADLINE_S:.0f} s")
            elif isinstance(event, h11.Data):
                self._body += event.data
                self._num_pieces += event.chunk_start
                if self._num_pieces > MAX_PIECES:
                    raise HttpError(400, f"the body has more than {MAX_PIECES} chunks")
                if event.chunk_start and self._num_pieces % MAX_REST_PIECES == 0:
                    await self._place.turn()
            else:
                assert isinstance(event, h11.EndOfMessage), "it pauses only behind a request"
                return True

    @property
    def num_ahead(self) -> int:
        """Bytes that came behind the request being answered, or that are not parsed yet."""
        return len(self._ahead) + len(self._http.trailing_data[0])

    async def _wait_gone(self) -> None:
        while not self._is_gone:
            if self.num_ahead > MAX_HEAD_BYTES:  # (it sends too much: only writing will show its end)
                await self._socket.gone.wait()
                return
            self._ahead += await self._socket.read()

    async def _send(self, message: Message) -> None:
        """Sends nothing to a client that is gone, nor after the end of the answer."""
        if self._is_gone or self._is_answered:
            return
        if message["type"] == "http.response.start":
            headers = [(b"date", _date()), *message.get("headers", ())]
            is_last = not self._place.is_admitted  # (each refusal must cost the client more than a line)
            if message["status"] >= 400:
                self._take_rest()
                is_last = is_last or self._http.their_state is h11.SEND_BODY  # (nothing will read the rest of the body)
            if is_last:
                headers.append((b"connection", b"close"))
            self._head = self._head_of(message["status"], headers)
            return
        data, self._head = self._head, b""
        body = message.get("body", b"")
        if body and self._has_body:
            data += self._http.send(h11.Data(data=body)) or b""
        if not message.get("more_body", False):
            data += self._http.send(h11.EndOfMessage()) or b""
        await self._socket.write(data)

    def _head_of(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
        """The head of a response. h11 checks each header three times, so it gets only those that concern it, and the
        others come behind its own. Raises LocalProtocolError."""
        framing, others = list[tuple[bytes, bytes]](), list[bytes]()
        for name, value in headers:
            if name.lower() in _FRAMING:
                framing.append((name, value))
                continue
            others.append(b"%b: %b" % (name, value))
            if not _HEADER.fullmatch(others[-1]):
                raise h11.LocalProtocolError(f"not a header: {others[-1]!r}")
        head = self._http.send(h11.Response(status_code=status, headers=framing)) or b""
        return b"\r\n".join((head.removesuffix(b"\r\n\r\n"), *others, b"", b""))


def _date() -> bytes:
    return _spelled_date(int(time.time()))


@lru_cache(maxsize=1)
def _spelled_date(at_s: int) -> bytes:
    return formatdate(at_s, usegmt=True).encode()
