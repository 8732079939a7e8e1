"""A relay that dies while answers come through it."""

import json
import subprocess
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime

import pytest
import trio

from mycelia.node.local_swarm.processes import LocalNode, LocalSwarm
from tests.e2e import burst
from tests.e2e.conftest import DEADLINE_S
from tests.e2e.internet import Home, Internet, Kind, can_make_routers, inside
from tests.e2e.test_nat import LISTEN, internet, public_peers, row_of, told

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.lab,
    pytest.mark.skipif(not can_make_routers(), reason="needs root, iproute2, nftables and a kernel that translates"),
]
__all__ = ["internet"]
NUM_STREAMS, NUM_TOKENS, NUM_TRIED = 20, 250, 60


async def answers(
    home: Home, node: LocalNode, salt: str, numbers: Iterable[int], on_first: Callable[[], None] = lambda: None
) -> dict[int, dict[str, object]]:
    """Number -> answer of each of these prompts, which enter at the home at once. on_first: called at the first token
    of each."""
    python = [*inside(home.namespace)[:5], "-m", burst.__name__, str(node.data_dir), salt, str(NUM_TOKENS)]
    process = await trio.lowlevel.open_process([*python, *map(str, numbers)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    found: dict[int, dict[str, object]] = {}
    unread = b""
    async for data in process.stdout:
        *lines, unread = (unread + data).split(b"\n")
        for row in map(json.loads, lines):
            if "text" in row:
                found[row["number"]] = row
            else:
                on_first()
    await process.wait()
    return found


def times(node: LocalNode, event: str, peer: str) -> Iterator[float]:
    for line in node.events:
        if line.get("event") == event and line.get("peer") == peer:
            yield datetime.fromisoformat(str(line["timestamp"])).timestamp()


async def test_no_token_is_lost_or_repeated_when_the_relay_is_killed_under_many_streams(
    internet: Internet, swarm: LocalSwarm
) -> None:
    homes = [internet.home(Kind.SYMMETRIC) for _ in range(2)]
    with trio.fail_after(DEADLINE_S):
        slots = ("--slots", str(NUM_TRIED))  # (as many everywhere: an idle home with fewer would ask a node with more)
        bootstrap = await public_peers(swarm, internet, 2, *slots)
        nodes = []
        for home in homes:
            options = ["--model", "fake", *slots, *LISTEN]
            node = await swarm.start(f"home-{home.number}", bootstrap, options, inside(home.namespace))
            await node.wait_ready()
            nodes.append(node)
        for node in nodes:
            await node.wait_event(lambda event: len(list(event.get("relays", ()))) == 2)  # type: ignore[call-overload]
            await node.wait_peers(3)
        peer = (await nodes[1].wait_ready()).peer
        await told(homes[1], nodes[1], "ask", "--cache-salt", "public", burst.prompt(0))
        while not (row := await row_of(homes[0], nodes[0], peer)).get("digest_blocks"):
            await nodes[0].wait_next_event()
        (relay,) = [node for node in swarm.nodes if (await node.wait_ready()).peer == row["relay"]]

        wanted = await answers(homes[1], nodes[1], "another", range(NUM_TRIED))
        longest = sorted(wanted, key=lambda number: -len(str(wanted[number]["text"])))[:NUM_STREAMS]
        begun: list[None] = []

        def on_first() -> None:
            begun.append(None)
            if len(begun) == NUM_STREAMS // 2:
                relay.kill()

        found = await answers(homes[0], nodes[0], "public", longest, on_first)
        assert {n: row["text"] for n, row in found.items()} == {number: wanted[number]["text"] for number in longest}
        assert sum(row["x-mycelia-served-by"] == peer for row in found.values()) >= NUM_STREAMS // 2
        left_at = max(times(nodes[0], "node_left", peer))
        await nodes[0].wait_event(lambda event: left_at < max(times(nodes[0], "node_joined", peer)))
        assert max(times(nodes[0], "node_joined", peer)) < left_at + 5
