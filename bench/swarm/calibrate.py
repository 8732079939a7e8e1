"""The speed of this machine's engines as input for the simulator. It is measured while no swarm runs, with engines like
those of the nodes and with the nodes' prompts.

Prefill is fitted as start + tokens x (1 / rate + depth x tokens before them), over cold and warm prompts of one engine
alone, by least squares of the relative errors. The slowdown of several engines is measured with 1, 2, ... of them at
once.
"""

import random
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from statistics import harmonic_mean, median

import numpy as np
import trio

from mycelia.bench.engine.engine import OurEngine
from mycelia.bench.report.report import Progress
from mycelia.bench.swarm.prompts import Asked
from mycelia.node.engine.process import ProcessEngine, open_engine
from mycelia.node.engine.settings import EngineSettings, usable_cores
from mycelia.proto.cache.radix import common_prefix
from mycelia.proto.wire.blocks import STRIDE
from mycelia.proto.wire.errors import LocalError
from mycelia.proto.wire.messages import Conversation
from mycelia.sim.machine import EngineSpec

NUM_COLD, NUM_WARM = 6, 6
DECODED_TOKENS, NUM_SHUFFLED = 32, 50
AT_ONCE_RUNS = 2
ENGINES_A_CORE = 2
"""Most engines measured at once: further ones only divide the power of the cores."""
_WARM_SHARE = 0.5
"""A prompt is warm if more than this share of it should be cached."""


@dataclass(frozen=True)
class Machine:
    spec: EngineSpec
    """The speed of one engine alone."""
    speeds: tuple[float, ...]
    """Speed of each engine while 1, 2, ... compute, relative to one alone."""
    prompts: list[list[int]]
    """The tokens of the prompts, as engines see them."""

    def cold_rate(self) -> float:
        """Prompts per second that all engines together answer when nothing is cached."""
        seconds = [self.spec.prefill_s(0, len(prompt)) for prompt in self.prompts]
        return len(self.speeds) * self.speeds[-1] * len(seconds) / sum(seconds)

    def halfway_to(self, later: "Machine") -> "Machine":
        """A machine that takes, for each prefill and each token of an answer, the mean of both machines' seconds."""
        ours, theirs = self.spec, later.spec
        spec = replace(
            ours,
            prefill_rate=harmonic_mean([ours.prefill_rate, theirs.prefill_rate]),
            decode_rate=harmonic_mean([ours.decode_rate, theirs.decode_rate]),
            start_s=(ours.start_s + theirs.start_s) / 2,
            depth_s=(ours.depth_s + theirs.depth_s) / 2,
        )
        speeds = tuple(harmonic_mean(both) for both in zip(self.speeds, later.speeds, strict=True))
        return replace(self, spec=spec, speeds=speeds)


