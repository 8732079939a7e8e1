"""A peer written from ``proto/interoperability.md`` alone: TCP, Noise, Yamux, multistream-select and CBOR by hand.

It imports nothing of ours and nothing of libp2p. It does what is needed to greet a node and to be answered, and no
more: no flow control, no pace, one message a stream to wait for. What it lacks, the document has.
"""

import hmac
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Any

import cbor2
import trio
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from nacl.signing import SigningKey, VerifyKey

Message = dict[int, Any]

DATA, WINDOW, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8
MULTISTREAM = "/multistream/1.0.0"
KEY_PREFIX = bytes.fromhex("08011220")
PEER_PREFIX = bytes.fromhex("0024") + KEY_PREFIX


def lines(*names: str) -> bytes:
    """Lines of multistream-select."""
    return b"".join(bytes((len(name) + 1,)) + name.encode() + b"\n" for name in names)


def framed(message: Message) -> bytes:
    data = cbor2.dumps(message, canonical=True)
    return struct.pack(">I", len(data)) + data


def varint(number: int) -> bytes:
    low = number & 0x7F
    return bytes((low,)) if number < 0x80 else bytes((low | 0x80,)) + varint(number >> 7)


def field(number: int, value: bytes | int) -> bytes:
    """A field of a protobuf."""
    if isinstance(value, int):
        return bytes((number << 3,)) + varint(value)
    return bytes((number << 3 | 2,)) + varint(len(value)) + value


def rpc(topic: str, seqno: int, data: bytes, key: SigningKey) -> bytes:
    """A gossipsub RPC that publishes one message, after its length."""
    author = PEER_PREFIX + bytes(key.verify_key)
    message = field(1, author) + field(2, data) + field(3, seqno.to_bytes(8, "big")) + field(4, topic.encode())
    published = field(2, message + field(5, key.sign(b"libp2p-pubsub:" + message).signature))
    return varint(len(published)) + published


def _hash(data: bytes) -> bytes:
    return sha256(data).digest()


def _hkdf(key: bytes, data: bytes, count: int) -> list[bytes]:
    secret, found = hmac.digest(key, data, "sha256"), [b""]
    for number in range(count):
        found.append(hmac.digest(secret, found[-1] + bytes((number + 1,)), "sha256"))
    return found[1:]


class _Cipher:
    def __init__(self, key: bytes) -> None:
        self._aead, self._nonce = ChaCha20Poly1305(key), 0

    def _next(self) -> bytes:
        self._nonce += 1
        return bytes(4) + struct.pack("<Q", self._nonce - 1)

    def seal(self, data: bytes, beside: bytes = b"") -> bytes:
        return self._aead.encrypt(self._next(), data, beside)

    def open(self, data: bytes, beside: bytes = b"") -> bytes:
        return self._aead.decrypt(self._next(), data, beside)


class _Socket:
    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream, self._buffer = stream, b""

    async def exactly(self, num_bytes: int) -> bytes:
        while len(self._buffer) < num_bytes:
            data = await self._stream.receive_some(65_536)
            if not data:
                raise EOFError
            self._buffer += data
        taken, self._buffer = self._buffer[:num_bytes], self._buffer[num_bytes:]
        return taken

    async def send(self, data: bytes) -> None:
        await self._stream.send_all(data)

    async def packet(self) -> bytes:
        return await self.exactly(int.from_bytes(await self.exactly(2), "big"))

    async def send_packet(self, data: bytes) -> None:
        await self.send(struct.pack(">H", len(data)) + data)


class _Handshake:
    """Noise_XX_25519_ChaChaPoly_SHA256, the initiator's side."""

    def __init__(self, key: SigningKey) -> None:
        self._identity = key
        self._chain = self._said = b"Noise_XX_25519_ChaChaPoly_SHA256"
        self._mix_hash(b"")  # an empty prologue
        self._cipher: _Cipher | None = None

    def _mix_hash(self, data: bytes) -> None:
        self._said = _hash(self._said + data)

    def _mix_key(self, ours: X25519PrivateKey, theirs: bytes) -> None:
        shared = ours.exchange(X25519PublicKey.from_public_bytes(theirs))
        self._chain, key = _hkdf(self._chain, shared, 2)
        self._cipher = _Cipher(key)

    def _seal(self, data: bytes) -> bytes:
        assert self._cipher is not None
        sealed = self._cipher.seal(data, self._said)
        self._mix_hash(sealed)
        return sealed

    def _open(self, sealed: bytes) -> bytes:
        assert self._cipher is not None
        data = self._cipher.open(sealed, self._said)
        self._mix_hash(sealed)
        return data

    async def run(self, socket: _Socket) -> tuple[_Cipher, _Cipher, bytes]:
        """The ciphers to send and to receive with, and the peer id of the other side."""
        ephemeral, static = X25519PrivateKey.generate(), X25519PrivateKey.generate()
        public = _public(ephemeral)
        self._mix_hash(public)
        self._mix_hash(b"")
        await socket.send_packet(public)
        answer = await socket.packet()
        theirs = answer[:32]
        self._mix_hash(theirs)
        self._mix_key(ephemeral, theirs)
        their_static = self._open(answer[32:80])
        self._mix_key(ephemeral, their_static)
        peer = _peer_of(self._open(answer[80:]), their_static)
        sealed = self._seal(_public(static))
        self._mix_key(static, theirs)
        signature = self._identity.sign(b"noise-libp2p-static-key:" + _public(static)).signature
        identity = KEY_PREFIX + bytes(self._identity.verify_key)
        payload = b"\x0a" + bytes((len(identity),)) + identity + b"\x12" + bytes((len(signature),)) + signature
        await socket.send_packet(sealed + self._seal(payload))
        sending, receiving = _hkdf(self._chain, b"", 2)
        return _Cipher(sending), _Cipher(receiving), peer


