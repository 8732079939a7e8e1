"""The limits of the network in ``proto/interoperability.md`` are those of the code."""

import re

import pytest
from blake3 import blake3
from libp2p.identity.identify.identify import ID as IDENTIFY
from libp2p.identity.identify_push.identify_push import ID_PUSH
from libp2p.pubsub.pb import rpc_pb2
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from multiaddr import Multiaddr

from mycelia.node.commands import checks
from mycelia.node.engine.child.worker import ADAPTED, EXACT_KV_SETTINGS, KV_SETTINGS
from mycelia.node.engine.stream import MAX_WAITING_LOGPROBS
from mycelia.node.network import addresses, exchange
from mycelia.node.network.identity import new_identity
from mycelia.node.network.libp2p import (
    autonat,
    circuits,
    closing,
    duplicates,
    entry_exchange,
    frames,
    identify,
    inbound,
    inbound_streams,
    liveness,
    moving,
    negotiation,
    outbound,
    peers,
    punching,
    relay_server,
    relaying,
    streams,
    upgrading,
    yamux,
    yamux_stream,
)
from mycelia.node.network.libp2p.gossip import filter as gossip_filter
from mycelia.node.network.libp2p.gossip import gossip, router
from mycelia.node.network.libp2p.kademlia import kademlia, messages, server
from mycelia.node.network.network import NetworkSettings
from mycelia.node.requests import answer_frames, entry, rejoin, relay
from mycelia.proto.admission.pace import Rate
from mycelia.proto.digests import batches
from mycelia.proto.kademlia import keys
from mycelia.proto.kademlia.lookup import MAX_ASKED, WIDTH
from mycelia.proto.kademlia.peer_buckets import BUCKET_SIZE
from mycelia.proto.kademlia.provider_records import MAX_RECORDS_PER_PEER, Contact
from mycelia.proto.wire.codec import decode
from mycelia.proto.wire.messages import Delta
from tests.proto import test_readme
from tests.proto.documents import FOLDER, INTEROPERABILITY, numbers_in, rows, values
from tests.proto.wire.transcript import GOSSIP, NAMESPACE, TOPIC, whole_exchange

ROUTER = router.Router(lambda message: b"")
SETTINGS = NetworkSettings(identity=new_identity())


def both(rate: Rate) -> tuple[float, float]:
    return rate.per_s, rate.burst


