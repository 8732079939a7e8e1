"""The nodes with which this node had long connections. After a restart it finds its swarm through them.

Addresses are hints: the handshake proves that the dialled peer is the right one. A node's worth is the length of its
longest connection, halved for each day without a connection. Therefore many newcomers do not replace long-known nodes,
and nodes that never return make room.

Keys are free, so few peers of one public subnet (``admission/subnets.py``) are remembered, those of the greatest worth.
One private address may have most of the places, since whole swarms run on one machine.

Invariant: at most ``MAX_KNOWN`` peers, of which ``MAX_OF_A_SUBNET`` of one public subnet and
``MAX_OF_A_LOCAL_ADDRESS`` of one private address, each with 1 to ``MAX_ADDRESSES`` addresses that can be dialled.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mycelia.node.network.addresses import parse
from mycelia.node.peer_id import is_ed25519, peer_text
from mycelia.node.storage.sealed import SealedFile
from mycelia.proto.admission.subnets import is_local, subnet_of
from mycelia.proto.wire.errors import LocalError

MAX_KNOWN = 64
MAX_OF_A_SUBNET = 4
MAX_OF_A_LOCAL_ADDRESS = 48
MAX_ADDRESSES = 4
MAX_ADDRESS_CHARS = 128
MAX_NAMESPACES = 16
STABLE_S = 10.0
"""Shortest connection with a node to be remembered."""
HALF_LIFE_S = 86_400.0
MAX_CONNECTED_S = 365 * 86_400.0
MAX_ENTRIES = 8
"""Nodes that a command tries when its own node is lost."""


@dataclass(frozen=True)
class KnownPeer:
    """A node at the time of its last connection."""

    peer: bytes
    addresses: tuple[str, ...]
    """Multiaddrs without the peer id: first the one that was dialled, then those that the peer announced."""
    namespaces: tuple[bytes, ...]
    """The namespaces of the models that it served."""
    connected_s: float
    """The length of the longest connection with it, halved for each day without one."""
    seen_at: float
    """Unix time in seconds."""
    subnet: str = ""
    """The subnet of the connection with it. The peer can choose its addresses, but not this. Empty in files of earlier
    versions, where the first address's subnet is used."""

    def full_addresses(self) -> list[str]:
        return [f"{address}/p2p/{peer_text(self.peer)}" for address in self.addresses]


PEERS_FILE = SealedFile("peers.msgpack", list[KnownPeer], "the node joins through its bootstrap peers alone")


class KnownPeers:
    """The remembered nodes. Times are Unix seconds."""

    def __init__(self, known: Sequence[KnownPeer] = (), now: float = 0.0) -> None:
        """known: the result of ``rows`` before a restart. Impossible values are left out, and times in the future
        become ``now``: the clock was or is wrong."""
        self._known: dict[bytes, KnownPeer] = {}
        for one in known:
            if is_ed25519(one.peer) and math.isfinite(one.connected_s) and math.isfinite(one.seen_at):
                connected_s = min(max(one.connected_s, 0.0), MAX_CONNECTED_S)
                self._put(replace(one, connected_s=connected_s, seen_at=min(one.seen_at, now)), now)

    def note(
        self,
        peer: bytes,
        addresses: Sequence[str],
        namespaces: Collection[bytes],
        connected_s: float,
        now: float,
        remote_address: str = "",
    ) -> None:
        """Remembers ``peer``, which has been connected for ``connected_s``, unless that is too short or no address can
        be dialled. remote_address: the multiaddr of the connection's other end. Mutates."""
        if connected_s < STABLE_S:
            return
        before = self._known.get(peer)
        longest_s = max(connected_s, self._worth(before, now) if before else 0.0)
        subnet = subnet_of(remote_address)
        self._put(KnownPeer(peer, tuple(addresses), tuple(namespaces), longest_s, now, subnet), now)

    def forget(self, peer: bytes) -> None:
        """Removes a peer that misbehaved. Mutates."""
        self._known.pop(peer, None)

    def __len__(self) -> int:
        return len(self._known)

    def full_addresses(self) -> list[str]:
        """All addresses with their peer ids, those of the nodes of the greatest worth first."""
        now = max((one.seen_at for one in self._known.values()), default=0.0)
        return [address for one in self.rows(now) for address in one.full_addresses()]

    def rows(self, now: float) -> list[KnownPeer]:
        """All nodes, those of the greatest worth first."""
        return sorted(self._known.values(), key=lambda one: (-self._worth(one, now), one.peer))

    def _put(self, one: KnownPeer, now: float) -> None:
        addresses = tuple(filter(_can_be_dialled, one.addresses))[:MAX_ADDRESSES]
        if not addresses:
            return
        subnet = one.subnet or subnet_of(addresses[0])
        namespaces = one.namespaces[:MAX_NAMESPACES]
        self._known[one.peer] = replace(one, addresses=addresses, namespaces=namespaces, subnet=subnet)
        of_subnet = [other for other in self.rows(now) if other.subnet == subnet]
        if len(of_subnet) > (MAX_OF_A_LOCAL_ADDRESS if is_local(subnet) else MAX_OF_A_SUBNET):
            del self._known[of_subnet[-1].peer]
        elif len(self._known) > MAX_KNOWN:
            del self._known[self.rows(now)[-1].peer]

    def _worth(self, one: KnownPeer, now: float) -> float:
        return one.connected_s * math.exp2(-max(now - one.seen_at, 0.0) / HALF_LIFE_S)


def entries_known(data_dir: Path, namespace: bytes, now: float) -> list[str]:
    """Full multiaddrs of the best at most MAX_ENTRIES nodes of ``namespace`` (empty: of any) that the node of
    ``data_dir`` remembers, for asking them when that node is lost. Changes nothing."""
    rows = KnownPeers(PEERS_FILE.peek(data_dir) or [], now).rows(now)
    fit = [one for one in rows if not namespace or namespace in one.namespaces]
    return [address for one in fit[:MAX_ENTRIES] for address in one.full_addresses()]


def _can_be_dialled(address: str) -> bool:
    try:
        return len(address) <= MAX_ADDRESS_CHARS and "/p2p/" not in address and parse(address) is not None
    except LocalError:
        return False