async def calibrate(
    settings: EngineSettings, num_engines: int, asked: Sequence[Asked], seed: int, progress: Progress
) -> Machine:
    """Start engines, measure, end them. Raises LocalError when one fails, or the cache is too small for a prompt."""
    async with AsyncExitStack() as stack:
        num_engines = num_measured(num_engines)
        progress.step(f"starting {num_engines} engines")
        engines = [await stack.enter_async_context(open_engine(settings)) for _ in range(num_engines)]
        prompts = [list(await engines[0].tokenize_chat(Conversation(one.messages))) for one in asked]
        _check_room(engines[0], [len(prompt) + one.max_tokens for prompt, one in zip(prompts, asked, strict=True)])
        targets = [OurEngine(engine) for engine in engines]
        progress.step("one engine alone")
        rng = random.Random(seed)  # noqa: S311  no secret
        spec = await _measure_alone(targets[0], prompts, engines[0].cache_tokens, rng)
        typical = sorted(prompts, key=len)[len(prompts) // 2]
        walls_s = []
        for count in range(1, num_engines + 1):
            progress.step(f"{count} engines at once")
            runs = [await _at_once(targets[:count], typical, rng) for _ in range(AT_ONCE_RUNS)]
            walls_s.append(median(runs))
        return Machine(spec, speeds_of(walls_s, usable_cores() / settings.num_threads), prompts)


def num_measured(num_engines: int) -> int:
    return min(num_engines, ENGINES_A_CORE * usable_cores())


def num_steps(num_engines: int) -> int:
    return 2 + num_measured(num_engines)


def speeds_of(walls_s: Sequence[float], num_at_full_speed: float) -> tuple[float, ...]:
    """Speed of each engine while 1, 2, ... compute, from the times of equal prompts. Other programs may have made some
    of them too good to be true, so they are limited: more engines are never faster, nor all together than the cores."""
    speeds: list[float] = []
    for count, wall_s in enumerate(walls_s, start=1):
        speeds.append(min(walls_s[0] / wall_s, max(num_at_full_speed, 1.0) / count, speeds[-1] if speeds else 1.0))
    return tuple(speeds)


def _check_room(engine: ProcessEngine, lengths: Sequence[int]) -> None:
    """lengths: tokens of each prompt with its answer."""
    if max(lengths) > engine.info.context_tokens:
        longest = f"a prompt has {max(lengths)} tokens with its answer"
        raise LocalError(f"{longest}, a node holds {engine.info.context_tokens}: more --cells")


async def _measure_alone(
    target: OurEngine, prompts: Sequence[Sequence[int]], cache_tokens: int, rng: random.Random
) -> EngineSpec:
    """Some cold prompts, and some that find most of themselves cached after those."""
    asked: list[Sequence[int]] = []
    measured: list[tuple[int, int, float]] = []
    missing = {False: NUM_COLD, True: NUM_WARM}
    for prompt in prompts:
        is_warm = any(common_prefix(prompt, other) > _WARM_SHARE * len(prompt) for other in asked)
        if missing[is_warm]:
            missing[is_warm] -= 1
            asked.append(prompt)
            timing = await target.complete(prompt, 1)
            measured.append((timing.cached_tokens, len(prompt), timing.ttft_s))
    start_s, token_s, depth_s = fit_prefill(measured)
    # (the answer to a question of MMLU may be one token)
    decoded = await target.complete(rng.sample(prompts[0], min(len(prompts[0]), NUM_SHUFFLED)), 1 + DECODED_TOKENS)
    num_decoded = decoded.completion_tokens - 1
    decode_s = (decoded.total_s - decoded.ttft_s) / num_decoded if num_decoded > 0 else token_s
    return EngineSpec(
        prefill_rate=1 / token_s,
        decode_rate=1 / decode_s,
        slots=EngineSettings.slots,
        cache_blocks=cache_tokens // STRIDE,
        grain=1,
        start_s=start_s,
        depth_s=depth_s,
    )


def fit_prefill(measured: Sequence[tuple[int, int, float]]) -> tuple[float, float, float]:
    """(cached, prompt, seconds) -> (start, seconds per token, seconds per token and token before it), none below 0."""
    seconds = np.array([ttft_s for _, _, ttft_s in measured])
    every_term = np.array([(1.0, n - cached, (n - cached) * (cached + n) / 2) for cached, n, _ in measured])
    fits = []
    for terms in ([0, 1, 2], [0, 1], [1, 2], [1]):  # (the tokens themselves are always included)
        matrix = every_term[:, terms] / seconds[:, None]
        found, *_ = np.linalg.lstsq(matrix, np.ones(len(seconds)), rcond=None)
        if (found > 0).all():
            error = float(np.square(matrix @ found - 1).sum())
            fits.append((error, dict(zip(terms, found.tolist(), strict=True))))
    _, best = min(fits, key=lambda fit: fit[0])
    return best.get(0, 0.0), best[1], best.get(2, 0.0)


async def _at_once(targets: Sequence[OurEngine], prompt: Sequence[int], rng: random.Random) -> float:
    """Mean seconds until the first token of prompts like ``prompt``, one at each engine, with nothing cached."""
    waits_s: list[float] = []

    async def one(target: OurEngine) -> None:
        timing = await target.complete(rng.sample(prompt, len(prompt)), 1)
        waits_s.append(timing.ttft_s)

    async with trio.open_nursery() as nursery:
        for target in targets:
            nursery.start_soon(one, target)
    return sum(waits_s) / len(waits_s)