VALUES: dict[str, tuple[float, ...]] = {
    "Entry: peers being answered; of one peer": (inbound.MAX_ENTERING, inbound.MAX_ENTERING_PER_PEER),
    "Entry: message, bytes": (entry_exchange.MAX_MESSAGE_BYTES,),
    "Entry: request due, answer due, s": (entry_exchange.REQUEST_S, entry_exchange.ANSWER_S),
    "Yamux: first window of a stream, bytes": (yamux_stream.WINDOW_BYTES,),
    "Yamux: largest data frame sent, bytes": (yamux_stream.MAX_FRAME_BYTES,),
    "Yamux: streams open, that one side opened": (yamux.MAX_STREAMS,),
    "Yamux: a socket that takes no byte, s": (yamux.WRITE_DEADLINE_S,),
    "Yamux: a closed window, s": (yamux_stream.WINDOW_DEADLINE_S,),
    "Yamux: unsent replies to the peer's frames": (yamux.MAX_REPLIES,),
    "Ping after silence, s": (liveness.PING_INTERVAL_S * (1 - liveness.PING_SPREAD), liveness.PING_INTERVAL_S),
    "Ping: answer due, s": (liveness.PING_DEADLINE_S,),
    "Ping: round trip measured at least each, s": (liveness.ROUND_TRIP_INTERVAL_S,),
    "identify: message, bytes": (identify.MAX_MESSAGE_BYTES,),
    "identify: protocols read, and characters of each": (identify.MAX_PROTOCOLS, identify.MAX_PROTOCOL_CHARS),
    "identify: addresses kept": (identify.MAX_ADDRESSES,),
    "identify: answer due, s": (identify.DEADLINE_S,),
    "Relay: reservations": (relay_server.MAX_RESERVATIONS,),
    "Relay: reservation lasts, s": (circuits.RESERVATION_S,),
    "Relay: circuits; of one opener; to one target": (
        relay_server.MAX_CIRCUITS,
        relay_server.MAX_CIRCUITS_PER_PEER,
        relay_server.MAX_CIRCUITS_PER_TARGET,
    ),
    "Relay: new circuits a second to one node; at once": both(relay_server.CONNECTS),
    "AutoNAT: message, bytes": (autonat.MAX_MESSAGE_BYTES,),
    "AutoNAT: addresses of a question that are dialled": (autonat.MAX_DIALS,),
    "AutoNAT: a dial, s": (autonat.DIAL_DEADLINE_S,),
    "AutoNAT: questions a second, at once": (autonat.RATE, autonat.BURST),
    "Relay: a circuit lasts, s": (relay_server.MAX_CIRCUIT_S,),
    "Relay: bytes of a circuit": (relay_server.MAX_CIRCUIT_BYTES,),
    "Relay: silence of a circuit, s": (relay_server.IDLE_S,),
    "Relay: bytes a second, all circuits together": (relay_server.RELAYED_BYTES_PER_S,),
    "Relay: each step of the agreement, s": (circuits.STEP_DEADLINE_S,),
    "Punching: addresses of a peer that are dialled": (punching.MAX_ADDRESSES,),
    "Punching: attempts in a row": (punching.NUM_ROUNDS,),
    "Punching: time of an attempt, s": (punching.ROUND_S,),
    "Punching: refused dials repeated; after, s": (punching.MAX_REDIALS, punching.REDIAL_S),
    "Punching: attempts that a peer asks for a second, at once": both(punching.REQUESTS_OF_A_PEER),
    "Punching: the same, a subnet": both(punching.REQUESTS),
    "Punching: next try after failures, s": upgrading.PAUSES_S,
    "Punching: silence of a relayed connection before it is closed, s": (moving.LINGER_S,),
    "Control messages to one peer: a second, at once": both(streams.OWN_CONTROL),
    "A peer dialled again counts as restarted after, s": (peers.RESTART_S,),
    "Connections beside another of their kind are left alone, s; closed after silence of, s": (
        duplicates.SETTLE_S,
        moving.LINGER_S,
    ),
    "Kademlia: k, alpha, beta": (BUCKET_SIZE, WIDTH, kademlia.WALK_ENOUGH),
    "Kademlia: answers for providers of a model": (kademlia.PROVIDERS_ENOUGH,),
    "Kademlia: peers that are told of a model, of a prefix": (kademlia.MODEL_REPLICAS, kademlia.PREFIX_REPLICAS),
    "Kademlia: peers asked in one lookup": (MAX_ASKED,),
    "Kademlia: peers dialled on the word of one subnet": (kademlia.MAX_DIALS_PER_TELLER,),
    "Kademlia: request, answer, key, bytes": (
        messages.MAX_REQUEST_BYTES,
        messages.MAX_ANSWER_BYTES,
        messages.MAX_KEY_BYTES,
    ),
    "Kademlia: peers in each list of an answer": (messages.MAX_CONTACTS,),
    "Kademlia: addresses of oneself; of others read; kept; bytes of each": (
        messages.MAX_OWN_ADDRESSES,
        messages.MAX_ADDRESSES,
        outbound.MAX_DIAL_ADDRESSES,
        messages.MAX_ADDRESS_BYTES,
    ),
    "Kademlia: records of models, of prefixes, of one peer": (
        server.MAX_MODEL_RECORDS,
        server.MAX_PREFIX_RECORDS,
        MAX_RECORDS_PER_PEER,
    ),
    "Kademlia: streams, of one peer": (server.MAX_STREAMS, server.MAX_STREAMS_PER_PEER),
    "Kademlia: requests a second, at once: a peer": both(server.REQUESTS_OF_A_PEER),
    "Kademlia: the same, a subnet": both(server.REQUESTS_OF_A_SUBNET),
    "Kademlia: next request on a stream, s": (server.PATIENCE_S,),
    "gossipsub: D, D_low, D_high": (ROUTER.degree, ROUTER.degree_low, ROUTER.degree_high),
    "gossipsub: heartbeat, s": (ROUTER.heartbeat_interval,),
    "gossipsub: history kept, told by IHAVE, heartbeats": (ROUTER.mcache.history_size, ROUTER.mcache.window_size),
    "gossipsub: messages and bytes that wait for a neighbour": (batches.MAX_BATCH, batches.MAX_BATCH_BYTES),
    "gossipsub: back-off after PRUNE, s; at most honoured": (ROUTER.prune_back_off, gossip_filter.MAX_BACK_OFF_S),
    "gossipsub: seen ids kept, s; number": (router.SEEN_S, router.MAX_SEEN),
    "gossipsub: RPC, bytes; messages; subscriptions; ids": (
        gossip_filter.MAX_RPC_BYTES,
        gossip_filter.MAX_MESSAGES,
        gossip_filter.MAX_SUBSCRIPTIONS,
        gossip_filter.MAX_IDS,
    ),
    "gossipsub: reply to one IWANT, bytes": (router.MAX_REPLY_BYTES,),
    "gossipsub: IHAVE and IWANT of one peer a second": (
        ROUTER.max_ihave_messages_per_second,
        ROUTER.max_iwant_requests_per_second,
    ),
    "Empty `text-frame` after, s": (entry.KEEP_ALIVE_S, 2 * entry.KEEP_ALIVE_S),
    "A client gives up an entry node after silence of, s": (rejoin.SILENCE_DEADLINE_S,),
    "A client gives up an answer after, s without a token": (rejoin.STALLED_S,),
    "Entry nodes lost without a token": (rejoin.MAX_FRUITLESS,),
    "Gossip: work of a peer a second, at once": both(gossip.WORK_OF_A_PEER),
    "Gossip: the same, a subnet": both(gossip.WORK_OF_A_SUBNET),
    "Gossip: messages of one author by one forwarder a second, at once": (gossip.AUTHOR_RATE, gossip.AUTHOR_BURST),
    "Gossip: messages with wrong signatures of a forwarder a minute, at once": (
        60 * gossip.WRONG_RATE,
        gossip.WRONG_BURST,
    ),
    "Places: handshakes under way; s each": (inbound.MAX_HANDSHAKES, inbound.HANDSHAKE_S),
    "Places: connections; of one peer": (SETTINGS.max_connections, inbound.MAX_CONNECTIONS_PER_PEER),
    "Places: streams that peers opened; of one peer": (
        inbound_streams.MAX_STREAMS,
        inbound_streams.MAX_STREAMS_PER_PEER,
    ),
    "Places: streams that a node opens with one peer for exchanges": (streams.MAX_OPENED_PER_PEER,),
    "Places: prompts for other models passed on; of one client; to one node": (
        relay.MAX_RELAYED,
        relay.MAX_RELAYED_PER_CLIENT,
        relay.MAX_RELAYED_PER_SERVER,
    ),
    "Places: first message of a new stream, s": (inbound_streams.FIRST_MESSAGE_S,),
    "Places: first message of an exchange, s": (exchange.OPENING_DEADLINE_S,),
    "Places: bytes of one answer that wait at the entry node; of all": (
        answer_frames.MAX_ANSWER_BYTES,
        answer_frames.MAX_WAITING_BYTES,
    ),
    "Places: tokens with log-probabilities that wait at the server, of one answer": (MAX_WAITING_LOGPROBS,),
    "Rate: handshakes of a subnet a second, at once": both(inbound.HANDSHAKES_A_SUBNET),
    "Rate: frames and packets of a peer a second, at once": both(inbound.FRAMES_OF_A_PEER),
    "Rate: the same for frames, a subnet": both(inbound.FRAMES_OF_A_SUBNET),
    "Rate: control of a peer a second, at once": both(streams.CONTROL_OF_A_PEER),
    "Rate: the same for control, a subnet": both(streams.CONTROL_OF_A_SUBNET),
    "Rate: exchanges of a peer a second, at once": both(streams.EXCHANGES_OF_A_PEER),
    "Rate: the same for exchanges, a subnet": both(streams.EXCHANGES_OF_A_SUBNET),
    "Rate: messages of one answer a second, at once": both(streams.ANSWER),
    "Rate: an exchange that would wait for longer is reset, s": (streams.EXCHANGE_PATIENCE_S,),
    "Rate: addresses dialled on the word of others a second, at once": (outbound.TOLD_RATE, outbound.TOLD_BURST),
    "Deadline: writing 32,768 bytes, s": (streams.WRITE_DEADLINE_S,),
    "Deadline: each step inside a message, s": (streams.READ_DEADLINE_S,),
    "Deadline: negotiation of a stream, s": (negotiation.OPEN_DEADLINE_S,),
    "Deadline: dial of one address, s": (outbound.DIAL_DEADLINE_S,),
    "Deadline: publishing and closing, s": (gossip.PUBLISH_DEADLINE_S, closing.CLOSE_DEADLINE_S),
}
"""The rows with constants of ``node``."""

