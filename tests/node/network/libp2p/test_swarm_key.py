import os

import pytest
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.exceptions import ConnectionClosedError
from nacl.bindings import crypto_secretbox

from mycelia.node.network.libp2p.swarm_key import KeyedSocket

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))


class Wire(ReadWriteCloser):
    """The bytes that one side wrote. The other side reads at most five at a time."""

    def __init__(self) -> None:
        self.data = b""

    async def read(self, n: int | None = None) -> bytes:
        part, self.data = self.data[: min(n or 5, 5)], self.data[min(n or 5, 5) :]
        return part

    async def write(self, data: bytes) -> None:
        self.data += data

    async def close(self) -> None: ...

    def get_remote_address(self) -> tuple[str, int] | None:
        return None


async def read_all(socket: KeyedSocket) -> bytes:
    data = b""
    while part := await socket.read():
        data += part
    return data


async def test_the_two_sides_of_a_swarm_understand_each_other() -> None:
    wire = Wire()
    writer = KeyedSocket(wire, KEY)
    await writer.write(b"hello, ")
    await writer.write(b"neighbour")
    assert b"hello" not in wire.data and len(wire.data) == 24 + 16
    assert await read_all(KeyedSocket(wire, KEY)) == b"hello, neighbour"


async def test_another_key_understands_nothing() -> None:
    wire = Wire()
    await KeyedSocket(wire, KEY).write(bytes(64))
    assert await read_all(KeyedSocket(wire, OTHER)) != bytes(64)


async def test_the_cipher_is_nacls() -> None:
    for _ in range(20):
        wire, key = Wire(), os.urandom(32)
        await KeyedSocket(wire, key).write(bytes(32 + 100))
        nonce, sealed = wire.data[:24], wire.data[24:]
        # (a secret box uses the first 32 bytes of its key stream for its seal of 16 bytes)
        assert crypto_secretbox(bytes(100), nonce, key)[16:] == sealed[32:]


async def test_a_peer_that_leaves_before_it_said_anything_is_an_error() -> None:
    with pytest.raises(ConnectionClosedError, match="swarm key"):
        await KeyedSocket(Wire(), KEY).read()
