"""Provider records that a node keeps for others in the Kademlia table: which peer provides which key.

Any peer may send any number of records, under any number of peer ids. So what is kept is bounded by subnet (see
``subnets``), and no records push out those of another subnet:

- Per key at most MAX_PROVIDERS, and of one subnet at most PER_SUBNET of them (a private network: most).
  Half of the places belong to the providers that are known for longest and still there. The other half changes at
  random, so that newcomers are found too and not all nodes connect to the same few.
- In total at most ``max_records``, each subnet within its share of what is free. A peer or subnet over its own bound
  loses its own quietest record.

Invariants: see ``check_invariants``.
"""

import random
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mycelia.proto.admission.subnets import VIA, Places, is_local

MAX_PROVIDERS = 20
"""Kademlia's k."""
PER_SUBNET = 2
PER_RELAY = 4
"""Providers of one subnet behind relays: few relays serve many homes."""
PER_LOCAL = 15
"""Providers of one address of a private network: a swarm on one machine."""
MAX_RECORDS_PER_PEER = 128
"""A node of a split swarm provides up to 64 prefixes at a time."""
EXPIRY_S = 48 * 3_600.0
"""As in libp2p. Providers repeat their record every few minutes or half hours."""
FRESH_S = 1_800.0
"""How long a provider that is not connected counts as still there."""


@dataclass
class _Record:
    subnet: str
    addresses: tuple[bytes, ...]
    first_at: float
    last_at: float


@dataclass(frozen=True)
class Contact:
    """A peer and its binary multiaddrs, as reported."""

    peer: bytes
    addresses: tuple[bytes, ...]


class ProviderRecords:
    """Records of one kind of keys. ``rng`` chooses what is evicted."""

    def __init__(self, max_records: int, rng: random.Random) -> None:
        self._rng = rng
        self._keys: dict[bytes, dict[bytes, _Record]] = {}
        """Key -> peer -> record."""
        self._told_by: dict[str, OrderedDict[bytes, OrderedDict[bytes, None]]] = {}
        """Subnet -> peer -> keys, the quietest first in both."""
        self._places = Places(max_records, MAX_RECORDS_PER_PEER)

    def __len__(self) -> int:
        return self._places.num_taken

    @property
    def num_keys(self) -> int:
        return len(self._keys)

    def add(self, key: bytes, told: Contact, subnet: str, is_there: Callable[[bytes], bool], now: float) -> bool:
        """Store that ``told.peer`` provides ``key``, or still does; False if there is no place for it. subnet: where
        the peer was seen, not what it reports. is_there: whether a peer is connected. Mutates."""
        record = self._keys.get(key, {}).get(told.peer)
        first_at = record.first_at if record else now
        if record is not None:
            self._remove(key, told.peer)
        if record is None or record.subnet != subnet:
            if not self._makes_room_at_key(key, told.peer, subnet, is_there, now):
                return False
        if not self._takes_place(told.peer, subnet):
            return False
        self._keys.setdefault(key, {})[told.peer] = _Record(subnet, told.addresses, first_at, now)
        peers = self._told_by.setdefault(subnet, OrderedDict())
        peers.setdefault(told.peer, OrderedDict())[key] = None
        peers.move_to_end(told.peer)
        return True

    def providers(self, key: bytes, now: float) -> list[Contact]:
        """The providers that are not expired. Mutates: drops the expired ones."""
        for peer in [peer for peer, record in self._keys.get(key, {}).items() if now - record.last_at > EXPIRY_S]:
            self._remove(key, peer)
        return [Contact(peer, record.addresses) for peer, record in self._keys.get(key, {}).items()]

    def _takes_place(self, peer: bytes, subnet: str) -> bool:
        if self._places.take(peer, subnet):
            return True
        peers = self._told_by.get(subnet)
        if not peers:
            return False
        # (the peer's own record, if it has too many; otherwise one of the longest quiet peer of its subnet)
        victim = peer if peer in peers and len(peers[peer]) >= MAX_RECORDS_PER_PEER else next(iter(peers))
        self._remove(next(iter(peers[victim])), victim)
        return self._places.take(peer, subnet)

    def _makes_room_at_key(
        self, key: bytes, peer: bytes, subnet: str, is_there: Callable[[bytes], bool], now: float
    ) -> bool:
        records = self._keys.get(key, {})
        same = [other for other, record in records.items() if record.subnet == subnet]
        if len(same) >= max_per_subnet(subnet):
            candidates = [*self._unsettled(same, records, is_there, now), peer]
        elif len(records) >= MAX_PROVIDERS:
            candidates = self._unsettled(records, records, is_there, now)
        else:
            return True
        victim = self._rng.choice(candidates)
        if victim != peer:
            self._remove(key, victim)
        return victim != peer

    def _unsettled(
        self, peers: Iterable[bytes], records: dict[bytes, _Record], is_there: Callable[[bytes], bool], now: float
    ) -> list[bytes]:
        """All but the half that is still there and known for longest."""
        by_age = sorted(peers, key=lambda peer: records[peer].first_at)
        settled = [peer for peer in by_age if is_there(peer) or now - records[peer].last_at < FRESH_S]
        return [peer for peer in by_age if peer not in settled[: len(by_age) // 2]]

    def _remove(self, key: bytes, peer: bytes) -> None:
        record = self._keys[key].pop(peer)
        if not self._keys[key]:
            del self._keys[key]
        peers = self._told_by[record.subnet]
        del peers[peer][key]
        if not peers[peer]:
            del peers[peer]
        if not peers:
            del self._told_by[record.subnet]
        self._places.free(peer, record.subnet)

    def check_invariants(self) -> None:
        self._places.check_invariants()
        kept = {(key, peer) for key, records in self._keys.items() for peer in records}
        told = {(key, peer) for peers in self._told_by.values() for peer, keys in peers.items() for key in keys}
        assert kept == told and len(kept) == len(self)
        for records in self._keys.values():
            assert 0 < len(records) <= MAX_PROVIDERS
            subnets = [record.subnet for record in records.values()]
            assert all(subnets.count(one) <= max_per_subnet(one) for one in subnets)


def max_per_subnet(subnet: str) -> int:
    if is_local(subnet):
        return PER_LOCAL
    return PER_RELAY if subnet.startswith(VIA) else PER_SUBNET
