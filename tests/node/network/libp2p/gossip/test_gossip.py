"""Gossip from strangers: the parts that reach gossipsub, the memory that they take and the peers that they delay."""

import secrets
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import NoReturn

import pytest
import trio
from libp2p.abc import INetStream
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.custom_types import TProtocol
from libp2p.host.exceptions import StreamFailure
from libp2p.peer.envelope import seal_record
from libp2p.peer.id import ID
from libp2p.peer.peer_record import PeerRecord
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.rpc_queue import RpcQueue
from libp2p.utils.varint import encode_uvarint
from multiaddr import Multiaddr

from mycelia.bench.attacks.messages import GOSSIP_PROTOCOL, many_addresses, prunes, say
from mycelia.node.network.identity import new_identity
from mycelia.node.network.libp2p.gossip import filter as gossip_filter
from mycelia.node.network.libp2p.gossip import gossip
from mycelia.node.network.libp2p.gossip import router as gossip_router
from mycelia.node.network.libp2p.gossip.filter import MAX_RPC_BYTES, filtered
from mycelia.node.network.libp2p.gossip.router import BoundedPubsub, Router
from mycelia.node.network.libp2p.network import Libp2pNetwork
from mycelia.node.network.network import Connected, Gossiped, Malformed
from mycelia.proto.admission.pace import UNBOUNDED, Rate
from mycelia.proto.cells.cells import ROOT
from mycelia.proto.wire.codec import encode
from mycelia.proto.wire.errors import RemoteError
from tests.node.network.libp2p.hostile_messages import prune_with_peers, wrongly_signed
from tests.node.network.libp2p.network_helpers import NAMESPACE, PATIENCE_S, announce, eventually, light_client, node
from tests.node.network.libp2p.test_network import connect, opened, publish_until_told

TOPIC = gossip.topic_of(NAMESPACE, ROOT)
MARK = "mycelia/1/" + 32 * "f"
"""A topic whose subscription shows that a node has read all earlier messages."""


def services(network: Libp2pNetwork) -> tuple[BoundedPubsub, Router]:
    assert network.gossip is not None
    return network.gossip.pubsub, network.gossip.router


def rpc(**parts: object) -> bytes:
    return rpc_pb2.RPC(**parts).SerializeToString()  # type: ignore[arg-type]


def control(**parts: object) -> bytes:
    return rpc(control=rpc_pb2.ControlMessage(**parts))  # type: ignore[arg-type]


def mark() -> bytes:
    return rpc(subscriptions=[rpc_pb2.RPC.SubOpts(subscribe=True, topicid=MARK)])


def is_read(network: Libp2pNetwork, peer: bytes) -> bool:
    return ID(peer) in services(network)[0].peer_topics.get(MARK, set())


async def test_a_prune_that_names_peers_makes_a_node_dial_none() -> None:
    num_dialled = 0

    async def count(stream: trio.SocketStream) -> None:
        nonlocal num_dialled
        num_dialled += 1

    async with opened(node()) as (one, _), opened(light_client()) as (evil, _), trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, count, 0)
        port = listeners[0].socket.getsockname()[1]
        await one.join(NAMESPACE)
        await connect(evil, one)
        told = prune_with_peers(TOPIC, [f"/ip4/127.0.0.1/tcp/{port}"] * 16)
        await say(evil, one.peer_id, GOSSIP_PROTOCOL, [told] * 4 + [mark()])
        await eventually(lambda: is_read(one, evil.peer_id))  # (libp2p would dial before it reads the mark)
        assert not num_dialled
        nursery.cancel_scope.cancel()


async def test_a_hundred_thousand_topics_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gossip, "WORK_OF_A_PEER", UNBOUNDED)
    monkeypatch.setattr(gossip, "WORK_OF_A_PRIVATE_NETWORK", UNBOUNDED)
    async with opened(node()) as (one, _), opened(light_client()) as (evil, _):
        await one.join(NAMESPACE)
        await connect(evil, one)
        told = [prunes([secrets.token_hex(20) for _ in range(2_000)] + [TOPIC]) for _ in range(50)]
        grafts = control(graft=[rpc_pb2.ControlGraft(topicID=secrets.token_hex(20)) for _ in range(2_000)])
        ihave = [rpc_pb2.ControlIHave(topicID=secrets.token_hex(20), messageIDs=[b"x"]) for _ in range(2_000)]
        subscriptions = [rpc_pb2.RPC.SubOpts(subscribe=True, topicid=secrets.token_hex(20)) for _ in range(2_000)]
        with trio.fail_after(PATIENCE_S):
            rest = [grafts, control(ihave=ihave), rpc(subscriptions=subscriptions)]
            await say(evil, one.peer_id, GOSSIP_PROTOCOL, told + rest + [mark()])
        await eventually(lambda: is_read(one, evil.peer_id))
        pubsub, router = services(one)
        assert set(router.back_off) == {TOPIC}
        (until,) = router.back_off[TOPIC].values()
        assert until <= time.time() + gossip_filter.MAX_BACK_OFF_S
        assert set(pubsub.peer_topics) == {MARK}
        assert not router.ihave_message_limits and set(router.graft_flood_tracking[ID(evil.peer_id)]) == {TOPIC}
        router.back_off[TOPIC][ID(evil.peer_id)] = 0
        router._periodic_security_cleanup()  # noqa: SLF001  as libp2p calls it
        assert not router.back_off
        await evil.disconnect(one.peer_id)
        await eventually(lambda: not pubsub.peer_topics and not router.graft_flood_tracking)


