"""Real nodes, several to a process: they find each other, answer, share prefixes and notice that others were killed."""

from collections.abc import Callable

import pytest
import trio

from mycelia.bench.asking import http_client
from mycelia.bench.hundred.host import Look
from mycelia.bench.hundred.hosts import Hosts, open_hosts
from mycelia.bench.swarm.prompts import user
from mycelia.bench.swarm.real_swarm import Question, ask_one
from tests.e2e.conftest import DEADLINE_S

pytestmark = pytest.mark.e2e

PROMPT = "The quick brown fox jumps over the lazy dog, and the dog does not mind. " * 30


async def until(hosts: Hosts, peers: list[str], is_so: Callable[[Look], bool]) -> None:
    """Returns when what every node knows of ``peers`` is so. Each look waits for the answers of all processes."""
    while not all(map(is_so, await hosts.look(peers))):
        pass


async def test_eight_nodes_in_two_processes_are_one_swarm() -> None:
    with trio.fail_after(3 * DEADLINE_S):
        async with open_hosts(8, 4) as hosts, http_client(DEADLINE_S) as http:
            assert [len(host.places) for host in hosts.hosts] == [4, 4] and len(set(hosts.pids)) == 2
            peers = [place.peer for place in hosts.places]
            assert len(set(peers)) == 8
            await until(hosts, peers, lambda look: look.connected == look.live == 7)

            numbers = {peer: number for number, peer in enumerate(peers)}
            urls = [place.api_url for place in hosts.places]
            first = await ask_one(http, urls[0], Question(0.0, 0, [user(PROMPT)], 4), numbers)
            assert not first.failure and not first.cached_tokens
            answers = [await ask_one(http, url, Question(0.0, 0, [user(PROMPT)], 4), numbers) for url in urls]
            assert not any(answer.failure for answer in answers)
            # (a node answers by itself until the holder's digest has come)
            assert answers[first.served_by].cached_tokens > len(PROMPT) / 2
            assert hosts.pss_bytes() > 0 and hosts.cpu_s() > 0

            killed = [place.peer for place in hosts.kill(1)]
            assert len(killed) == len(hosts.places) == 4
            await until(hosts, killed, lambda look: not look.connected and not look.live)
            again = await ask_one(http, urls[0], Question(0.0, 0, [user(PROMPT)], 4), numbers)
            assert not again.failure and again.served_by < 4
