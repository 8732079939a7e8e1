"""``mycelia bench engine``: this engine alone, or compared run for run with llama-server on the same model file.

Prompts are random token ids (seeded), so that nothing is cached by chance. Each run gives both sides the same prompts,
in alternating order. A ratio compares the two sides of one run, because the machine's speed varies between runs.
"""

import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles

import trio

from mycelia.bench.engine.internals import measure_shares
from mycelia.bench.engine.llama_server import check_installed, open_llama_server
from mycelia.bench.engine.target import FIRST_PLAIN_TOKEN, Settings, Target, Timing
from mycelia.bench.plans import EngineBench
from mycelia.bench.report.report import Progress, Report, Row, report_of, row_of
from mycelia.node.engine.engine import EngineAccepted, EngineDone, EngineFailed, EngineRequest, EngineTokens
from mycelia.node.engine.process import ProcessEngine, open_engine
from mycelia.node.engine.settings import EngineSettings
from mycelia.node.models.find import find_model
from mycelia.proto.wire.errors import LocalError
from mycelia.proto.wire.messages import Sampling

SHARED_TOKENS, OWN_TOKENS = 800, 50


class OurEngine:
    def __init__(self, engine: ProcessEngine) -> None:
        self._engine = engine
        self._count = 0

    async def complete(self, prompt: Sequence[int], max_tokens: int) -> Timing:
        self._count += 1
        request = EngineRequest(self._count.to_bytes(16, "big"), prompt, Sampling(max_tokens=max_tokens))
        began, first, cached = trio.current_time(), None, 0
        async with self._engine.generate(request) as items:
            async for item in items:
                match item:
                    case EngineAccepted():
                        cached = item.cached_tokens
                    case EngineTokens():
                        first = first or trio.current_time()
                    case EngineDone():
                        ended = trio.current_time()
                        return Timing((first or ended) - began, ended - began, cached, item.usage.completion_tokens)
                    case EngineFailed():
                        raise LocalError(f"the engine failed: {item.message}")
        raise LocalError("the engine ended an answer without its last item")


@dataclass(frozen=True)
class _Prompts:
    rng: random.Random
    num_vocab: int

    def fresh(self, length: int) -> list[int]:
        return [self.rng.randrange(FIRST_PLAIN_TOKEN, self.num_vocab) for _ in range(length)]


Measure = Callable[[Target, list[list[int]]], Awaitable[float]]


@dataclass(frozen=True)
class Workload:
    """One row: new prompts for each run, and the measurement made with them."""

    name: str
    unit: str
    make: Callable[[_Prompts], list[list[int]]]
    measure: Measure


async def at_once(target: Target, prompts: Sequence[Sequence[int]], max_tokens: int) -> tuple[float, list[Timing]]:
    """Wall time of several completions that arrive together."""
    timings: list[Timing] = []

    async def one(prompt: Sequence[int]) -> None:
        timings.append(await target.complete(prompt, max_tokens))

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for prompt in prompts:
            nursery.start_soon(one, prompt)
    return trio.current_time() - began, timings


async def _cold_ttft(target: Target, prompts: list[list[int]]) -> float:
    return (await target.complete(prompts[0], 1)).ttft_s


async def _warm_ttft(target: Target, prompts: list[list[int]]) -> float:
    for prompt in prompts[:-1]:  # (a model that keeps states learns from the second one where prompts branch)
        await target.complete(prompt, 1)
    timing = await target.complete(prompts[-1], 1)
    if timing.cached_tokens < SHARED_TOKENS * 0.9:
        raise LocalError(f"only {timing.cached_tokens} of {SHARED_TOKENS} tokens were warm")
    return timing.ttft_s


async def _shared_warm_wall(target: Target, prompts: list[list[int]]) -> float:
    await target.complete(prompts[0], 1)
    return (await at_once(target, prompts[1:], 24))[0]


async def _shared_cold_wall(target: Target, prompts: list[list[int]]) -> float:
    return (await at_once(target, prompts, 24))[0]


async def _rate(target: Target, prompts: list[list[int]]) -> float:
    wall_s, timings = await at_once(target, prompts, 48)
    return sum(timing.completion_tokens for timing in timings) / wall_s


