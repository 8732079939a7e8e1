"""``mycelia bench overload --real``: the same as ``sim/overload.py`` with real nodes, over their OpenAI API.

The engines are fake. They write letters at the rates of ``engine/fake/worker.py`` in few slots, so that neither nodes
nor clients need the whole processor. Their capacity follows from these rates: prompts share nothing, and an answer ends
after each token with a chance of 1 in 64.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import trio

from mycelia.bench.asking import http_client
from mycelia.bench.chaos.faults import open_nodes
from mycelia.bench.overload.overload import rows_of
from mycelia.bench.plans import CAPACITY, OverloadBench
from mycelia.bench.report.report import Progress, Report, report_of
from mycelia.node.client.local import fetch_state
from mycelia.node.engine.fake.worker import DECODE_RATE, PREFILL_RATE
from mycelia.node.requests.salts import PUBLIC_SALT
from mycelia.node.storage.rundir import RunInfo
from mycelia.proto.wire.errors import LocalError
from mycelia.sim.outcome import percentile
from mycelia.sim.overload import KNOCK_SHARE, KNOCKERS, TRUE_FACTOR, OverloadOutcome
from mycelia.sim.sessions import arrivals
from mycelia.sim.simulate import LEAST_AGAIN_S

SLOTS, MAX_TOKENS, PROMPT_BYTES = 2, 44, 400
"""Slots of each node, most tokens of an answer, length of a prompt."""
RAMP_S, POLL_S, TIMEOUT_S = 15.0, 0.5, 120.0
"""Time before anything counts, interval of reading the queues, timeout of a request."""
PATIENCE_S, KNOCKERS_PATIENCE_S = 20.0, 60.0
_STOP_CHANCE = 1 / 64


def capacity(bench: OverloadBench) -> float:
    """Requests/s that all engines together can answer."""
    num_tokens = sum((1 - _STOP_CHANCE) ** place for place in range(1, MAX_TOKENS + 1))
    return bench.num_nodes * SLOTS / (PROMPT_BYTES / PREFILL_RATE + num_tokens / DECODE_RATE)


@dataclass
class _Try:
    at: float
    status: int = 0
    """0: the try has not ended."""
    told_s: float = 0.0
    first_s: float = 0.0
    done_s: float = 0.0
    num_tokens: int = 0


@dataclass
class _User:
    asked_s: float
    knocks: bool
    patience_s: float
    tries: list[_Try] = field(default_factory=list)

    @property
    def is_told_true(self) -> bool | None:
        """See ``sim.overload.User``."""
        refused, last = self.tries[0], self.tries[-1]
        if not self.knocks or refused.status != httpx.codes.TOO_MANY_REQUESTS:
            return None
        waited_s = last.at - refused.done_s
        is_late = waited_s > TRUE_FACTOR * refused.told_s
        if last.status == httpx.codes.TOO_MANY_REQUESTS and not is_late:
            return None
        return not is_late and waited_s >= refused.told_s / TRUE_FACTOR


async def bench_real_overload(bench: OverloadBench) -> Report:
    """New nodes for each load. Raises LocalError when they do not start or answer nothing."""
    bench = bench.filled()
    rows = []
    with Progress(len(bench.loads) * len(bench.kinds)) as progress:
        for kind in bench.kinds:
            found: dict[float, list[OverloadOutcome]] = {}
            for load in bench.loads:
                progress.step(f"{kind}, load {load:g}: {load * capacity(bench):.1f} requests/s")
                found[load] = [await _one_run(bench, load, kind == "retry")]
            rows += rows_of(f"real_{kind}_", found)
    return report_of("overload", rows)


async def _one_run(bench: OverloadBench, load: float, retries: bool) -> OverloadOutcome:
    options = ["--model", "fake", "--slots", str(SLOTS)]
    with TemporaryDirectory(prefix="mycelia-overload-", ignore_cleanup_errors=True) as root:
        async with open_nodes(bench.num_nodes, options, Path(root)) as nodes:
            infos = [await node.wait_ready() for node in nodes.nodes]
            run = _Run(bench, load, retries, infos)
            await run.run()
            return run.outcome()


class _Run:
    def __init__(self, bench: OverloadBench, load: float, retries: bool, infos: Sequence[RunInfo]) -> None:
        self._bench = bench
        self._rate = load * capacity(bench)
        self._retries = retries
        self._infos = infos
        self._rng = random.Random("overload 1")  # noqa: S311
        self._users: list[_User] = []
        self._in_flight = Counter[int]()
        self._most_in_flight = self._most_waiting = 0
        self._from_s = self._until_s = 0.0

    async def run(self) -> None:
        """Ask until each knocker of the measured time was admitted or has given up."""
        tail_s = KNOCKERS_PATIENCE_S if self._rate > capacity(self._bench) * CAPACITY else 0.0
        async with http_client(TIMEOUT_S) as http, trio.open_nursery() as looking:
            looking.start_soon(self._look)
            async with trio.open_nursery() as nursery:
                began = trio.current_time()
                self._from_s = began + RAMP_S
                self._until_s = self._from_s + self._bench.seconds
                for at_s in arrivals(self._rate, self._rng):
                    if began + at_s > self._until_s + tail_s:
                        break
                    await trio.sleep_until(began + at_s)
                    nursery.start_soon(self._ask, http)
            looking.cancel_scope.cancel()

    async def _look(self) -> None:
        while True:
            for info in self._infos:
                self._most_waiting = max(self._most_waiting, (await fetch_state(info)).waiting_requests)
            await trio.sleep(POLL_S)

    async def _ask(self, http: httpx.AsyncClient) -> None:
        knocks = self._rng.randrange(KNOCKERS) == 0
        patience_s = KNOCKERS_PATIENCE_S if knocks else PATIENCE_S if self._retries else 0.0
        user = _User(trio.current_time(), knocks, patience_s)
        self._users.append(user)
        entry = self._rng.randrange(len(self._infos))
        text = self._rng.randbytes(PROMPT_BYTES // 2).hex()
        while True:
            one = _Try(trio.current_time())
            user.tries.append(one)
            self._in_flight[entry] += 1
            self._most_in_flight = max(self._most_in_flight, self._in_flight[entry])
            await _send(http, self._infos[entry].api_url, text, one)
            self._in_flight[entry] -= 1
            pause_s = max(one.told_s * (KNOCK_SHARE if knocks else 1.0), LEAST_AGAIN_S)
            if one.status != httpx.codes.TOO_MANY_REQUESTS or one.done_s + pause_s > user.asked_s + patience_s:
                return
            await trio.sleep(pause_s)

    def outcome(self) -> OverloadOutcome:
        """Raises LocalError when nothing was asked in the measured time."""
        from_s, until_s = self._from_s, self._until_s
        asked = [user for user in self._users if from_s <= user.asked_s < until_s]
        every = [one for user in self._users for one in user.tries]
        tries = [one for one in every if from_s <= one.at < until_s]
        if not asked:
            raise LocalError("nothing was asked in the measured time")
        refused = [one for one in tries if one.status == httpx.codes.TOO_MANY_REQUESTS]
        accepted = [one for one in tries if one.status == httpx.codes.OK]
        answered = [one for one in every if one.status == httpx.codes.OK and from_s <= one.done_s < until_s]
        told = [user.is_told_true for user in asked if user.is_told_true is not None]
        on_time = [one for user in asked if not user.knocks for one in user.tries[1:]]
        num_kept = sum(1 for one in on_time if one.status != httpx.codes.TOO_MANY_REQUESTS)
        ttfts_s = sorted((one.first_s or one.done_s) - one.at for one in accepted)
        return OverloadOutcome(
            offered=len(asked) / self._bench.seconds,
            tries=len(tries) / self._bench.seconds,
            answered=len(answered) / self._bench.seconds,
            answered_tokens=sum(one.num_tokens for one in answered) / self._bench.seconds,
            refused_share=len(refused) / len(tries),
            unfinished=sum(1 for one in tries if not one.done_s),
            failed=sum(
                1 for one in tries if one.done_s and one.status not in (httpx.codes.OK, httpx.codes.TOO_MANY_REQUESTS)
            ),
            given_up=sum(1 for user in asked if user.tries[-1].status != httpx.codes.OK) / self._bench.seconds,
            num_told=len(told),
            told_true=sum(told) / max(len(told), 1),
            told_p50_s=percentile(sorted(one.told_s for one in refused), 0.5),
            num_on_time=len(on_time),
            kept=num_kept / max(len(on_time), 1),
            most_waiting=self._most_waiting,
            most_in_flight=self._most_in_flight,
            ttft_p50_s=percentile(ttfts_s, 0.5),
            ttft_p99_s=percentile(ttfts_s, 0.99),
            total_p99_s=percentile(sorted(one.done_s - one.at for one in accepted), 0.99),
        )


async def _send(http: httpx.AsyncClient, api_url: str, text: str, one: _Try) -> None:
    turns = [{"role": "user", "content": text}]
    body = {"messages": turns, "max_tokens": MAX_TOKENS, "stream": True, "cache_salt": PUBLIC_SALT}
    try:
        async with http.stream("POST", f"{api_url}/v1/chat/completions", json=body) as response:
            one.status = response.status_code
            one.told_s = float(response.headers.get("retry-after", 0.0))
            async for line in response.aiter_lines():
                _, found, rest = line.partition('"content":"')
                if found and not rest.startswith('"'):
                    one.first_s = one.first_s or trio.current_time()
                    one.num_tokens += len(rest.partition('"')[0])  # (a letter is a token)
    except httpx.HTTPError:
        one.status = one.status if one.status != httpx.codes.OK else -1
    one.done_s = trio.current_time()
