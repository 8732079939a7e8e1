"""A peer that was written from ``proto/interoperability.md`` alone is understood, and understands what it is told."""

from collections.abc import Awaitable, Callable

import trio
from nacl.signing import SigningKey

from mycelia.node.app import Node
from mycelia.node.engine.fake.engine import FakeEngine
from mycelia.node.network.identity import new_identity
from mycelia.node.network.libp2p.network import open_network
from mycelia.node.network.network import NetworkSettings
from tests.interop.by_hand import Message, connected

PROMPT = b"".join(token.to_bytes(4, "little") for token in range(3, 73))
"""The fake engine's answer to it is longer than what is asked for."""
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


async def test_it_greets_a_node_and_is_answered() -> None:
    identity = new_identity()
    settings = NetworkSettings(identity=identity, listen=("/ip4/127.0.0.1/tcp/0",))
    with trio.fail_after(120):
        async with open_network(settings) as network, trio.open_nursery() as nursery:
            await nursery.start(Node(identity, FakeEngine(), network, 1).run)
            port = int(network.addresses()[0].split("/")[4])
            async with connected("127.0.0.1", port, SigningKey.generate()) as peer:
                assert peer.other == identity.peer_id
                await peer.open("/mycelia/control/1", {0: 1, 1: 2, 2: "by hand", 3: []})
                hello = await peer.control.receive()
                assert hello[0] == 1 and hello[1] == 2
                (served,) = hello[3]
                namespace, model = served[1], served[2]

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

                ask = {0: 13, 1: bytes(16), 2: model, 3: [], 4: SAMPLING, 5: "", 6: "", 7: PROMPT, 8: b"", 9: b""}
                answer = await _all_of((await peer.open("/mycelia/ask/1", ask)).receive, {12, 16})
                assert [frame[0] for frame in answer[:2]] == [14, 19] and answer[-1][0] == 16, answer
                assert b"".join(frame[3] for frame in answer if frame[0] == 15) == tokens

                wrong = await peer.open("/mycelia/generate/1", {**generate, 2: bytes(16)})
                assert (await wrong.receive())[1] == "unknown_model"
            nursery.cancel_scope.cancel()


async def _all_of(receive: Callable[[], Awaitable[Message]], last: set[int]) -> list[Message]:
    frames: list[Message] = []
    while not frames or frames[-1][0] not in last:
        frames.append(await receive())
    return frames