IN_A_PRIVATE_NETWORK = {
    "Relay: new circuits a second to one node; at once": relay_server.CONNECTS_IN_A_PRIVATE_NETWORK,
    "Punching: the same, a subnet": punching.REQUESTS_IN_A_PRIVATE_NETWORK,
    "Kademlia: the same, a subnet": server.REQUESTS_OF_A_PRIVATE_NETWORK,
    "Gossip: the same, a subnet": gossip.WORK_OF_A_PRIVATE_NETWORK,
    "Rate: handshakes of a subnet a second, at once": inbound.HANDSHAKES_IN_A_PRIVATE_NETWORK,
    "Rate: the same for frames, a subnet": inbound.FRAMES_IN_A_PRIVATE_NETWORK,
    "Rate: the same for control, a subnet": streams.CONTROL_OF_A_PRIVATE_NETWORK,
    "Rate: the same for exchanges, a subnet": streams.EXCHANGES_OF_A_PRIVATE_NETWORK,
}

OTHERS = {
    "identify: addresses kept": (addresses.MAX_TOLD,),
    "Punching: addresses of a peer that are dialled": (addresses.MAX_TOLD,),
    "Punching: next try after failures, s": (upgrading.STABLE_S,),
    "Relay: each step of the agreement, s": (relaying.ANSWER_DEADLINE_S,),
    "Gossip: work of a peer a second, at once": (gossip.MESSAGE_COST,),
    "gossipsub: heartbeat, s": (router.LAZY_PEERS,),
    "gossipsub: history kept, told by IHAVE, heartbeats": (router.LAZY_DELAY,),
    "Places: streams that peers opened; of one peer": (inbound_streams.KEPT_STREAMS,),
    "Rate: frames and packets of a peer a second, at once": (yamux.OPENING_WORK,),
    "Rate: addresses dialled on the word of others a second, at once": (
        1 / outbound.ADDRESS_RATE,
        outbound.ADDRESS_BURST,
    ),
    "Deadline: dial of one address, s": (
        outbound.MAX_DIAL_ADDRESSES,
        addresses.MAX_RELAYS,
        outbound.HEAD_START_S,
        outbound.BEFORE_RELAYS_S,
    ),
}
"""The numbers in the notes of these rows."""


