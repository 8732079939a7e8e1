"""Kademlia on loopback: the answers that a node gives and the data that it keeps while strangers attack it."""

import random
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import pytest
import trio
from libp2p.abc import INetStream
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from mycelia.bench.attacks.messages import KAD_PROTOCOL, add_provider, many_addresses, say
from mycelia.node.network.identity import new_identity
from mycelia.node.network.libp2p.closing import BROKEN
from mycelia.node.network.libp2p.frames import Frames, length_of
from mycelia.node.network.libp2p.kademlia import kademlia
from mycelia.node.network.libp2p.kademlia import server as kademlia_server
from mycelia.node.network.libp2p.kademlia.kademlia import Kademlia
from mycelia.node.network.libp2p.kademlia.messages import (
    MAX_ANSWER_BYTES,
    MAX_REQUEST_BYTES,
    Answer,
    Kind,
    Request,
    dialable,
    encode_answer,
    encode_request,
    parse_answer,
    parse_request,
)
from mycelia.node.network.libp2p.network import Libp2pNetwork, open_network
from mycelia.node.network.libp2p.outbound import MAX_DIAL_ADDRESSES, Origin
from mycelia.node.network.network import NetworkError
from mycelia.node.peer_id import peer_text
from mycelia.proto.admission.pace import Rate
from mycelia.proto.kademlia.keys import model_key
from mycelia.proto.kademlia.provider_records import PER_LOCAL, Contact
from mycelia.proto.wire.errors import RemoteError
from tests.node.network.libp2p.hostile_messages import ask, get_providers, idle_streams
from tests.node.network.libp2p.network_helpers import PATIENCE_S, eventually, light_client, node
from tests.node.network.libp2p.test_network import connect

KEY = model_key(b"n")
ELSEWHERE = (b"/elsewhere", KEY[2:], b"\x13" + KEY[1:], KEY + b"0")
"""Keys under which nothing is kept."""
ADDRESS = Multiaddr("/ip4/127.0.0.1/tcp/4001").to_bytes()


@asynccontextmanager
async def strangers(victim: Libp2pNetwork, count: int) -> AsyncIterator[list[Libp2pNetwork]]:
    """``count`` peers that are connected with ``victim``."""
    async with trio.open_nursery() as nursery:
        opened: list[Libp2pNetwork] = []

        async def live(task_status: trio.TaskStatus[None]) -> None:
            async with open_network(light_client()) as network:
                await connect(network, victim)
                opened.append(network)
                task_status.started()
                await trio.sleep_forever()

        for _ in range(count):
            await nursery.start(live)
        await eventually(lambda: len(victim.peers()) >= count)
        yield opened
        nursery.cancel_scope.cancel()


def dht_of(network: Libp2pNetwork) -> Kademlia:
    dht = network.discovery.dht
    assert dht is not None
    return dht


async def answered(network: Libp2pNetwork, victim: bytes, data: bytes) -> Message:
    with trio.fail_after(PATIENCE_S):
        answer = Message()
        answer.ParseFromString(await ask(network, victim, data))
        return answer


@pytest.mark.parametrize("first", [b"", b"\x80"])
@pytest.mark.parametrize("count", [12, 100])
async def test_idle_streams_of_one_peer_keep_no_other_from_an_answer(count: int, first: bytes) -> None:
    async with open_network(node()) as one, strangers(one, 2) as (evil, honest):
        await idle_streams(evil, one.peer_id, count, KAD_PROTOCOL, first)
        assert (await answered(honest, one.peer_id, get_providers(KEY))).type == Message.GET_PROVIDERS


async def test_idle_streams_of_many_peers_of_one_address_keep_no_other_from_an_answer() -> None:
    async with open_network(node()) as one, strangers(one, 20) as (honest, *evil):
        for peer in evil:
            await idle_streams(peer, one.peer_id, kademlia_server.MAX_STREAMS_PER_PEER, KAD_PROTOCOL)
        for _ in range(3):
            await answered(honest, one.peer_id, get_providers(KEY))
        assert len(dht_of(one).server.streams) <= kademlia_server.MAX_STREAMS


async def test_a_stream_that_says_nothing_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kademlia_server, "PATIENCE_S", 0.1)
    async with open_network(node()) as one, strangers(one, 1) as (evil,):
        stream = await say(evil, one.peer_id, KAD_PROTOCOL, [get_providers(KEY)])
        frames = Frames(stream, MAX_ANSWER_BYTES)
        with trio.fail_after(PATIENCE_S):
            assert await frames.read()
            assert await frames.read() is None


