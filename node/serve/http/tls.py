"""TLS of one HTTP connection: a state machine between encrypted and plain bytes, without I/O.

It encrypts at once what is to be sent, so that a task cancelled while it sends loses nothing (``HttpConnection``).
trio's own TLS stream gives no such promise.
"""

import ssl
from contextlib import suppress
from pathlib import Path

from mycelia.proto.wire.errors import LocalError

_READ_BYTES = 65_536
_HANDSHAKE = 0x16
"""The first byte of every TLS connection."""


class TlsError(Exception):
    """The other end does not speak TLS as this end can."""


class NoTlsError(TlsError):
    """The other end does not speak TLS at all."""


class Tls:
    """Call ``received`` with all bytes that come, and send what ``to_send`` returns after each call."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self.is_ready = False
        """Whether the handshake is done, so that ``sealed`` may be called."""
        self._has_begun = False
        self.is_over = False
        """Whether the other end has said that it sends nothing more."""

    def received(self, data: bytes) -> bytes:
        """The plain bytes that came with ``data``. Raises TlsError."""
        has_begun, self._has_begun = self._has_begun, True
        if not has_begun and data[0] != _HANDSHAKE:
            raise NoTlsError("this node speaks HTTPS: use https:// in the URL")
        self._incoming.write(data)
        try:
            if not self.is_ready:
                self._tls.do_handshake()
                self.is_ready = True
                return self._read()
            plain = self._read()
        except ssl.SSLWantReadError:
            return b""
        except ssl.SSLError as exc:
            raise TlsError(exc.reason or "TLS failed") from exc
        if self._outgoing.pending:
            # OpenSSL refuses each one, and nobody sends the refusals on: a client without a key could fill the memory.
            raise TlsError("another handshake in a connection that is encrypted already")
        return plain

    def sealed(self, data: bytes) -> bytes:
        """``data`` encrypted, after all that was to be sent before it. Raises TlsError."""
        try:
            self._tls.write(data)
        except ssl.SSLError as exc:
            raise TlsError(exc.reason or "TLS failed") from exc
        return self.to_send()

    def to_send(self) -> bytes:
        """Bytes to send now. Mutates."""
        return self._outgoing.read()

    def end(self) -> bytes:
        """The bytes that say that this end sends nothing more. Mutates."""
        with suppress(ssl.SSLError):  # (the other end has not said so yet)
            self._tls.unwrap()
        return self.to_send()

    def _read(self) -> bytes:
        pieces: list[bytes] = []
        while True:
            try:
                piece = self._tls.read(_READ_BYTES)
            except ssl.SSLWantReadError:
                break
            except ssl.SSLZeroReturnError:
                piece = b""
            if not piece:
                self.is_over = True
                break
            pieces.append(piece)
        return b"".join(pieces)


def load_tls(cert: Path, key: Path | None, context: ssl.SSLContext | None = None) -> ssl.SSLContext:
    """The server's side of TLS. key: None: it is in the file of the certificate. context: the one whose next
    connections use the files, which must have been loaded without an error before; None: a new one. Raises LocalError
    that names the file and what is wrong with it."""
    context = context or ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    _check_pem(cert, "CERTIFICATE", "")
    _check_pem(key or cert, "PRIVATE KEY", "" if key else "; give its file with --tls-key")

    def no_password() -> str:
        raise LocalError(f"the private key in {key or cert} needs a password: remove it with 'openssl pkey'")

    try:
        context.load_cert_chain(cert, key, no_password)
    except ssl.SSLError as exc:
        if exc.reason == "KEY_VALUES_MISMATCH":
            raise LocalError(f"the private key in {key or cert} is not that of the certificate {cert}") from exc
        raise LocalError(f"cannot use the certificate {cert}: {exc.reason or exc}") from exc
    return context


_MAX_FILE_BYTES = 1 << 20


def _check_pem(path: Path, what: str, hint: str) -> None:
    """Raises LocalError."""
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_FILE_BYTES)
    except OSError as exc:
        raise LocalError(f"cannot read {path}: {exc.strerror}") from exc
    if f"{what}-----".encode() not in text:
        raise LocalError(f"{path} has no {what.lower()} in PEM form (-----BEGIN {what}-----){hint}")
