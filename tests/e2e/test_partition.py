"""Two halves of a swarm of real nodes lose each other, keep serving, and find each other again."""

from itertools import permutations

import pytest
import trio

from mycelia.node.client.local import fetch_state
from mycelia.node.local_swarm.distance import SwarmSettings, open_behind_proxies, part
from mycelia.node.local_swarm.processes import LocalNode, LocalSwarm
from mycelia.node.views.state import PeerRow
from mycelia.proto.wire.blocks import STRIDE
from tests.e2e.conftest import DEADLINE_S, ask

pytestmark = pytest.mark.e2e

SIDES = (0, 0, 1, 1)


def long_prompt(word: str) -> str:
    """So long that computing it again takes longer than the way to the node that holds it."""
    return f"{word} " * (4_000 // (len(word) + 1))


async def test_halves_that_both_kept_serving_converge_without_a_restart(swarm: LocalSwarm) -> None:
    with trio.fail_after(3 * DEADLINE_S):
        settings = SwarmSettings(num_nodes=4, rtt_s=0.01, options=("--model", "fake"))
        async with open_behind_proxies(swarm, settings) as (nodes, proxies):
            before = [dict(node.counts) for node in nodes]
            part(nodes, proxies, SIDES)
            for node, counts in zip(nodes, before, strict=True):
                await counted(node, "node_left", counts.get("node_left", 0) + 2)

            left, right = await ask(nodes[0], long_prompt("left")), await ask(nodes[2], long_prompt("right"))
            peers = [(await node.wait_ready()).peer for node in nodes]
            assert left.answered.served_by in peers[:2] and right.answered.served_by in peers[2:]
            for number, answer in ((3, left), (1, right)):
                assert answer.answered.served_by not in {row.peer for row in await rows_of(nodes[number])}

            joined = [node.counts["node_joined"] for node in nodes]
            for proxy in proxies:
                proxy.heal()
            for node, count in zip(nodes, joined, strict=True):
                await counted(node, "node_joined", count + 2)
            for reader, owner in permutations(nodes, 2):
                await learned(reader, owner)

            for number, answer, word in ((3, left, "left"), (1, right, "right")):
                again = await ask(nodes[number], long_prompt(word) + "and more")
                assert again.answered.served_by == answer.answered.served_by
                assert again.answered.cached_tokens > 3_000
            for node in nodes:
                assert node.counts["ready"] == 1 and node.process.returncode is None


async def counted(node: LocalNode, event: str, count: int) -> None:
    """Waits until ``node`` has logged ``count`` events of this name."""
    while node.counts[event] < count:
        await node.wait_next_event()


async def rows_of(node: LocalNode) -> list[PeerRow]:
    return (await fetch_state(await node.wait_ready())).peers


async def learned(reader: LocalNode, owner: LocalNode) -> None:
    """Waits until ``reader`` has the right estimate of the cache of ``owner``, which holds at most one sequence."""
    state = await fetch_state(await owner.wait_ready())
    true = (state.peer, state.cached_tokens // STRIDE)
    while true not in {(row.peer, row.digest_blocks) for row in await rows_of(reader)}:
        await reader.wait_next_event()
