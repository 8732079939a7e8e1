"""The peers that a node knows in the Kademlia table: 20 of each distance, and few of one subnet.

A peer enters while it is connected: what others report of it is not enough. After its connection ended it stays until
it does not answer or a connected peer needs its place. libp2p's table asks the oldest peer of a full bucket for a sign
of life, if necessary by a dial, while all newcomers wait: strangers could make that long.
"""

import hashlib
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from mycelia.proto.admission.subnets import VIA, is_local

BUCKET_SIZE = 20
"""Kademlia's k."""
PER_SUBNET_AND_BUCKET = 2
PER_SUBNET = 10
PER_RELAY_AND_BUCKET, PER_RELAY = 5, 40
"""The same for one subnet behind relays: few relays serve many homes."""


@dataclass
class Entry:
    """A peer of the table. The caller keeps its addresses, and when they were looked up."""

    point: int
    subnet: str
    addresses: tuple[bytes, ...] = ()
    looked_up_at: float = -math.inf


def point_of(key: bytes) -> int:
    """The point of a key, or of a peer with that id: libp2p compares hashes."""
    return int.from_bytes(hashlib.sha256(key).digest(), "big")


class PeerBuckets:
    """Peers by the length of the prefix that their point shares with ``me``'s. Invariants: see ``check_invariants``."""

    def __init__(self, me: bytes) -> None:
        self._me = me
        self._point = point_of(me)
        self._buckets: dict[int, OrderedDict[bytes, Entry]] = {}
        """Distance (its bits) -> peers, the longest quiet one first."""

    def __len__(self) -> int:
        return sum(map(len, self._buckets.values()))

    def __contains__(self, peer: object) -> bool:
        return isinstance(peer, bytes) and peer in self._buckets.get(self._distance_of(peer), {})

    def entry(self, peer: bytes) -> Entry | None:
        return self._buckets.get(self._distance_of(peer), OrderedDict()).get(peer)

    def add(self, peer: bytes, subnet: str, is_connected: Callable[[bytes], bool]) -> bool:
        """Whether the connected ``peer`` is in the table now. subnet: where it was seen. Mutates."""
        if peer == self._me:
            return False
        distance = self._distance_of(peer)
        bucket = self._buckets.get(distance, OrderedDict())
        if peer in bucket and bucket[peer].subnet == subnet:
            bucket.move_to_end(peer)
            return True
        others = {other: entry for other, entry in bucket.items() if other != peer}
        if not self._has_room(subnet, others, peer):
            return False
        if len(others) >= BUCKET_SIZE:
            gone = next((other for other in bucket if not is_connected(other)), None)
            if gone is None:
                return False
            del bucket[gone]
        bucket.pop(peer, None)
        bucket[peer] = Entry(point_of(peer), subnet)
        self._buckets[distance] = bucket
        return True

    def _has_room(self, subnet: str, bucket: dict[bytes, Entry], but: bytes) -> bool:
        if is_local(subnet):
            return True
        near, far = PER_SUBNET_AND_BUCKET, PER_SUBNET
        if subnet.startswith(VIA):
            near, far = PER_RELAY_AND_BUCKET, PER_RELAY
        num_near = sum(entry.subnet == subnet for entry in bucket.values())
        everywhere = ((peer, entry) for one in self._buckets.values() for peer, entry in one.items())
        return num_near < near and sum(e.subnet == subnet for peer, e in everywhere if peer != but) < far

    def remove(self, peer: bytes) -> None:
        """The peer did not answer: remove it if it is in the table. Mutates."""
        distance = self._distance_of(peer)
        bucket = self._buckets.get(distance, OrderedDict())
        bucket.pop(peer, None)
        if not bucket:
            self._buckets.pop(distance, None)

    def nearest(self, key: bytes, limit: int) -> list[bytes]:
        target = point_of(key)
        entries = [(entry.point ^ target, peer) for bucket in self._buckets.values() for peer, entry in bucket.items()]
        return [peer for _, peer in sorted(entries)[:limit]]

    def peers(self) -> list[bytes]:
        return [peer for bucket in self._buckets.values() for peer in bucket]

    def _distance_of(self, peer: bytes) -> int:
        return (point_of(peer) ^ self._point).bit_length()

    def check_invariants(self) -> None:
        for distance, bucket in self._buckets.items():
            assert 0 < len(bucket) <= BUCKET_SIZE
            assert all(self._distance_of(peer) == distance for peer in bucket)
        entries = [entry for bucket in self._buckets.values() for entry in bucket.values()]
        for subnet in {entry.subnet for entry in entries if not is_local(entry.subnet)}:
            limit = PER_RELAY if subnet.startswith(VIA) else PER_SUBNET
            assert sum(entry.subnet == subnet for entry in entries) <= limit