def _shared(count: int) -> Callable[[_Prompts], list[list[int]]]:
    def make(prompts: _Prompts) -> list[list[int]]:
        prefix = prompts.fresh(SHARED_TOKENS)
        return [prefix + prompts.fresh(OWN_TOKENS) for _ in range(count)]

    return make


def _unrelated(count: int, length: int) -> Callable[[_Prompts], list[list[int]]]:
    return lambda prompts: [prompts.fresh(length) for _ in range(count)]


WORKLOADS = (
    Workload("cold_850_ttft", "s", _unrelated(1, SHARED_TOKENS + OWN_TOKENS), _cold_ttft),
    Workload("warm_850_ttft", "s", _shared(3), _warm_ttft),
    Workload("shared_warm_4_wall", "s", _shared(5), _shared_warm_wall),
    Workload("shared_cold_4_wall", "s", _shared(4), _shared_cold_wall),
    Workload("short_4_rate", "tokens/s", _unrelated(4, 50), _rate),
    Workload("short_8_rate", "tokens/s", _unrelated(8, 50), _rate),
)


async def bench_engine(bench: EngineBench) -> Report:
    """Run the benchmark. Raises LocalError when a measurement fails."""
    model, settings = find_model(bench.model), Settings(bench.threads, bench.cells, bench.slots)
    runs, against, seed = bench.runs, bench.against, bench.seed
    if against:
        check_installed()
    progress = Progress(1 + runs * len(WORKLOADS) + 2)
    progress.step("loading the model")
    ours: dict[str, list[float]] = {workload.name: [] for workload in WORKLOADS}
    theirs: dict[str, list[float]] = {workload.name: [] for workload in WORKLOADS}
    async with _targets(model, settings, against) as (engine, target, rival):
        prompts = _Prompts(random.Random(seed), engine.info.num_vocab)  # noqa: S311  no secret
        for run in range(runs):
            for workload in WORKLOADS:
                progress.step(f"run {run + 1} of {runs}: {workload.name}")
                made = workload.make(prompts)
                sides = [(target, ours)] if rival is None else [(target, ours), (rival, theirs)]
                for side, values in sides if run % 2 == 0 else reversed(sides):
                    values[workload.name].append(await workload.measure(side, made))
        progress.step("event-loop lag while decoding")
        lags_ms = await _loop_lags_ms(target, prompts)
    progress.step("decode steps and restores from inside")
    shares = await measure_shares(model, settings, runs, seed)
    progress.close()
    rows = []
    for workload in WORKLOADS:
        rows.append(row_of(workload.name, workload.unit, ours[workload.name]))
        if against:
            rows.append(row_of(f"{workload.name}_{against}", workload.unit, theirs[workload.name]))
            pairs = zip(ours[workload.name], theirs[workload.name], strict=True)
            rows.append(row_of(f"{workload.name}_ratio", "ours/theirs", [mine / other for mine, other in pairs]))
    p99 = quantiles(lags_ms, n=100)[98]
    rows.append(
        Row("loop_lag_p99_ms", round(p99, 2), "ms", round(min(lags_ms), 2), round(max(lags_ms), 2), len(lags_ms))
    )
    rows.append(row_of("step_overhead_share", "of a step", shares.step_overhead))
    if shares.tier_restore:
        rows.append(row_of("tier_restore_share", "of the prefill", shares.tier_restore))
    return report_of("engine", rows)


@asynccontextmanager
async def _targets(
    model: Path, settings: Settings, against: str | None
) -> AsyncIterator[tuple[ProcessEngine, Target, Target | None]]:
    ours = EngineSettings(model, threads=settings.threads, cells=settings.cells, slots=settings.slots)
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(open_engine(ours))
        rival = await stack.enter_async_context(open_llama_server(model, settings)) if against else None
        yield engine, OurEngine(engine), rival


async def _loop_lags_ms(target: Target, prompts: _Prompts) -> list[float]:
    """The delays of trio's timers while eight streams decode."""
    lags: list[float] = []

    async def watch() -> None:
        while True:
            due = time.perf_counter() + 0.005
            await trio.sleep(0.005)
            lags.append(max(0.0, time.perf_counter() - due) * 1000)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        await at_once(target, [prompts.fresh(50) for _ in range(8)], 48)
        nursery.cancel_scope.cancel()
    return lags
