"""The serving side of Kademlia: a node's answers to other nodes.

All of it is bounded: streams and requests by peer and subnet, the bytes of a request before it is read, the time of
each step, the providers that are kept (``proto/kademlia/provider_records.py``) and the peers in an answer.

Nothing here is an offence: a stream that asks too much, stays silent or carries nonsense is reset.
"""

import math
import random
from collections import OrderedDict
from collections.abc import Callable

import structlog
import trio
from libp2p.abc import INetStream
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStoreError

from mycelia.node.network.addresses import told_addresses
from mycelia.node.network.libp2p.closing import reset_stream
from mycelia.node.network.libp2p.frames import Frames
from mycelia.node.network.libp2p.host import Host
from mycelia.node.network.libp2p.kademlia.messages import (
    KAD_PROTOCOL,
    MAX_CONTACTS,
    MAX_OWN_ADDRESSES,
    MAX_REQUEST_BYTES,
    Answer,
    Kind,
    Request,
    dialable,
    encode_answer,
    parse_request,
)
from mycelia.node.network.libp2p.outbound import MAX_DIAL_ADDRESSES
from mycelia.node.network.network import NetworkError
from mycelia.node.peer_id import peer_text
from mycelia.proto.admission.pace import Pace, Rate
from mycelia.proto.admission.places import Admission
from mycelia.proto.kademlia.keys import is_model_key, is_prefix_key
from mycelia.proto.kademlia.peer_buckets import PeerBuckets
from mycelia.proto.kademlia.provider_records import Contact, ProviderRecords
from mycelia.proto.wire.errors import RemoteError

log = structlog.get_logger()

MAX_MODEL_RECORDS = 2_048
MAX_PREFIX_RECORDS = 8_192
"""In a split swarm a node has up to 64 keys of prefixes, and 8 others store each: 512 at a node. Each kind has its own
room, since anybody can invent prefixes, and without the keys of models newcomers find no node."""
MAX_STREAMS = 64
MAX_STREAMS_PER_PEER = 8
PATIENCE_S = 10.0
"""Time for the next request on a stream. An honest peer has it ready."""
REQUESTS_OF_A_PEER, REQUESTS_OF_A_SUBNET, REQUESTS_OF_A_PRIVATE_NETWORK = (
    Rate(20.0, 300.0),
    Rate(40.0, 600.0),
    Rate(400.0, 6_000.0),
)
"""Requests a second, each about 1 ms of processor time; requests over the rate wait. In a small swarm a node announces
all its 64 prefixes to each of the others at once."""
MAX_OWN, OWN_S = 1_024, 3_600.0
"""Number of keys that this node itself provides, and how long each is valid after its announcement."""
ADDRESSES_S = 60.0
"""Time after which the addresses of a connected peer are looked up again."""


