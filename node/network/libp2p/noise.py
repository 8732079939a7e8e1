"""A finished Noise session that reads and writes many packets at a time.

libp2p's own reader takes each packet with two system calls, each through six layers. The keys, the nonces and the
socket are the session's own: once ``NoisePackets`` is made, no other code may use them.
"""

import trio
from cryptography.exceptions import InvalidTag
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.security.noise.io import MAX_PLAINTEXT_LENGTH, SIZE_NOISE_MESSAGE_LEN, NoiseTransportReadWriter
from libp2p.security.secure_session import SecureSession

from mycelia.node.sockets import receive_some, send_at_once, send_rest

MAX_RECEIVE_BYTES = 65_536
"""Bytes taken from the socket at once."""


class NoisePackets:
    """Plaintext in and out. One task may send while another receives."""

    def __init__(self, session: SecureSession) -> None:
        channel = session.conn
        assert isinstance(channel, NoiseTransportReadWriter)
        protocol = channel.noise_state.noise_protocol
        self._encrypt = protocol.cipher_state_encrypt.encrypt_with_ad
        self._decrypt = protocol.cipher_state_decrypt.decrypt_with_ad
        self.raw = channel.read_writer.read_write_closer
        stream = getattr(getattr(self.raw, "stream", None), "stream", None)
        # Straight to the socket: the layers between take two locks, four calls and three scheduling rounds each time.
        self._socket = stream.socket if isinstance(stream, trio.SocketStream) else None
        self._sealed = bytearray()
        self._opened = bytes(session.buf.getbuffer()[session.low_watermark : session.high_watermark])
        """Bytes that the session had decrypted beyond the negotiation of the muxer."""
        self.num_opened = 0
        """Number of packets that were decrypted. The caller may reset it."""

    async def receive(self) -> bytes:
        """All bytes that have arrived; empty at the end. Raises libp2p's or trio's errors of a broken connection."""
        opened, self._opened = self._opened, b""
        while not opened:
            if self._socket is not None:
                sealed = await receive_some(self._socket, MAX_RECEIVE_BYTES)
            else:
                sealed = await self.raw.read(MAX_RECEIVE_BYTES)
            if not sealed:
                return b""
            self._sealed += sealed
            opened = self._open_whole()
        return opened

    def _open_whole(self) -> bytes:
        """The plaintext of every packet that is complete."""
        packets, sealed, start = [], self._sealed, 0
        while len(sealed) - start >= SIZE_NOISE_MESSAGE_LEN:
            body = start + SIZE_NOISE_MESSAGE_LEN
            end = body + int.from_bytes(sealed[start:body], "big")
            if len(sealed) < end:
                break
            try:
                packets.append(self._decrypt(None, bytes(sealed[body:end])))
            except InvalidTag as exc:
                raise ConnectionClosedError("a packet was forged or damaged") from exc
            start = end
        del sealed[:start]
        self.num_opened += len(packets)
        return b"".join(packets)

    def send_at_once(self, data: bytes) -> bytes:
        """Encrypts and sends ``data``. Returns the encrypted bytes that the socket has no room for now: pass them to
        ``send_rest`` before anything else is sent. Raises as above."""
        packets = bytearray()
        for start in range(0, len(data), MAX_PLAINTEXT_LENGTH):
            packet = self._encrypt(None, data[start : start + MAX_PLAINTEXT_LENGTH])
            packets += len(packet).to_bytes(SIZE_NOISE_MESSAGE_LEN, "big") + packet
        return bytes(packets) if self._socket is None else send_at_once(self._socket, packets)

    async def send_rest(self, packets: bytes) -> None:
        """Sends the rest and returns when the socket has taken all. A cancelled call leaves the session unusable.
        Raises as above."""
        if self._socket is None:
            await self.raw.write(packets)
        else:
            await send_rest(self._socket, packets)

    @property
    def local_address(self) -> tuple[str, int]:
        """The IP address and port of this machine that the connection uses; ("", 0): unknown, or a circuit."""
        try:
            host, port, *_ = ("", 0) if self._socket is None else self._socket.getsockname()
        except OSError:
            return "", 0
        return str(host).partition("%")[0].removeprefix("::ffff:"), int(port)

    async def aclose(self) -> None:
        await self.raw.close()