@pytest.mark.parametrize("what", VALUES)
def test_a_constant_is_told(what: str) -> None:
    assert values()[what][0] == pytest.approx(VALUES[what])


@pytest.mark.parametrize("what", IN_A_PRIVATE_NETWORK)
def test_the_rate_of_a_private_network_is_told_beside_it(what: str) -> None:
    assert values()[what][1][-2:] == list(both(IN_A_PRIVATE_NETWORK[what]))


@pytest.mark.parametrize("what", OTHERS)
def test_what_else_is_told_beside_it(what: str) -> None:
    assert set(OTHERS[what]) <= set(values()[what][1])


def test_the_traffic_of_the_network_follows_from_its_rates() -> None:
    told = {row[0]: numbers_in(row[1])[0] for row in rows(INTEROPERABILITY, "| Traffic | Bytes |")}
    assert told["control, all kinds"] == 1_024 * streams.CONTROL_OF_A_PEER.per_s
    assert told["exchanges"] == 1_024 * streams.EXCHANGES_OF_A_PEER.per_s
    assert told["all circuits of a relay together"] == relay_server.RELAYED_BYTES_PER_S


def test_every_row_with_a_value_is_compared_with_the_code() -> None:
    elsewhere = {"Maps and arrays in a message; CBOR items", *test_readme.VALUES}
    assert set(values()) == elsewhere | set(VALUES)


