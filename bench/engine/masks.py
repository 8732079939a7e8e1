"""What a grammar costs the answers beside it: three plain ones beside one that keeps a nested JSON schema, against the
same three beside another plain one.

    python -m mycelia.bench.engine.masks --model smollm2 [--runs 8] [--threads 1]

Both by turns in one engine, with new prompts each time. A line has the tokens of all answers per second of the engine's
CPU time, and those of the three per second of the clock; the last line has the medians of the ratios, run for run.
Other programs on the machine disturb the clock more than the CPU time.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import psutil
import trio

from mycelia.bench.engine import reuse
from mycelia.bench.engine.reuse import say
from mycelia.bench.engine.target import FIRST_PLAIN_TOKEN
from mycelia.node.engine.engine import EngineFailed, EngineRequest, EngineTokens
from mycelia.node.engine.process import ProcessEngine, open_engine
from mycelia.node.engine.settings import EngineSettings
from mycelia.proto.wire.errors import LocalError
from mycelia.proto.wire.messages import Sampling

PROMPT_TOKENS, ANSWER_TOKENS, OTHERS = 32, 160, 3
_ITEM = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 8, "maxLength": 40},
        "kind": {"enum": ["mill", "river", "sack"]},
        "sizes": {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 500}, "minItems": 2},
        "owner": {"type": "object", "properties": {"id": {"type": "string", "format": "uuid"}}, "required": ["id"]},
    },
    "required": ["name", "kind", "sizes", "owner"],
    "additionalProperties": False,
}
SCHEMA = json.dumps({"type": "array", "items": _ITEM, "minItems": 100})
"""No answer ends before its last token."""


async def run(engine: ProcessEngine, prompts: Sequence[Sequence[int]], has_grammar: bool) -> tuple[float, float]:
    """(tokens of all answers per CPU second of the engine, those of all but the first per second). Raises LocalError
    when an answer fails."""
    counts = [0] * len(prompts)

    async def answer(place: int) -> None:
        grammar = SCHEMA if has_grammar and not place else ""
        sampling = Sampling(
            max_tokens=ANSWER_TOKENS, temperature=0.8, seed=place + 1, grammar=grammar, grammar_kind="json_schema"
        )
        async with engine.generate(EngineRequest(place.to_bytes(16, "big"), prompts[place], sampling)) as items:
            async for item in items:
                if isinstance(item, EngineFailed):
                    raise LocalError(f"the engine failed: {item.message}")
                counts[place] += len(item.tokens) if isinstance(item, EngineTokens) else 0

    process = psutil.Process(engine.pid)
    began, before = trio.current_time(), sum(process.cpu_times()[:2])
    async with trio.open_nursery() as nursery:
        for place in range(len(prompts)):
            nursery.start_soon(answer, place)
    wall_s, cpu_s = trio.current_time() - began, sum(process.cpu_times()[:2]) - before
    return sum(counts) / cpu_s, sum(counts[1:]) / wall_s


async def measure(model: Path, runs: int, threads: int) -> None:
    rng, ratios = random.Random(1), list[tuple[float, float]]()  # noqa: S311  no secret
    async with open_engine(EngineSettings(model, threads=threads, slots=OTHERS + 1, ram_tier_mib=0)) as engine:
        for place in range(runs + 1):
            rates = {}
            for has_grammar in (False, True) if place % 2 else (True, False):
                prompts = [
                    [rng.randrange(FIRST_PLAIN_TOKEN, engine.info.num_vocab) for _ in range(PROMPT_TOKENS)]
                    for _ in range(OTHERS + 1)
                ]
                rates[has_grammar] = await run(engine, prompts, has_grammar)
            if place:  # (the first one warms up)
                (cpu, wall), (plain_cpu, plain_wall) = rates[True], rates[False]
                ratios.append((cpu / plain_cpu, wall / plain_wall))
                say(f"  with a grammar {cpu:.1f} tokens per CPU s, the others {wall:.1f} per s")
                say(f"  without        {plain_cpu:.1f} tokens per CPU s, the others {plain_wall:.1f} per s")
    by_cpu, by_clock = (median(ratio) for ratio in zip(*ratios, strict=True))
    say(f"  ratio {by_cpu:.3f} by CPU time, {by_clock:.3f} by the clock")


if __name__ == "__main__":
    reuse.run(measure, __doc__, 8)