async def test_wrong_signatures_cost_the_forwarder_and_hold_up_nobody() -> None:
    async with opened(node()) as (one, log_one), opened(light_client()) as (evil, _), opened(node()) as (two, _):
        for network in (one, two):
            await network.join(NAMESPACE)
        await connect(evil, one)
        await connect(two, one)
        data = wrongly_signed(TOPIC, 100)
        await say(evil, one.peer_id, GOSSIP_PROTOCOL, [data] * 10)
        assert (await log_one.has(Malformed)).peer == evil.peer_id
        assert one.gossip is not None and one.gossip.num_malformed > gossip.WRONG_BURST
        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish_until_told, two)
            assert (await log_one.has(Gossiped)).message.head.owner == two.peer_id
            nursery.cancel_scope.cancel()
        assert {event.peer for event in log_one.of(Malformed)} == {evil.peer_id}


async def test_a_message_that_is_refused_by_one_way_may_come_by_another() -> None:
    """Otherwise a peer could silence an author by forwarding more of its messages than the rate allows."""
    async with opened(node()) as (one, log_one), opened(node()) as (two, _), opened(node()) as (three, _):
        for network in (one, two):
            await network.join(NAMESPACE)
        await connect(three, one)
        pubsub, _ = services(one)
        assert one.gossip is not None
        while one.gossip.authors.take((three.peer_id, two.peer_id), trio.current_time()):
            pass
        sent: list[rpc_pb2.Message] = []

        async def catch(forwarder: ID, message: rpc_pb2.Message) -> None:
            sent.append(message)

        services(two)[0].push_msg = catch  # type: ignore[method-assign, assignment]
        await services(two)[0].publish(TOPIC, encode(announce(two.peer_id)))
        await pubsub.push_msg(ID(three.peer_id), sent[0])
        assert not log_one.of(Gossiped)
        await pubsub.push_msg(ID(two.peer_id), sent[0])
        assert (await log_one.has(Gossiped)).message.head.owner == two.peer_id
        await pubsub.push_msg(ID(two.peer_id), sent[0])
        assert one.gossip.num_over_rate == 1


async def test_signed_records_of_addresses_are_not_read() -> None:
    """Any message may carry any peer's record, and libp2p compares each address with each: 8,000 took seconds."""
    async with opened(node()) as (one, log_one), opened(light_client()) as (evil, _):
        await connect(evil, one)
        await log_one.has(Connected)
        pair, other = evil.host.raw.get_private_key(), create_new_key_pair(secrets.token_bytes(32))
        me, somebody = ID(evil.peer_id), ID.from_pubkey(other.public_key)
        huge = seal_record(PeerRecord(me, [Multiaddr(one) for one in many_addresses(8_000)], 1), pair)
        foreign = seal_record(PeerRecord(somebody, [Multiaddr("/ip4/8.8.8.8/tcp/1")], 1), other.private_key)
        told = [rpc(senderRecord=record.marshal_envelope()) for record in (huge, foreign)]
        await say(evil, one.peer_id, GOSSIP_PROTOCOL, [*told, mark()])
        await eventually(lambda: is_read(one, evil.peer_id))
        store = one.host.raw.get_peerstore()
        assert not store.has_peer(somebody) and one.addresses_of(evil.peer_id) == []


async def test_a_peer_that_sends_too_much_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gossip, "WORK_OF_A_PEER", Rate(1e-3, 10.0))
    async with opened(node()) as (one, log_one), opened(light_client()) as (evil, _):
        await one.join(NAMESPACE)
        await connect(evil, one)
        await say(evil, one.peer_id, GOSSIP_PROTOCOL, [rpc()] * 20 + [mark()])
        await eventually(lambda: one.gossip.num_over_rate)  # type: ignore[union-attr]
        assert not is_read(one, evil.peer_id)
        assert not log_one.of(Malformed), "it costs the peer time alone"


