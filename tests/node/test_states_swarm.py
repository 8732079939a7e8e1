"""Two whole nodes with a hybrid model over the in-memory network: prompts find the node that can restore a prefix."""

import random
from contextlib import AsyncExitStack
from pathlib import Path

import trio

from mycelia.node.app import Node
from mycelia.node.engine.process import open_engine
from mycelia.node.engine.settings import EngineSettings
from mycelia.node.network.identity import Identity
from mycelia.node.network.memory import MemorySwarm
from mycelia.node.network.network import NetworkSettings
from mycelia.proto.config import OverlayConfig, RoutingConfig
from mycelia.proto.wire.blocks import STRIDE
from mycelia.proto.wire.messages import Answered, EntryFrame
from tests.node.engine.child.tiny_models import write_model
from tests.node.members import an_ask

SAME_SLOW_RATE = RoutingConfig(max_prefill_rate=100.0)
"""What so small a model computes takes no time: only with this does its cached prefix decide for certain."""
SHARED = "the quick brown fox jumps over the lazy dog and " * 12


async def frames_of(node: Node, text: str) -> list[EntryFrame]:
    async with node.ask(an_ask(text), None, b"") as frames:
        return [frame async for frame in frames]


def seen_at_rest_with_states(node: Node) -> bool:
    """Whether ``node`` has heard that its peer is idle again and what the peer holds."""
    (peer,) = node.state().peers
    return peer.prefill_rate > 0 and not peer.active_requests and node.overlay.digests.estimates.num_entries > 0


async def test_a_prompt_goes_where_a_state_is(tmp_path: Path) -> None:
    model = write_model(tmp_path / "tiny.gguf", "granitehybrid")
    settings = EngineSettings(model, threads=1, cells=2048, slots=2, sequences=9, ram_tier_mib=64)
    async with AsyncExitStack() as stack:
        swarm = await stack.enter_async_context(MemorySwarm(random.Random(1)))
        nursery = await stack.enter_async_context(trio.open_nursery())
        nodes = []
        for number in range(2):
            identity = Identity(bytes([number + 1]) * 32)
            network = await stack.enter_async_context(swarm.open_network(NetworkSettings(identity=identity)))
            engine = await stack.enter_async_context(open_engine(settings))
            nodes.append(Node(identity, engine, network, 1, config=OverlayConfig(routing=SAME_SLOW_RATE)))
            await nursery.start(nodes[-1].run)
        one, other = nodes
        with trio.fail_after(120):
            for last in ("one", "two", "three"):  # The second shows where they branch, the third leaves a state there.
                await frames_of(one, SHARED + last)
            while not seen_at_rest_with_states(other):  # noqa: ASYNC110  nothing tells that gossip has arrived
                await trio.sleep(0.01)
            (answered,) = [f for f in await frames_of(other, SHARED + "four") if isinstance(f, Answered)]
        assert answered.served_by == one.overlay.me
        assert answered.usage.cached_tokens >= len(SHARED) // STRIDE * STRIDE
        nursery.cancel_scope.cancel()