def _public(key: X25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def _peer_of(payload: bytes, static: bytes) -> bytes:
    """Who signed the static key. Raises BadSignatureError."""
    assert payload[:2] == b"\x0a\x24" and payload[2:6] == KEY_PREFIX and payload[38:40] == b"\x12\x40"
    key = payload[6:38]
    VerifyKey(key).verify(b"noise-libp2p-static-key:" + static, payload[40:104])
    return PEER_PREFIX + key


class Stream:
    """A Yamux stream whose protocol was asked for, with what is said first together with the lines."""

    def __init__(self) -> None:
        self.to_hear = b""
        self.has_messages = True
        """Else what comes is only kept: ``data``."""
        self.data = b""
        self.messages, self._received = trio.open_memory_channel[Message](100)

    async def receive(self) -> Message:
        return await self._received.receive()

    async def feed(self, data: bytes) -> None:
        self.data += data
        if len(self.data) < len(self.to_hear):
            return
        assert self.data.startswith(self.to_hear), "the other side does not speak the protocol"
        self.data, self.to_hear = self.data[len(self.to_hear) :], b""
        while self.has_messages and len(self.data) >= 4 and len(self.data) >= 4 + int.from_bytes(self.data[:4], "big"):
            end = 4 + int.from_bytes(self.data[:4], "big")
            await self.messages.send(cbor2.loads(self.data[4:end]))
            self.data = self.data[end:]


class Peer:
    """A connection that this side made."""

    def __init__(self, socket: _Socket, sending: _Cipher, receiving: _Cipher, other: bytes) -> None:
        self.other = other
        """The peer id of the node."""
        self.control = Stream()
        """What the node says on its control stream."""
        self.num_pings = 0
        self._socket, self._sending, self._receiving = socket, sending, receiving
        self._turn = trio.Lock()
        """Packets go out in the order of their nonces."""
        self._plain = b""
        self._streams: dict[int, Stream] = {}
        self._next = 1

    async def open(self, protocol: str, message: Message | bytes) -> Stream:
        """message: as bytes for protocols that are not ours."""
        stream, number = Stream(), self._next
        stream.has_messages = not isinstance(message, bytes)
        data = message if isinstance(message, bytes) else framed(message)
        stream.to_hear = lines(MULTISTREAM, protocol)
        self._next += 2
        self._streams[number] = stream
        await self._frame(DATA, SYN, number, stream.to_hear + data)
        return stream

    async def run(self) -> None:
        """Serves until cancelled."""
        while True:
            _, kind, flags, number, length = struct.unpack("!BBHII", await self._exactly(12))
            if kind == PING:
                if flags & SYN:
                    self.num_pings += 1
                    await self._frame(PING, ACK, 0, b"", length)
            elif kind == GO_AWAY:
                raise EOFError
            elif flags & SYN:
                self._streams[number] = Stream()
                await self._frame(WINDOW, ACK, number, b"", 0)
            if kind == DATA:
                await self._received(number, await self._exactly(length))

    async def _received(self, number: int, data: bytes) -> None:
        stream = self._streams[number]
        if number % 2 == 0 and stream is not self.control:
            stream.data += data
            wanted = lines(MULTISTREAM, "/mycelia/control/1")
            if not stream.data.startswith(wanted):
                await self._frame(DATA, 0, number, lines(MULTISTREAM, "na"))  # (nothing else is served here)
                await self._frame(WINDOW, RST, number, b"", 0)
                stream.data = b""
                return
            await self._frame(DATA, 0, number, wanted)
            self._streams[number], data = self.control, stream.data[len(wanted) :]
        await self._streams[number].feed(data)

    async def _frame(self, kind: int, flags: int, number: int, data: bytes, length: int | None = None) -> None:
        header = struct.pack("!BBHII", 0, kind, flags, number, len(data) if length is None else length)
        async with self._turn:
            await self._socket.send_packet(self._sending.seal(header + data))

    async def _exactly(self, num_bytes: int) -> bytes:
        while len(self._plain) < num_bytes:
            self._plain += self._receiving.open(await self._socket.packet())
        taken, self._plain = self._plain[:num_bytes], self._plain[num_bytes:]
        return taken

    async def agree(self, protocol: str) -> None:
        """On the muxer, inside Noise."""
        wanted = lines(MULTISTREAM, protocol)
        await self._socket.send_packet(self._sending.seal(wanted))
        assert await self._exactly(len(wanted)) == wanted


@asynccontextmanager
async def connected(host: str, port: int, key: SigningKey) -> AsyncIterator[Peer]:
    """A connection with a node, on which everything is served that it needs."""
    async with await trio.open_tcp_stream(host, port) as tcp, trio.open_nursery() as nursery:
        socket = _Socket(tcp)
        wanted = lines(MULTISTREAM, "/noise")
        await socket.send(wanted)
        assert await socket.exactly(len(wanted)) == wanted
        peer = Peer(socket, *await _Handshake(key).run(socket))
        await peer.agree("/yamux/1.0.0")
        nursery.start_soon(peer.run)
        yield peer
        nursery.cancel_scope.cancel()
