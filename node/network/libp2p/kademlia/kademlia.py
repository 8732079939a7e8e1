"""The Kademlia table of all nodes, as a node that looks up and provides sees it: libp2p's protocol, this node's own
lookups. What others are answered is in ``server.py``.

libp2p's own lookup finds the nearest twenty peers, in rounds that each wait for the slowest, before it asks one of them
for providers, keeps whatever anybody tells, and dials all of it. Here a lookup goes on as soon as one peer answers,
keeps what it was told to itself, and dials few peers on the word of one.
"""

import random
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

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
from mycelia.node.network.libp2p.outbound import DIAL_DEADLINE_S, Origin
from mycelia.node.network.network import NetworkError
from mycelia.node.peer_id import peer_text
from mycelia.proto.admission.households import is_local
from mycelia.proto.kademlia.lookup import WIDTH, Lookup
from mycelia.proto.kademlia.peer_buckets import BUCKET_SIZE, PeerBuckets, point_of
from mycelia.proto.wire.errors import RemoteError

log = structlog.get_logger()

WALK_ENOUGH = 3
"""Kademlia's beta."""
MAX_DIALS_PER_TELLER = 8
"""Peers that a lookup dials on its way on the word of one public household, or one peer of a private network, and as
many providers that it tells of."""
MAX_FOUND = 64
"""Providers that one lookup keeps."""
PREFIX_REPLICAS, MODEL_REPLICAS = 8, BUCKET_SIZE
"""Peers that keep the record of a prefix: enough that some live for half an hour, and cheaper than Kademlia's 20."""
PROVIDERS_ENOUGH = 8
"""Of the peers nearest to a model's key that are asked for all its providers."""
REFRESH_INTERVAL_S = 600.0
REFRESH_DEADLINE_S = 60.0


@dataclass(frozen=True)
class _Told:
    """A peer that a lookup heard of."""

    addresses: Sequence[bytes]
    teller: bytes
    """Who told of it; empty: this node's own table."""
    account: bytes
    """On which the dial is counted, see ``Kademlia._account``."""


@dataclass(frozen=True)
class _Found:
    """A provider that a lookup heard of."""

    addresses: list[Multiaddr]
    account: bytes = b""
    """Likewise; empty: it told this node itself."""


@dataclass
class _Walk:
    """A lookup under way."""

    kind: Kind
    key: bytes
    lookup: Lookup[bytes]
    told: dict[bytes, _Told] = field(default_factory=dict)
    found: dict[bytes, _Found] = field(default_factory=dict)
    """By provider."""
    dialled_for: Counter[bytes] = field(default_factory=Counter)
    """Account -> peers that were dialled on it."""

    def hear(self, peer: bytes, addresses: Sequence[bytes], teller: bytes = b"", account: bytes = b"") -> None:
        if self.lookup.hear(peer, point_of(peer)):
            self.told[peer] = _Told(addresses, teller, account)


