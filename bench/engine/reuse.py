"""What the reuse of prefixes saves: four prompts at once that share 800 warm tokens, against four that share nothing.

    python -m mycelia.bench.engine.reuse --model FILE [--runs 3] [--threads 1]

For models that keep states, too (``proto/cache/checkpoints.py``). Each run has new prompts for the same engine. The
last line is the ratio of the two walls, run for run.
"""

import argparse
import random
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median

import trio

from mycelia.bench.engine.engine import OWN_TOKENS, SHARED_TOKENS, OurEngine, at_once
from mycelia.bench.engine.target import FIRST_PLAIN_TOKEN
from mycelia.node.engine.process import open_engine
from mycelia.node.engine.settings import EngineSettings
from mycelia.node.models.find import find_model

PROMPTS, ANSWER_TOKENS = 4, 24


async def measure(model: Path, runs: int, threads: int) -> None:
    rng, walls = random.Random(1), list[tuple[float, float]]()  # noqa: S311  no secret
    async with open_engine(EngineSettings(model, threads=threads, slots=8, sequences=64)) as running:
        engine, num_vocab = OurEngine(running), running.info.num_vocab
        first = min(FIRST_PLAIN_TOKEN, num_vocab // 2)

        def fresh(length: int) -> list[int]:
            return [rng.randrange(first, num_vocab) for _ in range(length)]

        say(f"{running.info.name}: reuse {running.info.reuse}")
        for _ in range(runs):
            shared = fresh(SHARED_TOKENS)
            apart = [fresh(SHARED_TOKENS + OWN_TOKENS) for _ in range(PROMPTS)]
            together = [shared + fresh(OWN_TOKENS) for _ in range(PROMPTS + 1)]
            await engine.complete(together[0], 1)
            with_reuse, timings = await at_once(engine, together[1:], ANSWER_TOKENS)
            without, _ = await at_once(engine, apart, ANSWER_TOKENS)
            walls.append((with_reuse, without))
            cached = sorted(timing.cached_tokens for timing in timings)
            say(f"  shared {with_reuse:.2f} s (cached {cached}), apart {without:.2f} s")
    say(f"  ratio {median(shared / apart for shared, apart in walls):.3f}")


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def run(measure: Callable[[Path, int, int], Awaitable[None]], doc: str | None, runs: int) -> None:
    """Runs ``measure(model file, runs, threads)`` with the command line's options. doc: the module's, for --help; runs:
    the default."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--runs", type=int, default=runs)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    trio.run(measure, find_model(options.model), options.runs, options.threads)


if __name__ == "__main__":
    run(measure, __doc__, 3)