class KademliaServer:
    """Answers requests from the peers in ``buckets`` and the provider records that it keeps."""

    def __init__(
        self,
        host: Host,
        buckets: PeerBuckets,
        rng: random.Random,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        self._host = host
        self._clock = clock
        self._buckets = buckets
        self._models = ProviderRecords(MAX_MODEL_RECORDS, rng)
        self._prefixes = ProviderRecords(MAX_PREFIX_RECORDS, rng)
        self._me = host.settings.identity.peer_id
        self._own: OrderedDict[bytes, float] = OrderedDict()
        """Key that this node provides -> when it was announced last."""
        self.streams: Admission[trio.CancelScope] = Admission(MAX_STREAMS, MAX_STREAMS_PER_PEER)
        self._pace = Pace(REQUESTS_OF_A_PEER, REQUESTS_OF_A_SUBNET, REQUESTS_OF_A_PRIVATE_NETWORK)
        self.num_refused = 0
        """Streams that were reset."""

    async def serve(self, stream: INetStream) -> None:
        """Serves one stream of a peer until it ends, is silent for PATIENCE_S or breaks a bound."""
        peer = stream.muxed_conn.peer_id.to_bytes()
        subnet = self._host.table.subnet(peer)
        scope, is_done = trio.CancelScope(), False
        given_up = self.streams.admit(scope, peer, subnet, trio.current_time())
        for other in given_up or ():
            other.cancel()
        try:
            with scope:
                if given_up is None:
                    raise NetworkError("too many streams")
                await self._serve(Frames(stream, MAX_REQUEST_BYTES), peer, subnet)
                is_done = True
        except (NetworkError, RemoteError) as exc:
            log.debug("kademlia stream failed", peer=peer_text(peer), reason=str(exc))
        finally:
            self.streams.release(scope)
            if not is_done:
                self.num_refused += 1
                await reset_stream(stream)

    async def _serve(self, frames: Frames, peer: bytes, subnet: str) -> None:
        while (data := await frames.read(PATIENCE_S)) is not None:
            now = trio.current_time()
            self.streams.use(peer, now)
            delay_s = self._pace.delay_s(peer, subnet, 1.0, now, PATIENCE_S)
            if delay_s is None:
                raise NetworkError("asks too much")
            await trio.sleep(delay_s)
            await frames.write(self.answer(parse_request(data), peer))
        await frames.close()

    def answer(self, request: Request, peer: bytes) -> bytes:
        """The encoded answer to ``peer``. Mutates: keeps what the request announces."""
        self.note(peer)
        match request.kind:
            case Kind.PING:
                return encode_answer(Answer(Kind.PING, b""))
            case Kind.ADD_PROVIDER:
                for told in request.providers:
                    if told.peer == peer:
                        teller = self._host.table.teller_address(peer)
                        self.keep(request.key, peer, [one.to_bytes() for one in dialable(told.addresses, teller)])
                return encode_answer(Answer(request.kind, request.key))
            case _:
                providers = self.providers(request.key) if request.kind is Kind.GET_PROVIDERS else []
                near = [one for one in self._buckets.nearest(request.key, MAX_CONTACTS) if one != peer]
                closer = [contact for one in near if (contact := self.contact(one)).addresses]
                if request.kind is Kind.FIND_NODE and request.key == self._me:
                    closer.insert(0, self._myself())
                answer = Answer(request.kind, request.key, tuple(providers), tuple(closer))
                return encode_answer(answer, self._host.table.peers())

    def provide(self, key: bytes) -> Request:
        """Notes that this node provides ``key`` for the next OWN_S. Returns the announcement to send to others."""
        self._own[key] = self._clock()
        self._own.move_to_end(key)
        if len(self._own) > MAX_OWN:
            self._own.popitem(last=False)
        return Request(Kind.ADD_PROVIDER, key, (self._myself(),))

    def _myself(self) -> Contact:
        told = self._host.raw.get_addrs()[:MAX_OWN_ADDRESSES]
        return Contact(self._me, tuple(address.to_bytes() for address in told))

    def keep(self, key: bytes, peer: bytes, addresses: list[bytes]) -> None:
        """Keeps a record that ``peer`` provides ``key``. ``peer`` announced it over its own connection."""
        records = self._records_of(key)
        if records is not None and addresses:
            subnet = self._host.table.subnet(peer)
            told = Contact(peer, tuple(addresses))
            records.add(key, told, subnet, self._host.table.__contains__, self._clock())

    def providers(self, key: bytes) -> list[Contact]:
        """The providers of ``key`` that this node keeps."""
        now = self._clock()
        own = [self._myself()] if now - self._own.get(key, -math.inf) < OWN_S else []
        records = self._records_of(key)
        return own + (records.providers(key, now) if records is not None else [])

    def note(self, peer: bytes) -> None:
        """Adds ``peer`` to the table if it is connected and may serve others."""
        if peer in self._host.table and self._may_serve(peer):
            subnet = self._host.table.subnet(peer)
            self._buckets.add(peer, subnet, self._host.table.__contains__)

    def _may_serve(self, peer: bytes) -> bool:
        """False if the peer listed its protocols and Kademlia is not among them, as with clients."""
        try:
            spoken = self._host.raw.get_peerstore().get_protocols(ID(peer))
        except PeerStoreError:
            return True
        return not spoken or KAD_PROTOCOL in spoken

    def contact(self, peer: bytes) -> Contact:
        """A peer of the table with the addresses that it announced itself when it was last connected."""
        entry, now = self._buckets.entry(peer), self._clock()
        if entry is None:
            return Contact(peer, ())
        if peer in self._host.table and (not entry.addresses or now > entry.looked_up_at + ADDRESSES_S):
            told = self._host.addresses_of(peer)
            usable = told_addresses(told, self._host.table.teller_address(peer), MAX_DIAL_ADDRESSES)
            entry.addresses = tuple(address.to_bytes() for address in usable)
            entry.looked_up_at = now
        return Contact(peer, entry.addresses)

    def _records_of(self, key: bytes) -> ProviderRecords | None:
        if is_prefix_key(key):
            return self._prefixes
        return self._models if is_model_key(key) else None

    def check_invariants(self) -> None:
        """Raises AssertionError when a bound is exceeded."""
        for part in (self._models, self._prefixes, self._buckets):
            part.check_invariants()
        assert len(self._own) <= MAX_OWN
