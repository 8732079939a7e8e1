"""Bytes that nodes send and receive, per plane: those of the real codec plus what the transport adds to a message."""

import numpy as np
import numpy.typing as npt

from mycelia.proto.wire.codec import LENGTH_PREFIX, encode
from mycelia.proto.wire.messages import Control, Message, Reconcile, Repair, RepairRequest

GOSSIP_ENVELOPE_BYTES = 204
"""Bytes that libp2p 0.8.1 adds to a gossip message: author, sequence number, topic, signature, key."""
STREAM_ENVELOPE_BYTES = LENGTH_PREFIX.size + 12 + 18
"""Bytes around a control message: its length, yamux's header, Noise's length and tag."""
MESSAGE_ID_BYTES = 14
"""Size of one message in IHAVE: node/network/libp2p/gossip/gossip.py's id of 12 bytes, its tag and length."""
LAZY_PEERS = 6
"""A node announces each message once, to this many peers outside its mesh (IHAVE)."""
GOSSIP, LAZY, REPAIR, CONTROL = "gossip", "lazy", "repair", "control"
PLANES = (GOSSIP, LAZY, REPAIR, CONTROL)
"""Gossip pushed through the mesh; its lazy announcements; direct streams for repair and reconciliation; other ones."""


class Traffic:
    """Bytes that each node sent and received so far: plane -> bytes by node number."""

    def __init__(self, num_nodes: int) -> None:
        self.sent = {plane: np.zeros(num_nodes, dtype=np.int64) for plane in PLANES}
        self.received = {plane: np.zeros(num_nodes, dtype=np.int64) for plane in PLANES}
        self._sized: tuple[Message, int] | None = None

    def count_gossip(
        self,
        message: Message,
        copies_sent: npt.NDArray[np.int64],
        copies_received: npt.NDArray[np.int64],
        reached: npt.NDArray[np.bool_],
        hears: npt.NDArray[np.bool_],
        num_hearing: int,
    ) -> None:
        """Count one gossip message. reached, hears: which nodes got it, and which get its announcements."""
        size = GOSSIP_ENVELOPE_BYTES + len(encode(message))
        self.sent[GOSSIP] += size * copies_sent
        self.received[GOSSIP] += size * copies_received
        # A node that has the message announces it to LAZY_PEERS: spread evenly here.
        share = reached.sum() / num_hearing
        lazy = int(MESSAGE_ID_BYTES * LAZY_PEERS * share)
        self.sent[LAZY] += lazy * reached
        self.received[LAZY] += lazy * hears

    def count_sent(self, sender: int, message: Control) -> int:
        """Count a message sent on a stream; returns its bytes. It may be lost: the caller counts ``received``."""
        if self._sized is None or self._sized[0] is not message:  # (one repair goes to several neighbours)
            self._sized = (message, STREAM_ENVELOPE_BYTES + size_of(message))
        self.sent[plane_of(message)][sender] += self._sized[1]
        return self._sized[1]

    def state(self) -> bytes:
        """The counts as bytes, for traces."""
        return b"".join(self.received[plane].tobytes() + self.sent[plane].tobytes() for plane in PLANES)


def plane_of(message: Control) -> str:
    return REPAIR if isinstance(message, Reconcile | Repair | RepairRequest) else CONTROL


def size_of(message: Message) -> int:
    """``len(encode(message))``. A version vector is summed up instead, with the same result 20 times faster."""
    if not isinstance(message, Reconcile):
        return len(encode(message))
    versions = message.versions
    # A map of two: kind 5, then the array. Each version is a map of four with one-byte keys.
    return (
        4
        + _head_bytes(len(versions))
        + sum(
            5 + _head_bytes(len(v.owner)) + len(v.owner) + 17 + _head_bytes(v.epoch) + _head_bytes(v.seq)
            for v in versions
        )
    )


def _head_bytes(value: int) -> int:
    """CBOR's head for an unsigned integer or a length."""
    return 1 if value < 24 else 2 if value < 256 else 3 if value < 65_536 else 5 if value < 2**32 else 9
