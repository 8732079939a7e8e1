"""Lookups in the Kademlia table, and the announcements of what this node provides. The protocol is libp2p's; the
lookups are this node's own. ``server.py`` answers the requests of other nodes.

libp2p's own lookup first finds the nearest twenty peers, in rounds that each wait for the slowest peer, and only then
asks one of them for providers. It keeps every address that any peer sends and dials all of them. Here a lookup goes on
as soon as one peer answers, forgets the answers at its end, and dials only a few of the peers that one peer names.
"""

import random
import secrets
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice, zip_longest

import structlog
import trio
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr

from mycelia.node.network.libp2p.frames import Frames
from mycelia.node.network.libp2p.host import Host
from mycelia.node.network.libp2p.kademlia.messages import (
    KAD_PROTOCOL,
    MAX_ANSWER_BYTES,
    Answer,
    Kind,
    Request,
    dialable,
    encode_request,
    parse_answer,
)
from mycelia.node.network.libp2p.kademlia.server import KademliaServer
from mycelia.node.network.libp2p.outbound import DIAL_DEADLINE_S, MAX_DIAL_ADDRESSES, Origin
from mycelia.node.network.network import NetworkError
from mycelia.node.peer_id import peer_text
from mycelia.node.signals import Signal
from mycelia.proto.admission.subnets import is_local
from mycelia.proto.kademlia.lookup import WIDTH, Lookup
from mycelia.proto.kademlia.peer_buckets import BUCKET_SIZE, PeerBuckets, point_of
from mycelia.proto.wire.errors import RemoteError

log = structlog.get_logger()

WALK_ENOUGH = 3
"""Kademlia's beta."""
MAX_DIALS_PER_TELLER = 8
"""Bound of the peers that a lookup dials, and of the providers that it returns, for one public subnet that names them
or for one peer in a private network."""
MAX_FOUND = 64
"""Providers that one lookup keeps."""
MAX_TELLERS = 4
"""Subnets whose addresses of one provider are kept. With one only, the fastest liar would choose them."""
PREFIX_REPLICAS, MODEL_REPLICAS = 8, BUCKET_SIZE
"""Peers that keep one record. Of the 8 that keep a prefix's, some live for half an hour; Kademlia's 20 cost more."""
PROVIDERS_ENOUGH = 8
"""Number of peers nearest to a model's key that are asked for all its providers."""
WALK_DEADLINE_S = 15.0
REFRESH_INTERVAL_S = 600.0
REFRESH_DEADLINE_S = 60.0


@dataclass(frozen=True)
class _Told:
    """What a lookup knows of a peer to ask."""

    addresses: Sequence[bytes]
    teller: bytes
    """The peer that named it; empty: this node's own table."""
    account: bytes
    """The account to which the dial is charged, see ``Kademlia._account``."""


@dataclass
class _Walk:
    """A lookup under way."""

    kind: Kind
    key: bytes
    lookup: Lookup[bytes]
    told: dict[bytes, _Told] = field(default_factory=dict)
    found: dict[bytes, dict[bytes, list[Multiaddr]]] = field(default_factory=dict)
    """Provider -> account -> the provider's addresses by that account's first answer, in the order of arrival. The
    empty account stands for what the provider itself announced to this node."""
    dialled_for: Counter[bytes] = field(default_factory=Counter)
    """Account -> number of peers that were dialled on it."""

    def hear(self, peer: bytes, addresses: Sequence[bytes], teller: bytes = b"", account: bytes = b"") -> None:
        if self.lookup.hear(peer, point_of(peer)):
            self.told[peer] = _Told(addresses, teller, account)

    def has_room(self, provider: bytes, account: bytes) -> bool:
        """Whether the addresses of ``provider`` that ``account`` names are to be kept."""
        tellers = self.found.get(provider)
        if tellers is None:
            return len(self.found) < MAX_FOUND
        return account not in tellers and len(tellers) < MAX_TELLERS