async def test_messages_asked_for_are_sent_once_and_within_bounds() -> None:
    async with opened(node()) as (one, _):
        _, router = services(one)
        ids = []
        for number in range(20):
            message = rpc_pb2.Message(from_id=one.peer_id, seqno=number.to_bytes(8, "big"), data=bytes(20_000))
            router.mcache.put(message)
            ids.append(gossip.message_id(message))
        known, num_bytes = router.known([*ids, b"unknown"])
        assert known == ids[: len(known)] and 1 < len(known) < 20
        assert num_bytes <= gossip_router.MAX_REPLY_BYTES < MAX_RPC_BYTES


async def test_gossip_goes_on_after_one_of_its_streams_broke() -> None:
    async with opened(node()) as (one, _), opened(node()) as (two, log_two):
        for network in (one, two):
            await network.join(NAMESPACE)
        await connect(two, one)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish_until_told, one)
            await log_two.has(Gossiped)
            await services(one)[0].peers[ID(two.peer_id)].reset()
            last = log_two.of(Gossiped)[-1].message.head.seq
            # (libp2p's queue for the stream may hold a few messages)
            await log_two.has(Gossiped, lambda event: event.message.head.seq > last + 10)
            nursery.cancel_scope.cancel()


async def test_a_stream_for_gossip_is_opened_again_when_a_busy_peer_did_not_answer_in_time() -> None:
    async with opened(node()) as (one, log_one), opened(node()) as (two, _):
        pubsub, _ = services(two)
        tries = 0
        new_stream = pubsub.host.new_stream

        async def fail_once(peer: ID, protocols: Sequence[TProtocol]) -> INetStream:
            nonlocal tries
            tries += PROTOCOL_ID_V11 in protocols
            if tries == 1:
                raise StreamFailure("no answer")
            return await new_stream(peer, protocols)

        pubsub.host.new_stream = fail_once  # type: ignore[method-assign, assignment]
        for network in (one, two):
            await network.join(NAMESPACE)
        await connect(two, one)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish_until_told, two)
            await log_one.has(Gossiped)
            nursery.cancel_scope.cancel()
        assert tries == 2


async def test_neighbours_get_messages_in_batches_without_those_that_they_brought() -> None:
    async def never(*_: object) -> NoReturn:
        raise AssertionError("not called for messages that were seen")

    router, peers = Router(gossip.message_id), [ID(new_identity().peer_id) for _ in range(4)]
    async with opened(node()) as (one, _):
        pubsub = BoundedPubsub(one.host.raw, router, gossip.message_id, never, never)
        router.mesh[TOPIC] = set(peers)

        async def sent() -> list[list[list[bytes]]]:
            """For each peer, the sequence numbers of the messages in each RPC that was queued for it."""
            queues = [pubsub.peer_queues.get(peer, RpcQueue()) for peer in peers]
            pubsub.peer_queues = {peer: RpcQueue() for peer in peers}
            for queue in queues:
                queue.close()
            return [[[one.seqno for one in rpc.publish] for rpc in await queued(queue)] for queue in queues]

        await sent()
        first, second, third = (message(seqno=bytes(7) + number) for number in (b"1", b"2", b"3"))
        for told in (first, second, third):
            await router.publish(peers[0], told)
        assert await sent() == [[], *3 * [[[first.seqno]]]]
        pubsub.seen_messages.add(gossip.message_id(second))
        await pubsub.push_msg(peers[1], second)
        router.gossip_heartbeat()
        assert await sent() == [[], [[third.seqno]], *2 * [[[second.seqno, third.seqno]]]]
        await router.publish(peers[0], message())
        router.forget(peers[1])
        router.gossip_heartbeat()
        assert list(map(len, await sent())) == [0, 0, 1, 1]


async def queued(queue: RpcQueue) -> list[rpc_pb2.RPC]:
    """What is in a closed queue."""
    found: list[rpc_pb2.RPC] = []
    while (rpc := await queue.pop()) is not None:
        found.append(rpc)
    return found


def test_messages_are_announced_once_to_a_few_peers_after_they_had_time_to_come() -> None:
    router, peers = Router(gossip.message_id), {ID(new_identity().peer_id) for _ in range(60)}
    router.pubsub = SimpleNamespace(peer_topics={TOPIC: peers})  # type: ignore[assignment]
    router.peer_protocol = dict.fromkeys(peers, PROTOCOL_ID_V11)
    router.mesh[TOPIC] = set()
    ids: list[bytes] = []
    announced: list[bytes] = []
    for number in range(30):
        new = message(seqno=number.to_bytes(8, "big"))
        router.mcache.put(new)
        ids.append(gossip.message_id(new))
        told = [topics[TOPIC] for topics in router.gossip_heartbeat().values()]
        assert len(told) in (0, gossip_router.LAZY_PEERS)
        announced += told[0] if told else []
        assert not set(ids[-gossip_router.LAZY_DELAY :]) & set(announced)
        router.mcache.shift()
        assert not told or router.known(told[0])[0] == told[0], "peers may ask for what was announced"
    assert len(set(announced)) == len(announced) and set(announced) >= set(ids[:20])