async def test_a_provider_of_very_many_addresses_is_not_kept() -> None:
    async with open_network(node()) as one, strangers(one, 2) as (evil, honest):
        huge = add_provider(KEY, evil.peer_id, many_addresses(100_000))
        with trio.fail_after(PATIENCE_S), pytest.raises(BROKEN):
            await ask(evil, one.peer_id, huge)
        await answered(evil, one.peer_id, add_provider(KEY, evil.peer_id, many_addresses(1_500)))
        answer = await answered(honest, one.peer_id, get_providers(KEY))
        assert [len(provider.addrs) for provider in answer.providerPeers] == [MAX_DIAL_ADDRESSES]
        assert answer.ByteSize() < 64 * 1_024


async def test_an_answer_is_small_whatever_was_told() -> None:
    async with open_network(node()) as one, strangers(one, PER_LOCAL + 5) as peers:
        relayed = f"/tcp/1/p2p/{peer_text(new_identity().peer_id)}/p2p-circuit"
        long = [Multiaddr(f"/ip4/127.0.0.{host}{relayed}").to_bytes() for host in range(1, 17)]
        for peer in peers:
            await answered(peer, one.peer_id, add_provider(KEY, peer.peer_id, long))
        answer = await answered(peers[0], one.peer_id, get_providers(KEY))
        assert len(answer.providerPeers) == PER_LOCAL
        assert answer.ByteSize() < 16 * 1_024
        store = peers[0].host.raw.get_peerstore()
        assert len(store.peer_ids()) <= 2, "what others told is not kept"


async def test_records_of_one_address_leave_those_of_another() -> None:
    """A stranger could otherwise push out a model's nodes by announcing it with one key after the other."""
    async with (
        open_network(node()) as one,
        open_network(node(listen=("/ip4/127.0.0.2/tcp/0",))) as honest,
    ):
        await connect(one, honest)
        await eventually(lambda: one.peer_id in honest.peers())
        assert one.remote_address(honest.peer_id).startswith("/ip4/127.0.0.2/")
        await dht_of(honest).find_providers(KEY, announces=True)
        await eventually(lambda: dht_of(one).server.providers(KEY))
        for _ in range(30):
            async with open_network(light_client()) as evil:
                await connect(evil, one)
                await answered(evil, one.peer_id, add_provider(KEY, evil.peer_id, [ADDRESS]))
        told = [provider.peer for provider in dht_of(one).server.providers(KEY)]
        assert honest.peer_id in told and len(told) == PER_LOCAL + 1


async def test_nobody_provides_for_another_and_no_other_keys_are_kept() -> None:
    async with open_network(node()) as one, strangers(one, 1) as (evil,):
        await answered(evil, one.peer_id, add_provider(KEY, new_identity().peer_id, [ADDRESS]))
        for key in ELSEWHERE:
            await answered(evil, one.peer_id, add_provider(key, evil.peer_id, [ADDRESS]))
        await answered(evil, one.peer_id, add_provider(KEY, evil.peer_id, []))
        server = dht_of(one).server
        assert not server.providers(KEY) and not any(map(server.providers, ELSEWHERE))


async def test_requests_over_the_rate_are_refused_to_the_one_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kademlia_server, "REQUESTS_OF_A_PEER", Rate(1e-3, 5.0))
    async with open_network(node()) as one, strangers(one, 2) as (evil, honest):

        async def ask_on() -> None:
            while True:
                await ask(evil, one.peer_id, get_providers(KEY))

        with trio.fail_after(PATIENCE_S), pytest.raises(BROKEN):
            await ask_on()
        assert dht_of(one).server.num_refused
        await answered(honest, one.peer_id, get_providers(KEY))


async def test_a_node_is_found_by_its_id_and_pings_are_answered() -> None:
    async with open_network(node()) as one, open_network(node()) as two, open_network(node()) as three:
        for network in (two, three):
            await connect(network, one)
            await eventually(lambda network=network: one.addresses_of(network.peer_id))  # type: ignore[misc]
            dht_of(one).introduce(network.peer_id)
        find = Message(type=Message.FIND_NODE, key=two.peer_id).SerializeToString()
        answer = await answered(three, one.peer_id, find)
        assert answer.closerPeers[0].id == two.peer_id and answer.closerPeers[0].addrs
        assert answer.closerPeers[0].connection == Message.CONNECTED
        assert three.peer_id not in [peer.id for peer in answer.closerPeers], "it knows itself"
        find = Message(type=Message.FIND_NODE, key=one.peer_id).SerializeToString()
        assert (await answered(three, one.peer_id, find)).closerPeers[0].id == one.peer_id
        ping = Message(type=Message.PING).SerializeToString()
        assert (await answered(three, one.peer_id, ping)).type == Message.PING


