"""Hostile bytes for the server's side of TLS: before, in and after a handshake. Plain bytes, or TlsError."""

import random
import ssl
import tempfile
from pathlib import Path

from mycelia.node.serve.http.tls import Tls, TlsError, load_tls
from tests.fuzz.mutate import spoil_bytes
from tests.node.serve.http.test_tls import make_certificate, trusting

Item = tuple[int, bytes, list[int], int]
"""The step of the exchange whose bytes are replaced (above 3: none), the bytes to use (empty: spoil the honest ones),
the seed for that, and how many bytes come at once."""


class TlsBytes:
    """What a client sends to a port with TLS."""

    name = "tls"
    weight = 0.02
    """A handshake takes 1 ms."""

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            cert, key = make_certificate(Path(folder))
            self._server, self._client = load_tls(cert, key), trusting(cert)

    def make(self, rng: random.Random) -> Item:
        step = rng.randrange(6)
        first = rng.choice((b"\x16\x03\x01", b"\x16\x03\x03", b"\x17\x03\x03", b"\x15\x03\x03", b"GET / ", b""))
        data = first + rng.randbytes(rng.randrange(200)) if rng.random() < 0.4 else b""
        return step, data, [rng.randrange(2**31)], rng.choice((1 << 20, 1 << 20, 100, 1))

    def check(self, item: Item) -> bool:
        step, data, seeds, size = item
        server = Tls(self._server)
        client = self._client.wrap_bio(incoming := ssl.MemoryBIO(), outgoing := ssl.MemoryBIO())
        plain = b""
        for number in range(4):
            try:
                if number < 2:
                    client.do_handshake()
                else:
                    client.write(b"GET / HTTP/1.1\r\n\r\n")
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError:
                return False  # (the server's answer to spoiled bytes)
            honest = outgoing.read()
            sent = honest if number != step else data or spoil_bytes(honest or b"\x16", random.Random(seeds[0]))
            try:
                for at in range(0, len(sent), size):
                    plain += server.received(sent[at : at + size])
                    incoming.write(server.to_send())
                if server.is_ready:
                    incoming.write(server.sealed(b"answer"))
            except TlsError:
                server.to_send()
                return False
        server.end()
        return bool(plain)