class Kademlia:
    """One node's part in the table. When there are too many candidates, ``rng`` draws the providers that this node
    keeps for others, and those that a lookup returns."""

    def __init__(self, host: Host, rng: random.Random) -> None:
        self._host = host
        self._table = host.table
        self._me = host.settings.identity.peer_id
        self._rng = rng
        self.buckets = PeerBuckets(self._me)
        self.server = KademliaServer(host, self.buckets, rng)
        self._is_serving = False
        self.set_serving(True)

    async def run(self) -> None:
        """Looks for new peers, near and far, every REFRESH_INTERVAL_S. Until the first time, the node's own lookups
        fill the table. Never returns."""
        while True:
            await trio.sleep(REFRESH_INTERVAL_S)
            with trio.move_on_after(REFRESH_DEADLINE_S):
                await self._walk(Kind.FIND_NODE, self._me, BUCKET_SIZE)
                for _ in range(min(len(self.buckets), 8)):
                    await self._walk(Kind.FIND_NODE, secrets.token_bytes(32), WALK_ENOUGH)

    def set_serving(self, is_wanted: bool) -> bool:
        """Sets whether this node answers the lookups of others: one that they cannot dial is of no use in their tables.
        Returns whether that is new."""
        is_wanted = is_wanted and bool(self._host.settings.listen)
        is_new = is_wanted != self._is_serving
        self._is_serving = is_wanted
        if is_new and is_wanted:
            self._host.serve(KAD_PROTOCOL, self.server.serve)
        elif is_new:
            self._host.serve_no_more(KAD_PROTOCOL)
        return is_new

    def introduce(self, peer: bytes) -> None:
        """Adds ``peer``, which this node found and is connected with, to the table."""
        self.server.note(peer)

    async def provide_prefix(self, key: bytes) -> int:
        """Announces to the nearest peers that this node provides the key of a prefix. Returns how many took it."""
        return await self._announce(await self._walk(Kind.GET_PROVIDERS, key, WALK_ENOUGH), PREFIX_REPLICAS)

    async def _announce(self, walk: _Walk, replicas: int) -> int:
        """Announces to the nearest peers that answered the lookup that this node provides its key. Returns how many
        took it."""
        request = self.server.provide(walk.key)
        took: list[bytes] = []

        async def announce(peer: bytes) -> None:
            with trio.move_on_after(DIAL_DEADLINE_S):
                if await self._exchange(peer, request) is not None:
                    took.append(peer)

        async with trio.open_nursery() as nursery:
            for peer in walk.lookup.nearest_answered()[:replicas]:
                nursery.start_soon(announce, peer)
        return len(took)

    async def find_providers(self, key: bytes, announces: bool = False) -> list[PeerInfo]:
        """The providers of ``key`` that PROVIDERS_ENOUGH of the nearest peers name or that this node keeps itself.
        announces: announce to the nearest peers that this node provides the key, too."""
        walk = await self._walk(Kind.GET_PROVIDERS, key, PROVIDERS_ENOUGH)
        for provider in self.server.providers(key):
            own_word = [Multiaddr(address) for address in provider.addresses]
            walk.found[provider.peer] = {b"": own_word, **walk.found.get(provider.peer, {})}
        if announces:
            await self._announce(walk, MODEL_REPLICAS)
        return self._providers(walk)

    async def find_first_providers(self, key: bytes) -> list[PeerInfo]:
        """The providers of ``key`` that the first peer names which knows any; empty when the nearest peers know none.

        With a tenth of the peers gone this takes 2 s in the simulator; libp2p's lookup takes 17 s.
        """
        return self._providers(await self._walk(Kind.GET_PROVIDERS, key, WALK_ENOUGH, stops_at_providers=True))

    def _providers(self, walk: _Walk) -> list[PeerInfo]:
        """The providers that a lookup found and that are connected or may be dialled. Each account gives at most
        MAX_DIALS_PER_TELLER of them, drawn at random, so that the next lookup returns others."""
        providers, num_on = [], Counter[bytes]()
        for peer, tellers in self._rng.sample(sorted(walk.found.items(), key=lambda one: one[0]), len(walk.found)):
            used: list[list[Multiaddr]] = []
            for account, addresses in tellers.items():
                new = [address for address in addresses if not any(address in others for others in used)]
                is_counted = account != b"" and peer not in self._table
                if new and not (is_counted and num_on[account] >= MAX_DIALS_PER_TELLER):
                    num_on[account] += is_counted
                    used.append(new)
            if used:
                providers.append(PeerInfo(ID(peer), list(islice(_by_turns(used), MAX_DIAL_ADDRESSES))))
        return providers

    def _account(self, teller: bytes) -> bytes:
        """The account that is charged for dials of peers that ``teller`` names: its subnet, since keys are free and
        addresses are not. In a private network it is the peer itself, since a whole swarm may have one address."""
        subnet = self._table.subnet(teller)
        return teller if not subnet or is_local(subnet) else subnet.encode()

    async def _walk(self, kind: Kind, key: bytes, enough: int, stops_at_providers: bool = False) -> _Walk:
        """A lookup of ``key`` by the rules of ``proto/kademlia/lookup.py``, of at most WALK_DEADLINE_S: on a busy
        machine part of the answers is better than none. stops_at_providers: ends at the first provider."""
        lookup = Lookup[bytes](point_of(key), enough)
        walk = _Walk(kind, key, lookup)
        for peer in self.buckets.nearest(key, BUCKET_SIZE):
            # (a connected peer is not dialled, and collecting its addresses is half of the cost of a lookup)
            walk.hear(peer, () if peer in self._table else self.server.contact(peer).addresses)
        if len(walk.told) < WIDTH:
            for peer in self._table.peers():
                walk.hear(peer, ())
        changed = Signal()

        async def ask(peer: bytes) -> None:
            if await self._ask(walk, peer):
                lookup.answered(peer)
            else:
                lookup.failed(peer)
            if stops_at_providers and walk.found:
                lookup.stop()
            changed.notify()

        with trio.move_on_after(WALK_DEADLINE_S):
            async with trio.open_nursery() as nursery:
                while not lookup.is_over:
                    for peer in lookup.next_peers():
                        nursery.start_soon(ask, peer)
                    await changed.wait()
                nursery.cancel_scope.cancel()
        return walk

    async def _ask(self, walk: _Walk, peer: bytes) -> bool:
        """Asks one peer and adds its answer to ``walk``. Returns whether it answered."""
        with trio.move_on_after(DIAL_DEADLINE_S):
            if peer not in self._table and not await self._reach(walk, peer):
                return False
            answer = await self._exchange(peer, Request(walk.kind, walk.key))
            if answer is None:
                return False
            self.introduce(peer)
            for contact in answer.closer:
                if contact.peer != self._me:
                    walk.hear(contact.peer, contact.addresses, peer, self._account(peer))
            await self._note_providers(walk, peer, answer)
            return True
        if peer not in self._table:
            self.buckets.remove(peer)
        return False

    async def _note_providers(self, walk: _Walk, teller: bytes, answer: Answer) -> None:
        address, account = self._table.teller_address(teller), self._account(teller)
        for contact in answer.providers:
            if contact.peer != self._me and walk.has_room(contact.peer, account):
                walk.found.setdefault(contact.peer, {})[account] = dialable(contact.addresses, address)
                await trio.lowlevel.checkpoint()  # (parsing a stranger's addresses may take milliseconds)

    async def _reach(self, walk: _Walk, peer: bytes) -> bool:
        """Connects with a peer that another peer named. Returns False at once when that other peer named too many, or
        when the peer was disconnected a moment ago, since a new connection would hide that loss."""
        told = walk.told[peer]
        if self._table.is_leaving(peer) or walk.dialled_for[told.account] >= MAX_DIALS_PER_TELLER:
            return False
        candidates = [Multiaddr(address) for address in told.addresses]
        if told.teller:
            walk.dialled_for[told.account] += 1
            candidates = dialable(told.addresses, self._table.teller_address(told.teller))
        try:
            await self._host.outbound.dial(peer, candidates, Origin.TOLD)
        except NetworkError as exc:
            log.debug("peer of a lookup is not reachable", peer=peer_text(peer), reason=str(exc))
            self.buckets.remove(peer)
            return False
        return True

    async def _exchange(self, peer: bytes, request: Request) -> Answer | None:
        """The answer of a connected peer; None: there is none that can be understood."""
        try:
            stream = await self._host.outbound.open(peer, KAD_PROTOCOL)
        except NetworkError:
            self.buckets.remove(peer)
            return None
        frames = Frames(stream, MAX_ANSWER_BYTES)
        try:
            await frames.write(encode_request(request))
            if request.kind is Kind.ADD_PROVIDER:
                return Answer(request.kind, request.key)  # (few implementations answer)
            data = await frames.read()
            return parse_answer(data, request.kind) if data is not None else None
        except (NetworkError, RemoteError) as exc:
            log.debug("kademlia request failed", peer=peer_text(peer), reason=str(exc))
            return None
        finally:
            with trio.CancelScope(shield=True):
                await frames.close()


def _by_turns(lists: Iterable[Sequence[Multiaddr]]) -> Iterable[Multiaddr]:
    """The first address of each list, then the second of each, and so on: no list takes all places."""
    return (address for turn in zip_longest(*lists) for address in turn if address is not None)