async def test_a_lookup_dials_few_peers_on_the_word_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """It dials none at an address of this machine when the peer that names them is on another machine."""
    dialled: list[bytes] = []
    made_up = tuple(Contact(new_identity().peer_id, (ADDRESS,)) for _ in range(20))
    async with open_network(node()) as liar, open_network(node()) as one:
        monkeypatch.setattr(
            dht_of(liar).server,
            "answer",
            lambda request, peer: encode_answer(Answer(request.kind, request.key, made_up, made_up)),
        )
        await connect(one, liar)
        dial = one.host.outbound.dial

        async def counted(peer: bytes, candidates: list[Multiaddr], origin: Origin) -> None:
            dialled.append(peer)
            await dial(peer, candidates, origin)

        monkeypatch.setattr(one.host.outbound, "dial", counted)
        found = await dht_of(one).find_providers(KEY)
        assert len(found) == kademlia.MAX_DIALS_PER_TELLER, "of hints that cost a dial each"
        assert 0 < len(dialled) <= kademlia.MAX_DIALS_PER_TELLER
        dialled.clear()
        monkeypatch.setattr(one.table, "remote_address", lambda peer: "/ip4/8.8.8.8/tcp/1")
        assert await dht_of(one).find_providers(KEY) == []


async def test_the_keys_of_one_network_are_one_teller(monkeypatch: pytest.MonkeyPatch) -> None:
    dialled: list[bytes] = []

    async def in_vain(peer: bytes, candidates: list[Multiaddr], origin: Origin) -> None:
        dialled.append(peer)
        raise NetworkError("nobody is there")

    async with open_network(node()) as first, open_network(node()) as second, open_network(node()) as one:
        for number, liar in enumerate((first, second)):
            where = [Multiaddr(f"/ip4/9.9.{number}.{last}/tcp/1").to_bytes() for last in range(20)]
            made_up = tuple(Contact(new_identity().peer_id, (address,)) for address in where)
            monkeypatch.setattr(
                dht_of(liar).server,
                "answer",
                lambda request, peer, told=made_up: encode_answer(Answer(request.kind, request.key, told, told)),
            )
            await connect(one, liar)
        monkeypatch.setattr(one.host.outbound, "dial", in_vain)
        seen_at = {first.peer_id: "/ip4/8.8.8.8/tcp/1", second.peer_id: "/ip4/8.8.8.9/tcp/1"}
        monkeypatch.setattr(one.table, "remote_address", lambda peer: seen_at.get(peer, ""))
        found = await dht_of(one).find_providers(KEY)
        assert len(found) == len(dialled) == kademlia.MAX_DIALS_PER_TELLER


async def test_a_liar_that_answers_first_does_not_choose_a_providers_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    provider = new_identity().peer_id
    real = Multiaddr("/ip4/9.9.9.9/tcp/1")
    bogus = [Multiaddr(f"/ip4/8.1.1.{last}/tcp/1") for last in range(MAX_DIAL_ADDRESSES)]
    liar_was_heard = trio.Event()
    async with open_network(node()) as liar, open_network(node()) as honest, open_network(node()) as one:
        for network, told in ((liar, bogus), (honest, [real])):
            contact = Contact(provider, tuple(address.to_bytes() for address in told))
            monkeypatch.setattr(
                dht_of(network).server,
                "answer",
                lambda request, peer, told=contact: encode_answer(Answer(request.kind, request.key, (told,))),
            )
            await connect(one, network)
        seen_at = {liar.peer_id: "/ip4/8.8.8.8/tcp/1", honest.peer_id: "/ip4/9.9.1.1/tcp/1"}
        monkeypatch.setattr(one.table, "remote_address", lambda peer: seen_at.get(peer, ""))
        open_stream = one.host.outbound.open

        async def open_in_turn(peer: bytes, protocol: str) -> INetStream:
            if peer == honest.peer_id:
                await liar_was_heard.wait()
            return await open_stream(peer, protocol)

        def heard(told: Iterable[bytes], teller: str) -> list[Multiaddr]:
            liar_was_heard.set()
            return dialable(told, teller)

        monkeypatch.setattr(one.host.outbound, "open", open_in_turn)
        monkeypatch.setattr(kademlia, "dialable", heard)
        with trio.fail_after(PATIENCE_S):
            (found,) = await dht_of(one).find_providers(KEY)
        assert real in found.addrs and len(found.addrs) == MAX_DIAL_ADDRESSES


async def test_tables_are_refreshed_and_peers_that_are_gone_leave_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kademlia, "REFRESH_INTERVAL_S", 0.1)
    async with open_network(node()) as one, open_network(node()) as two:
        await connect(two, one)
        async with open_network(node()) as three:
            await connect(three, one)
            await eventually(lambda: three.peer_id in dht_of(two).buckets and two.peer_id in dht_of(three).buckets)
        await eventually(lambda: three.peer_id not in dht_of(two).buckets)