def test_the_names_of_protocols_and_keys_are_told() -> None:
    for name in (
        YAMUX,
        negotiation.MULTISTREAM[1:-1].decode(),
        IDENTIFY,
        ID_PUSH,
        circuits.HOP_PROTOCOL,
        autonat.AUTONAT_PROTOCOL,
        punching.PROTOCOL,
        messages.KAD_PROTOCOL,
        streams.CONTROL_PROTOCOL,
        entry.GENERATE,
        entry.ASK,
        *ROUTER.get_protocols(),
        keys.MODEL_NAME,
        gossip_filter.TOPIC_PREFIX,
        *checks.SWARM_KEY_LINES,
    ):
        assert f"`{name}" in INTEROPERABILITY, name


def test_the_gossip_of_the_transcript_is_what_gossipsub_takes() -> None:
    (step,) = (step for step in whole_exchange() if step.over == GOSSIP)
    found = frames.length_of(step.data)
    assert found is not None and found[0] + found[1] == len(step.data)
    (raw,) = gossip_filter.filtered(step.data[found[0] :], {TOPIC}).messages
    assert gossip.is_signed(raw) and isinstance(decode(raw.data), Delta)
    raw.data += b"\0"
    assert not gossip.is_signed(raw)


def test_a_messages_id_is_the_documents() -> None:
    message = rpc_pb2.Message(from_id=b"author", seqno=bytes(8))
    assert gossip.message_id(message) == blake3(b"author" + bytes(8)).digest(length=12)


def test_the_record_of_a_provider_is_written_as_the_document_has_it() -> None:
    (step,) = (step for step in whole_exchange() if step.over == GOSSIP)
    owner = step.data[step.data.index(bytes.fromhex("002408011220")) :][:38]
    contact = Contact(owner, (Multiaddr("/ip4/203.0.113.7/tcp/7117").to_bytes(),))
    key = keys.model_key(NAMESPACE)
    wanted = messages.encode_request(messages.Request(messages.Kind.ADD_PROVIDER, key, (contact,)))
    assert wanted.hex() in "".join(INTEROPERABILITY.split())


def test_the_texts_that_hashes_are_derived_with_are_told() -> None:
    sources = [path.read_text("utf-8") for folder in (FOLDER, FOLDER.parent / "node") for path in folder.rglob("*.py")]
    used = {context for source in sources for context in re.findall(r'"(mycelia 2026 [^"]+)"', source)}
    # (only for a node's own memory: other nodes never see its results)
    own = {"mycelia 2026 prefix owner v1", "mycelia 2026 prefix swarm v1"}
    assert used - own == set(re.findall(r"mycelia 2026 [a-z ]+ v\d+", INTEROPERABILITY))


def test_the_kv_settings_that_exist_are_told() -> None:
    *told, adapted = (row[0] for row in rows(INTEROPERABILITY, "| KV settings | Meaning |"))
    assert told == [f"`{KV_SETTINGS}`", f"`{EXACT_KV_SETTINGS}`"]
    assert adapted.startswith(f"either of these + `{ADAPTED}` + BLAKE3")