class Kademlia:
    """One node's part in the table. ``rng`` draws which providers it keeps for others, and which of one teller it may
    dial, when there are too many."""

    def __init__(self, host: Host, rng: random.Random) -> None:
        self._host = host
        self._table = host.table
        self._me = host.settings.identity.peer_id
        self._rng = rng
        self.buckets = PeerBuckets(self._me)
        self.server = KademliaServer(host, self.buckets, rng)
        if host.settings.listen:  # (others would ask in vain for what nobody can dial)
            host.serve(KAD_PROTOCOL, self.server.serve)

    async def run(self) -> None:
        """Looks for new peers, near and far, from time to time: what a node looks up and provides fills the table
        before. Never returns."""
        while True:
            await trio.sleep(REFRESH_INTERVAL_S)
            with trio.move_on_after(REFRESH_DEADLINE_S):
                await self._walk(Kind.FIND_NODE, self._me, BUCKET_SIZE)
                for _ in range(min(len(self.buckets), 8)):
                    await self._walk(Kind.FIND_NODE, secrets.token_bytes(32), WALK_ENOUGH)

    def introduce(self, peer: bytes) -> None:
        """A connected peer, which this node found: into the table."""
        self.server.note(peer)

    async def provide(self, key: bytes) -> int:
        """Tells the nearest peers that this node provides the key of a model; how many took it."""
        return await self._provide(key, PROVIDERS_ENOUGH, MODEL_REPLICAS)

    async def provide_prefix(self, key: bytes) -> int:
        """Likewise the key of a prefix, of which there are many."""
        return await self._provide(key, WALK_ENOUGH, PREFIX_REPLICAS)

    async def _provide(self, key: bytes, enough: int, replicas: int) -> int:
        request = self.server.provide(key)
        walk = await self._walk(Kind.GET_PROVIDERS, key, enough)
        took: list[bytes] = []

        async def tell(peer: bytes) -> None:
            with trio.move_on_after(DIAL_DEADLINE_S):
                if await self._exchange(peer, request) is not None:
                    took.append(peer)

        async with trio.open_nursery() as nursery:
            for peer in walk.lookup.nearest_answered()[:replicas]:
                nursery.start_soon(tell, peer)
        return len(took)

    async def find_providers(self, key: bytes) -> list[PeerInfo]:
        """Providers of ``key``, also those that this node keeps itself, as PROVIDERS_ENOUGH of the nearest tell."""
        walk = await self._walk(Kind.GET_PROVIDERS, key, PROVIDERS_ENOUGH)
        for provider in self.server.providers(key):
            walk.found.setdefault(provider.peer, _Found([Multiaddr(address) for address in provider.addresses]))
        return self._providers(walk)

    async def find_first_providers(self, key: bytes) -> list[PeerInfo]:
        """Providers of ``key`` as the first peer tells that knows any; none when the peers nearest to it know none.

        With a tenth of the peers gone that takes 2 s, simulated, and libp2p's way 17 s.
        """
        return self._providers(await self._walk(Kind.GET_PROVIDERS, key, WALK_ENOUGH, stops_at_providers=True))

    def _providers(self, walk: _Walk) -> list[PeerInfo]:
        """Those that a lookup found and that are connected or may be dialled: of one account not more than may be
        dialled on it, drawn by lot, so that the next lookup has others."""
        providers, num_on = [], Counter[bytes]()
        for peer, found in self._rng.sample(sorted(walk.found.items(), key=lambda one: one[0]), len(walk.found)):
            is_counted = found.account and peer not in self._table
            if found.addresses and not (is_counted and num_on[found.account] >= MAX_DIALS_PER_TELLER):
                num_on[found.account] += bool(is_counted)
                providers.append(PeerInfo(ID(peer), found.addresses))
        return providers

    def _account(self, teller: bytes) -> bytes:
        """On what is counted that peers are dialled on the word of ``teller``: keys are free, addresses are not, but
        whole swarms live at one private address."""
        household = self._table.household(teller)
        return teller if not household or is_local(household) else household.encode()

    async def _walk(self, kind: Kind, key: bytes, enough: int, stops_at_providers: bool = False) -> _Walk:
        """A lookup of ``key``, as ``proto/kademlia/lookup.py`` has it; over at the first provider if
        ``stops_at_providers``."""
        lookup = Lookup[bytes](point_of(key), enough)
        walk = _Walk(kind, key, lookup)
        for peer in self.buckets.nearest(key, BUCKET_SIZE):
            walk.hear(peer, self.server.contact(peer).addresses)
        if len(walk.told) < WIDTH:
            for peer in self._table.peers():
                walk.hear(peer, ())
        changed = trio.Event()

        async def ask(peer: bytes) -> None:
            if await self._ask(walk, peer):
                lookup.answered(peer)
            else:
                lookup.failed(peer)
            if stops_at_providers and walk.found:
                lookup.stop()
            changed.set()

        async with trio.open_nursery() as nursery:
            while not lookup.is_over:
                for peer in lookup.next_peers():
                    nursery.start_soon(ask, peer)
                await changed.wait()
                changed = trio.Event()
            nursery.cancel_scope.cancel()
        return walk

    async def _ask(self, walk: _Walk, peer: bytes) -> bool:
        """Asks one peer, and notes in ``walk`` what it tells; whether it answered."""
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
            if contact.peer not in walk.found and contact.peer != self._me and len(walk.found) < MAX_FOUND:
                walk.found[contact.peer] = _Found(dialable(contact.addresses, address), account)
                await trio.lowlevel.checkpoint()  # (what strangers send as addresses may take milliseconds)

    async def _reach(self, walk: _Walk, peer: bytes) -> bool:
        """Connects with a peer that somebody told of, unless that one told of too many, or the peer was disconnected
        this moment: its loss would go unnoticed."""
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
            log.debug("told of a peer that cannot be reached", peer=peer_text(peer), reason=str(exc))
            self.buckets.remove(peer)
            return False
        return True

    async def _exchange(self, peer: bytes, request: Request) -> Answer | None:
        """What a connected peer answers; None: nothing that could be understood."""
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