async def test_a_lookup_bears_a_peer_that_answers_nonsense(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_network(node()) as liar, open_network(node()) as one:
        await connect(one, liar)
        ping = encode_answer(Answer(Kind.PING, b""))
        for nonsense in (b"", b"\xff" * 100, bytes(MAX_ANSWER_BYTES + 1), ping):
            monkeypatch.setattr(dht_of(liar).server, "answer", lambda request, peer, data=nonsense: data)
            with trio.fail_after(PATIENCE_S):
                assert await dht_of(one).find_providers(KEY) == []


async def test_what_strangers_told_of_themselves_goes_with_them() -> None:
    async with open_network(node()) as one:
        async with open_network(node()) as two:
            await connect(two, one)
            await eventually(lambda: one.addresses_of(two.peer_id))
        await eventually(lambda: two.peer_id not in one.peers())
        assert one.addresses_of(two.peer_id) == []
        await eventually(lambda: not one.host.raw.get_peerstore().has_peer(ID(two.peer_id)))


# --- messages and frames -------------------------------------------------------------------------------------------


def test_requests_and_answers_are_read_as_written() -> None:
    contact = Contact(new_identity().peer_id, (ADDRESS,))
    request = Request(Kind.ADD_PROVIDER, KEY, (contact,))
    assert parse_request(encode_request(request)) == request
    answer = Answer(Kind.GET_PROVIDERS, KEY, (contact,), (contact,))
    assert parse_answer(encode_answer(answer, [contact.peer]), Kind.GET_PROVIDERS) == answer
    with pytest.raises(RemoteError):
        parse_answer(encode_answer(answer), Kind.FIND_NODE)


@pytest.mark.parametrize(
    "data",
    [
        b"\xff",
        bytes(MAX_REQUEST_BYTES + 1),
        Message(type=Message.GET_VALUE, key=KEY).SerializeToString(),
        Message(type=Message.GET_PROVIDERS).SerializeToString(),
        Message(type=Message.GET_PROVIDERS, key=bytes(129)).SerializeToString(),
    ],
)
def test_other_requests_are_refused(data: bytes) -> None:
    with pytest.raises(RemoteError):
        parse_request(data)


def test_lengths() -> None:
    assert length_of(b"") is None and length_of(b"\x80") is None
    assert length_of(b"\x05abc") == (1, 5)
    assert length_of(b"\x80\x01abc") == (2, 128)
    with pytest.raises(RemoteError):
        length_of(b"\xff\xff\xff\xff\x01")


async def test_a_lookup_that_takes_too_long_returns_what_it_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kademlia, "WALK_DEADLINE_S", 1.0)
    monkeypatch.setattr(kademlia, "DIAL_DEADLINE_S", PATIENCE_S)

    async def never_answer(stream: INetStream) -> None:
        await trio.sleep_forever()

    async with open_network(node()) as one, open_network(node()) as silent, open_network(node()) as other:
        silent.host.serve(KAD_PROTOCOL, never_answer)
        for first, second in ((silent, one), (other, one), (silent, other)):
            await connect(first, second)
        await eventually(lambda: len(one.peers()) == len(other.peers()) == 2)
        told = Contact(silent.peer_id, (ADDRESS,))
        dht_of(other).server.answer(Request(Kind.ADD_PROVIDER, KEY, (told,)), silent.peer_id)
        with trio.fail_after(PATIENCE_S / 2):
            found = await dht_of(one).find_providers(KEY, announces=True)
        assert [info.peer_id.to_bytes() for info in found] == [silent.peer_id]
        expected = {silent.peer_id, one.peer_id}
        await eventually(lambda: {kept.peer for kept in dht_of(other).server.providers(KEY)} == expected)


async def test_frames_within_bounds() -> None:
    for sent, expected in (
        (b"\x03abc\x00", [b"abc", b""]),
        (b"", []),
        (b"\x20" + bytes(31), NetworkError),
        (b"\x21" + bytes(33), RemoteError),
    ):
        stream = _Stream(sent, random.Random(1))
        frames, read = Frames(stream, 32), []  # type: ignore[arg-type]
        if isinstance(expected, list):
            while (frame := await frames.read()) is not None:
                read.append(frame)
            assert read == expected
        else:
            with pytest.raises(expected):
                await frames.read()


class _Stream:
    """Bytes that arrive in pieces of any size."""

    def __init__(self, data: bytes, rng: random.Random) -> None:
        self._data = data
        self._rng = rng

    async def read(self, limit: int) -> bytes:
        await trio.lowlevel.checkpoint()
        size = self._rng.randint(1, 5)
        piece, self._data = self._data[:size], self._data[size:]
        return piece
