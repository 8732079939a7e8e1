"""The pre-shared key of a private swarm. Without it no byte of a connection can be understood.

The protocol is https://github.com/libp2p/specs/blob/master/pnet/Private-Networks-PSK-V1.md: each side first sends 24
random bytes, and everything after them, the handshake included, goes through XSalsa20 with the key and those bytes. The
key only keeps strangers out; Noise still proves the peers' identities and protects their bytes from change.
py-libp2p's own code takes 8 random bytes and plain Salsa20, which no other implementation understands.

A node of a swarm with members has several keys, see ``proto/swarm/keys.py``: the dialler's nonce says which one it
uses. Its own nonce goes out at once, since a js-libp2p dialler waits for it.
"""

import os
import struct

from Crypto.Cipher import Salsa20
from libp2p.abc import IRawConnection
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.network.connection.raw_connection import RawConnection

from mycelia.node.network.swarm_access import SwarmAccess
from mycelia.proto.swarm.keys import FRESH_BYTES, tagged_nonce
from mycelia.proto.swarm.roster import Purpose

NONCE_BYTES = 24


class SwarmKeys:
    """The keys of one host's connections."""

    def __init__(self, key: bytes, access: SwarmAccess | None) -> None:
        """key: of a swarm without members' list; empty: the open network. access: replaces it."""
        self._key = key
        self._access = access

    def dialled(self, connection: IRawConnection) -> IRawConnection:
        """A connection that this node made and that was not used yet, inside the swarm. Nothing changes without a
        key."""
        if self._access is not None:
            nonce = tagged_nonce(self._access.key, os.urandom(FRESH_BYTES))
            return _inside(connection, self._access.key, nonce)
        return _inside(connection, self._key) if self._key else connection

    async def accepted(self, connection: IRawConnection) -> tuple[IRawConnection, Purpose]:
        """A connection that a peer made, inside the swarm whose key the peer uses, and what it is for. Raises the
        errors of the connection."""
        if self._access is None:
            return (_inside(connection, self._key) if self._key else connection), Purpose.MEMBERS
        own = os.urandom(NONCE_BYTES)
        await connection.write(own)
        nonce = await _read_nonce(connection)
        key, purpose = self._access.opened_by(nonce)
        return _inside(connection, key, own, is_sent=True, heard=nonce), purpose

    def lets_in(self, peer: bytes) -> bool:
        """Whether connections with a peer that has the members' key may be used."""
        return self._access is None or self._access.is_member(peer)


def _inside(
    connection: IRawConnection, key: bytes, nonce: bytes = b"", is_sent: bool = False, heard: bytes = b""
) -> IRawConnection:
    assert isinstance(connection, RawConnection)
    connection.stream = KeyedSocket(connection.stream, key, nonce, is_sent, heard)
    return connection


class KeyedSocket(ReadWriteCloser):
    """A socket in a private swarm. One task may write while another reads."""

    def __init__(
        self, socket: ReadWriteCloser, key: bytes, nonce: bytes = b"", is_sent: bool = False, heard: bytes = b""
    ) -> None:
        """nonce: of this side, never used before; empty: a random one. is_sent: whether the other side has it already.
        heard: the other side's nonce, if it was read already."""
        self._socket = socket
        self._key = key
        nonce = nonce or os.urandom(NONCE_BYTES)
        self._nonce = b"" if is_sent else nonce
        self._encrypt = _cipher(key, nonce)
        self._decrypt = _cipher(key, heard) if heard else None

    async def read(self, n: int | None = None) -> bytes:
        """Reads and decrypts. Raises the socket's errors, and ConnectionClosedError when it ends before the first
        byte."""
        if self._decrypt is None:
            nonce = await _read_nonce(self._socket)
            self._decrypt = _cipher(self._key, nonce)
        return self._decrypt.decrypt(await self._socket.read(n))

    async def write(self, data: bytes) -> None:
        nonce, self._nonce = self._nonce, b""
        await self._socket.write(nonce + self._encrypt.encrypt(data))

    async def close(self) -> None:
        await self._socket.close()

    def get_remote_address(self) -> tuple[str, int] | None:
        return self._socket.get_remote_address()


async def _read_nonce(socket: ReadWriteCloser | IRawConnection) -> bytes:
    nonce = b""
    while len(nonce) < NONCE_BYTES:
        data = await socket.read(NONCE_BYTES - len(nonce))
        if not data:
            raise ConnectionClosedError("the peer ended the connection: it may have another swarm key, or none")
        nonce += data
    return nonce


def _cipher(key: bytes, nonce: bytes) -> Salsa20.Salsa20Cipher:
    """The XSalsa20 cipher: Salsa20 with a key derived from ``key`` and the nonce's first 16 bytes, and with the nonce's
    last 8 bytes."""
    return Salsa20.new(key=_hsalsa20(key, nonce[:16]), nonce=nonce[16:])


def _hsalsa20(key: bytes, nonce: bytes) -> bytes:
    """The HSalsa20 hash of D. J. Bernstein, "Extending the Salsa20 nonce", 2011. nonce: 16 bytes."""
    sigma, k, n = struct.unpack("<4I", b"expand 32-byte k"), struct.unpack("<8I", key), struct.unpack("<4I", nonce)
    x = [sigma[0], *k[:4], sigma[1], *n, sigma[2], *k[4:], sigma[3]]
    columns = [(0, 4, 8, 12), (5, 9, 13, 1), (10, 14, 2, 6), (15, 3, 7, 11)]
    rows = [(0, 1, 2, 3), (5, 6, 7, 4), (10, 11, 8, 9), (15, 12, 13, 14)]
    for a, b, c, d in (columns + rows) * 10:
        for target, left, right, bits in ((b, a, d, 7), (c, b, a, 9), (d, c, b, 13), (a, d, c, 18)):
            total = (x[left] + x[right]) & 0xFFFFFFFF
            x[target] ^= (total << bits | total >> (32 - bits)) & 0xFFFFFFFF
    return struct.pack("<8I", *(x[place] for place in (0, 5, 10, 15, 6, 7, 8, 9)))