def test_seen_messages_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gossip_router, "MAX_SEEN", 10)
    seen = gossip_router.Seen()
    for number in range(20):
        seen.add(b"%d" % number)
    assert not seen.has(b"9") and seen.has(b"10") and seen.has(b"19") and not seen.has(b"20")
    monkeypatch.setattr(gossip_router, "SEEN_S", -1.0)
    seen.add(b"x")
    assert not seen.has(b"x")


# --- the filter ----------------------------------------------------------------------------------------------------


def message(**changes: object) -> rpc_pb2.Message:
    parts = {
        "from_id": new_identity().peer_id,
        "data": b"x",
        "seqno": bytes(8),
        "topicIDs": [TOPIC],
        "signature": bytes(64),
    }
    return rpc_pb2.Message(**(parts | changes))  # type: ignore[arg-type]


def test_messages_of_joined_topics_pass() -> None:
    good = message()
    bad = [
        message(topicIDs=["x"]),
        message(topicIDs=[TOPIC, TOPIC]),
        message(topicIDs=[]),
        message(from_id=b"x"),
        message(seqno=b""),
        message(signature=b""),
        message(key=bytes(1_000)),
    ]
    assert filtered(rpc(publish=[*bad, good]), [TOPIC]).messages == [good]
    assert filtered(rpc(publish=[good] * 1_000), [TOPIC]).messages == [good] * gossip_filter.MAX_MESSAGES
    assert filtered(rpc(publish=[good]), []).messages == []


def test_control_of_joined_topics_passes_in_bounds() -> None:
    peers = [rpc_pb2.PeerInfo(peerID=b"x")]
    found = filtered(
        control(
            graft=[rpc_pb2.ControlGraft(topicID=topic) for topic in (TOPIC, TOPIC, "x")],
            prune=[rpc_pb2.ControlPrune(topicID=topic, backoff=2**63, peers=peers) for topic in (TOPIC, "x")],
            ihave=[
                rpc_pb2.ControlIHave(topicID=topic, messageIDs=[b"a", b"a", b"", bytes(65)]) for topic in (TOPIC, "x")
            ],
            iwant=[rpc_pb2.ControlIWant(messageIDs=[b"%d" % number for number in range(1_000)] * 2)] * 3,
            idontwant=[rpc_pb2.ControlIDontWant(messageIDs=[b"a"])],
            extensions=rpc_pb2.ControlExtensions(topicObservation=True),
            observe=[rpc_pb2.ControlObserve(topicID=TOPIC)],
        ),
        [TOPIC],
    ).control
    assert found is not None
    (iwant,) = found.iwant
    assert len(set(iwant.messageIDs)) == len(iwant.messageIDs) == gossip_filter.MAX_IDS
    del found.iwant[:]
    assert found == rpc_pb2.ControlMessage(
        graft=[rpc_pb2.ControlGraft(topicID=TOPIC)],
        prune=[rpc_pb2.ControlPrune(topicID=TOPIC, backoff=gossip_filter.MAX_BACK_OFF_S)],
        ihave=[rpc_pb2.ControlIHave(topicID=TOPIC, messageIDs=[b"a"])],
    )


def test_subscriptions_are_few_and_to_our_topics() -> None:
    told = [
        rpc_pb2.RPC.SubOpts(subscribe=True, topicid=topic) for topic in ("x", TOPIC, TOPIC + "é", TOPIC + "a" * 200)
    ]
    told.append(rpc_pb2.RPC.SubOpts(subscribe=False, topicid=TOPIC))
    assert [(one.topicid, one.subscribe) for one in filtered(rpc(subscriptions=told), []).subscriptions] == [
        (TOPIC, False)
    ]
    no_text = rpc(subscriptions=told).replace(TOPIC.encode(), b"\xff" * len(TOPIC))
    assert filtered(no_text, []).subscriptions == []
    many = [rpc_pb2.RPC.SubOpts(subscribe=True, topicid=f"{TOPIC}/{number}") for number in range(500)]
    found = filtered(rpc(subscriptions=many), [])
    assert len(found.subscriptions) == gossip_filter.MAX_SUBSCRIPTIONS
    assert found.cost > 500, "what is left out has its cost too"


@pytest.mark.parametrize("data", [b"\xff", bytes(MAX_RPC_BYTES + 1), encode_uvarint(5)])
def test_what_is_no_rpc_is_a_remote_error(data: bytes) -> None:
    with pytest.raises(RemoteError):
        filtered(data, [TOPIC])
