"""A peer that was written from ``proto/interoperability.md`` alone is understood, and understands what it is told."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from hashlib import sha256

import cbor2
import trio
from blake3 import blake3
from nacl.signing import SigningKey

from mycelia.node.app import Node
from mycelia.node.engine.fake.engine import FakeEngine
from mycelia.node.network.identity import new_identity
from mycelia.node.network.libp2p.network import open_network
from mycelia.node.network.network import NetworkSettings
from mycelia.proto.config import TrustConfig
from tests.interop.by_hand import PEER_PREFIX, Message, Peer, connected, field, rpc, varint
from tests.node.network.libp2p.network_helpers import eventually

PROMPT = b"".join(token.to_bytes(4, "little") for token in range(3, 73))
"""The fake engine's answer to it is longer than what is asked for."""
SEED = bytes(range(64, 96))
SAMPLING: Message = {
    1: 8,
    2: 0.0,
    3: 0,
    4: 40,
    5: 0.95,
    6: 0.05,
    7: 1.0,
    8: 0.0,
    9: 0.0,
    10: 64,
    11: [],
    12: 0,
    13: "",
    14: "gbnf",
}


@asynccontextmanager
async def greeted() -> AsyncIterator[tuple[Node, Peer, bytes, str]]:
    """A node, a peer that it takes for a node too, and the namespace and name of the node's model."""
    identity, key = new_identity(), SigningKey(SEED)
    settings = NetworkSettings(identity=identity, listen=("/ip4/127.0.0.1/tcp/0",))
    with trio.fail_after(120):
        async with open_network(settings) as network, trio.open_nursery() as nursery:
            node = Node(identity, FakeEngine(), network, 1)
            await nursery.start(node.run)
            port = int(network.addresses()[0].split("/")[4])
            async with connected("127.0.0.1", port, key) as peer:
                assert peer.other == identity.peer_id
                await peer.open("/mycelia/control/1", {0: 1, 1: 2, 2: "by hand", 3: []})
                hello = await peer.control.receive()
                assert hello[0] == 1 and hello[1] == 2
                (served,) = hello[3]
                yield node, peer, served[1], served[2]
            nursery.cancel_scope.cancel()


async def test_it_is_answered_and_an_answer_goes_on_with_the_same_tokens() -> None:
    async with greeted() as (_, peer, namespace, model):
        ids = {1: bytes(16), 2: namespace}
        generate = {0: 8, **ids, 3: PROMPT, 4: SAMPLING, 5: 0, 6: 0, 7: 0}
        stream = await peer.open("/mycelia/generate/1", generate)
        frames = await _all_of(stream.receive, {11, 12, 17})
        assert [frame[0] for frame in frames[:2]] == [9, 10] and frames[-1][0] == 11, frames
        tokens = b"".join(frame[2] for frame in frames if frame[0] == 10)
        assert len(tokens) == 4 * SAMPLING[1]

        # The answer goes on elsewhere, here at the same node, with the same tokens.
        rest = {**SAMPLING, 1: 5}
        resumed = {**generate, 3: PROMPT + tokens[:12], 4: rest, 6: 3}
        again = await _all_of((await peer.open("/mycelia/generate/1", resumed)).receive, {11, 12, 17})
        assert b"".join(frame[2] for frame in again if frame[0] == 10) == tokens[12:]

        ask = an_ask(model)
        answer = await _all_of((await peer.open("/mycelia/ask/1", ask)).receive, {12, 16})
        assert [frame[0] for frame in answer[:2]] == [14, 19] and answer[-1][0] == 16, answer
        assert b"".join(frame[3] for frame in answer if frame[0] == 15) == tokens

        wrong = await peer.open("/mycelia/generate/1", {**generate, 2: bytes(16)})
        assert (await wrong.receive())[1] == "unknown_model"


async def test_an_ask_that_is_no_message_is_answered_and_costs_nothing() -> None:
    """Clients are written by hand, and CBOR libraries write 0.0 as the integer 0."""
    async with greeted() as (node, peer, _, model):
        wrong = (
            {**an_ask(model), 4: {**SAMPLING, 2: 0}},
            {**an_ask(model), 99: 1},
            {0: 99},
            {0: 20, 1: bytes(16)},  # (a trace-query, which belongs elsewhere)
        )
        for number in range(3 * TrustConfig().offences_to_quarantine):
            stream = await peer.open("/mycelia/ask/1", wrong[number % len(wrong)])
            failed = await stream.receive()
            assert failed[0] == 12 and failed[1] == "bad_request" and failed[3] is False
            if number == 0:
                assert "floats" in failed[2]
        assert not node.overlay.refusals
        answer = await _all_of((await peer.open("/mycelia/ask/1", an_ask(model))).receive, {12, 16})
        assert answer[-1][0] == 16, answer


async def test_what_it_gossips_is_held_and_what_it_provides_is_told() -> None:
    owner = PEER_PREFIX + bytes(SigningKey(SEED).verify_key)
    async with greeted() as (node, peer, namespace, _):
        # The digest of nothing: sections 2 and 8.
        root = blake3(b"", derive_key_context="mycelia 2026 digest root v1").digest(length=16)
        now_ms = int(time.time() * 1000)
        signed = b"".join(
            (
                b"mycelia head v1\0" + bytes((len(owner),)) + owner + namespace,
                now_ms.to_bytes(8, "big") + (1).to_bytes(8, "big") + bytes(4) + now_ms.to_bytes(8, "big") + root,
                bytes(1),
            )
        )
        signature = SigningKey(SEED).sign(signed).signature
        head = {1: owner, 2: namespace, 3: now_ms, 4: 1, 5: 0, 6: root, 7: now_ms, 8: signature, 9: 0}
        data = cbor2.dumps({0: 6, 1: head, 2: 0, 3: b"", 4: b""}, canonical=True)
        topic = f"mycelia/1/{namespace.hex()}"
        await peer.open("/meshsub/1.1.0", rpc(topic, time.time_ns(), data, SigningKey(SEED)))
        await eventually(lambda: node.overlay.estimates.version(owner, namespace) == (now_ms, 1))

        name = f"/mycelia/model/{namespace.hex()}".encode()
        key = bytes.fromhex("1220") + sha256(name).digest()
        address = bytes.fromhex("047f000001061bcd")  # /ip4/127.0.0.1/tcp/7117
        told = field(1, 2) + field(2, key) + field(9, field(1, owner) + field(2, address) + field(3, 2))
        asked = field(1, 3) + field(2, key)
        stream = await peer.open("/mycelia/kad/1.0.0", b"".join(varint(len(one)) + one for one in (told, asked)))
        await eventually(lambda: field(9, field(1, owner) + field(2, address))[2:] in stream.data)


def an_ask(model: str) -> Message:
    return {0: 13, 1: bytes(16), 2: model, 3: [], 4: SAMPLING, 5: "", 6: "", 7: PROMPT, 8: b"", 9: b""}


async def _all_of(receive: Callable[[], Awaitable[Message]], last: set[int]) -> list[Message]:
    frames: list[Message] = []
    while not frames or frames[-1][0] not in last:
        frames.append(await receive())
    return frames
