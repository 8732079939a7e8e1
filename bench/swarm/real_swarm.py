"""A swarm of real nodes on this machine, with distance between them, that gets given prompts at given times.

Each node listens on a port of loopback that it does not announce. It announces a proxy in front of it, which delays
every byte by half of the round trip in each direction. Nodes know each other from what they announce, so each
connection crosses exactly one proxy. This is verified: the round trips that the nodes measure are read before the first
prompt, and none may be shorter than requested.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import msgspec
import psutil
import trio

from mycelia.bench.asking import http_client, in_time
from mycelia.node.client.local import fetch_state
from mycelia.node.local_swarm.distance import SwarmSettings, open_at_a_distance
from mycelia.node.local_swarm.processes import LocalNode, open_local_swarm
from mycelia.node.requests.salts import PUBLIC_SALT
from mycelia.node.views.frames import AnsweredView, FailedView, FrameView, TextView, is_keep_alive
from mycelia.proto.wire.errors import LocalError
from mycelia.proto.wire.messages import ChatMessage
from mycelia.sim.replay import followers_of

MEASURE_DEADLINE_S = 60.0
ANSWER_DEADLINE_S = 300.0
POLL_S = 0.5


@dataclass(frozen=True)
class Question:
    at_s: float
    """Time since the start of the run; after another question, since the end of its answer."""
    entry: int
    """Number of the node."""
    messages: Sequence[ChatMessage]
    max_tokens: int
    after: int | None = None
    """The question that its client asks before it, by its place."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of one prompt, at its client. All 0 if it failed."""

    ttft_s: float = 0.0
    """From the start of the HTTP request to the first text of the answer, or to its end if it has none."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    served_by: int = -1
    failure: str = ""


@dataclass(frozen=True)
class Run:
    """One swarm, from its start to its end."""

    outcomes: list[Outcome]
    """In the order of the questions."""
    rtts_s: list[float]
    """As nodes measured them before the first prompt, one for each peer of each node."""
    others_cores: float
    """Cores that other programs kept busy while the swarm answered."""


class RealSwarm:
    """Made by ``open_real_swarm``."""

    def __init__(self, nodes: Sequence[LocalNode], rtts_s: list[float]) -> None:
        self._nodes = nodes
        self.rtts_s = rtts_s

    async def ask(self, questions: Sequence[Question], on_answer: Callable[[], None]) -> Run:
        """Send every question at its time, without waiting for answers but that of its client's question before it.
        on_answer: called after each answer."""
        infos = [await node.wait_ready() for node in self._nodes]
        numbers = {info.peer: number for number, info in enumerate(infos)}
        outcomes: dict[int, Outcome] = {}
        followers = followers_of([question.after for question in questions])
        meter = OthersMeter([node.process.pid for node in self._nodes])
        async with http_client(ANSWER_DEADLINE_S) as http:

            async def one(place: int, since: float) -> None:
                question = questions[place]
                await trio.sleep_until(since + question.at_s)
                outcomes[place] = await ask_one(http, infos[question.entry].api_url, question, numbers)
                on_answer()
                for follower in followers.get(place, ()):
                    nursery.start_soon(one, follower, trio.current_time())

            async with trio.open_nursery() as nursery:
                began = trio.current_time()
                for place in followers.get(None, ()):
                    nursery.start_soon(one, place, began)
        return Run([outcomes[place] for place in range(len(questions))], self.rtts_s, meter.others_cores())


@asynccontextmanager
async def open_real_swarm(settings: SwarmSettings) -> AsyncIterator[RealSwarm]:
    """Nodes that all know each other, at the requested distance. Raises LocalError when they do not."""
    with TemporaryDirectory(prefix="mycelia-bench-", ignore_cleanup_errors=True) as root:
        async with open_local_swarm(Path(root)) as swarm, open_at_a_distance(swarm, settings) as nodes:
            yield RealSwarm(nodes, await _measured_rtts(nodes, settings.rtt_s))


async def _measured_rtts(nodes: Sequence[LocalNode], rtt_s: float) -> list[float]:
    """Round trips of every node to every other. Raises LocalError for one below ``rtt_s``: it crosses no proxy."""
    infos = [await node.wait_ready() for node in nodes]
    with in_time(MEASURE_DEADLINE_S, "the nodes did not measure the round trips between them in time"):
        while True:
            peers = [row for info in infos for row in (await fetch_state(info)).peers]
            rtts_s = [row.round_trip_ms / 1000 for row in peers if row.round_trip_ms is not None]
            if len(rtts_s) == len(peers) == len(nodes) * (len(nodes) - 1):
                break
            await trio.sleep(POLL_S)
    if rtts_s and min(rtts_s) < rtt_s - 0.001:  # (nodes report tenths of a millisecond)
        raise LocalError(f"a connection has a round trip of {min(rtts_s) * 1000:.1f} ms: it goes past the proxies")
    return rtts_s


async def ask_one(http: httpx.AsyncClient, api_url: str, question: Question, numbers: dict[str, int]) -> Outcome:
    """Asks at one node. numbers: peer id -> number of the node, of all nodes."""
    body = {
        "messages": [{"role": message.role, "content": message.content} for message in question.messages],
        "max_tokens": question.max_tokens,
        "timeout_s": ANSWER_DEADLINE_S,
        "cache_salt": PUBLIC_SALT,
    }
    began, first = trio.current_time(), 0.0
    outcome = Outcome(failure="the answer ended before it was finished")
    try:
        async with http.stream("POST", f"{api_url}/api/ask", json=body) as response:
            async for line in response.aiter_lines():  # (to the end: httpx complains about an early stop)
                match frame := msgspec.json.decode(line, type=FrameView):
                    case TextView() if not is_keep_alive(frame):
                        first = first or trio.current_time()
                    case AnsweredView() as answered:
                        ttft_s = (first or trio.current_time()) - began
                        server = numbers.get(answered.served_by, -1)
                        outcome = Outcome(ttft_s, answered.prompt_tokens, answered.cached_tokens, server)
                    case FailedView(message=message):
                        outcome = Outcome(failure=message)
                    case _:
                        pass
    except (httpx.HTTPError, msgspec.DecodeError) as exc:
        return Outcome(failure=repr(exc))
    return outcome


class OthersMeter:
    """Processor time of all other programs on this machine, since the meter was made."""

    def __init__(self, pids: Sequence[int]) -> None:
        nodes = [psutil.Process(pid) for pid in pids]
        self._ours = [*nodes, *(child for node in nodes for child in node.children(recursive=True)), psutil.Process()]
        self._began = trio.current_time()
        self._before = self._others_s()

    def others_cores(self) -> float:
        return max(0.0, (self._others_s() - self._before) / max(trio.current_time() - self._began, 1e-9))

    def _others_s(self) -> float:
        times = psutil.cpu_times()
        busy_s = sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)
        for process in self._ours:
            try:
                own = process.cpu_times()
            except psutil.Error:
                continue  # (an engine that was replaced)
            busy_s -= own.user + own.system
        return float(busy_s)
