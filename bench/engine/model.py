"""``mycelia bench model``: what one model does on this machine, in the numbers that decide whether to serve it."""

import random
from dataclasses import dataclass

import psutil
import trio

from mycelia.bench.engine.engine import OurEngine, at_once
from mycelia.bench.engine.target import FIRST_PLAIN_TOKEN
from mycelia.bench.plans import ModelBench
from mycelia.bench.report.report import Progress, Report, report_of, row_of
from mycelia.node.engine.kinds import TEXT
from mycelia.node.engine.process import ProcessEngine, open_engine
from mycelia.node.engine.settings import EngineSettings, sequences_for
from mycelia.node.models.find import find_model
from mycelia.proto.wire.errors import LocalError

READ_RATE = 5.0
"""Tokens/s at which people read: a slower answer is one to wait for."""
NEW_TOKENS, ANSWER_TOKENS, PAUSE_S = 100, 200, 60.0
"""A conversation: new tokens of a prompt, tokens of an answer, and the time from one prompt to the next. What came
before in it is cached."""
_SHORT, _DECODED = 32, 48
_TEXTS = 4


@dataclass(frozen=True)
class Run:
    prefill_rate: float
    decode_rates: dict[int, float]
    """Answers at once -> tokens/s of all of them."""


async def bench_model(name: str, plan: ModelBench) -> Report:
    """Raises LocalError, also for a model that is not on this machine."""
    path = find_model(name)
    settings = EngineSettings(
        path,
        threads=plan.threads,
        slots=plan.slots,
        sequences=sequences_for(plan.slots),
        gpu_layers=plan.gpu_layers,
        ram_tier_mib=0,
    )
    rng = random.Random(plan.seed)  # noqa: S311  no secret
    runs = list[Run]()
    with Progress(plan.runs + 1) as progress:
        progress.step("loading")
        async with open_engine(settings) as engine:
            if engine.info.kind != TEXT:
                return await _bench_texts(engine, plan, rng, progress)
            plain = max(engine.info.num_vocab - FIRST_PLAIN_TOKEN, 1)

            def fresh(length: int) -> list[int]:
                return [min(FIRST_PLAIN_TOKEN, engine.info.num_vocab - 1) + rng.randrange(plain) for _ in range(length)]

            prompt_tokens = min(plan.prompt_tokens, engine.info.context_tokens - 1)
            target = OurEngine(engine)
            await target.complete(fresh(_SHORT), 4)  # (warms up)
            for number in range(plan.runs):
                progress.step(f"run {number + 1}")
                cold = await target.complete(fresh(prompt_tokens), 1)
                rates = {}
                for count in _counts(plan.slots):
                    wall_s, timings = await at_once(target, [fresh(_SHORT) for _ in range(count)], _DECODED)
                    decode_s = wall_s - min(timing.ttft_s for timing in timings)
                    tokens = sum(timing.completion_tokens for timing in timings)
                    rates[count] = max(tokens - count, 0) / max(decode_s, 1e-6)
                runs.append(Run(prompt_tokens / cold.ttft_s, rates))
            memory_mb, cells = _memory_mb(engine), engine.num_cells or 0
    return _report(runs, memory_mb, cells)


async def _bench_texts(engine: ProcessEngine, plan: ModelBench, rng: random.Random, progress: Progress) -> Report:
    """What a model does that only reads texts."""
    rates, length = list[float](), min(plan.prompt_tokens, engine.info.context_tokens)
    for number in range(plan.runs + 1):
        if number:  # (the first one warms up)
            progress.step(f"run {number}")
        began = trio.current_time()
        await engine.embed([[rng.randrange(engine.info.num_vocab) for _ in range(length)] for _ in range(_TEXTS)])
        rates.append(_TEXTS * length / (trio.current_time() - began))
    rows = [row_of("text_rate", "tokens/s", rates[1:]), row_of("engine_memory", "MB", [_memory_mb(engine)])]
    return report_of("model", rows)


def _memory_mb(engine: ProcessEngine) -> float:
    return psutil.Process(engine.pid).memory_info().rss / 1e6 if engine.pid is not None else 0.0


def _counts(slots: int) -> list[int]:
    return sorted({1, *(count for count in (2, 4) if count < slots), slots})


def _report(runs: list[Run], memory_mb: float, cells: int) -> Report:
    if not runs:
        raise LocalError("nothing was measured")
    counts = list(runs[0].decode_rates)
    rows = [row_of("prefill_rate", "tokens/s", [run.prefill_rate for run in runs])]
    rows += [row_of(f"decode_rate_{n}", "tokens/s", [run.decode_rates[n] for run in runs]) for n in counts]
    rows.append(row_of("engine_memory", "MB", [memory_mb]))
    rows.append(row_of("kv_cells", "tokens", [cells]))
    rows.append(row_of("answers_at_once", "clients", [readable(run) for run in runs]))
    rows.append(row_of("conversations", "clients", [conversations(run) for run in runs]))
    return report_of("model", rows)


def readable(run: Run) -> int:
    """The most answers at once that come as fast as people read."""
    return max((count for count, rate in run.decode_rates.items() if rate / count >= READ_RATE), default=0)


def conversations(run: Run) -> int:
    """The people who can talk with the model, each of whom asks every ``PAUSE_S``."""
    fastest = max(run.decode_rates.values())
    if fastest <= 0:
        return 0
    return int(PAUSE_S / (NEW_TOKENS / run.prefill_rate + ANSWER_TOKENS / fastest))


def legend() -> str:
    return (
        f"decode_rate_N: all tokens of N answers at once. answers_at_once: how many clients get {READ_RATE:.0f}"
        f" tokens/s or more each, which is as fast as people read. conversations: people who ask every {PAUSE_S:.0f} s,"
        f" {NEW_TOKENS} new tokens each, and get {ANSWER_TOKENS}. engine_memory: without that of GPUs."
    )
