"""How many prompts a second a swarm can answer: what a load of 1 means.

    requests/s of an engine  <=  prefill_rate / u                            prompts are prefilled one at a time
                             <=  slots / (u / prefill_rate + (a - 1) / decode_rate)      each holds a slot meanwhile

u is the number of uncached tokens of a prompt and a of tokens of an answer, both means of the workload, if every prompt
finds what *one* unlimited cache holds of it, as in ``sessions.hit_bound``. A swarm's capacity is the sum over its
engines of the lesser bound: with perfect caches and perfect balance all are fully busy at a load of 1. No routing rule
reaches that, because caches are limited and prompts arrive at random; a rule with fewer hits is overloaded earlier.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from mycelia.proto.wire.blocks import STRIDE, block_hashes
from mycelia.sim.engine import EngineSpec
from mycelia.sim.sessions import Prompt, Session
from mycelia.sim.world import NAMESPACE

SAMPLE = 1_000
"""Prompts that fill the one cache, and the same number that is measured."""


@dataclass(frozen=True)
class Work:
    """Mean work of a prompt, in tokens."""

    uncached_tokens: float
    answer_tokens: float


def mean_work(sessions: Iterable[Session]) -> Work:
    """Mean work of the second ``SAMPLE`` prompts, or of the second half if there are fewer than twice as many. Sessions
    count one after the other: their order does not matter to an unlimited cache. Raises ValueError without prompts."""
    prompts = list(islice(_prompts(sessions), 2 * SAMPLE))
    if not prompts:
        raise ValueError("no prompts")
    first = len(prompts) // 2
    held: set[int] = set()
    uncached = answered = 0
    for number, prompt in enumerate(prompts):
        chain = block_hashes(NAMESPACE, prompt.tokens + prompt.answer)
        num_blocks = len(prompt.tokens) // STRIDE
        if number >= first:
            depth = next((place for place in range(num_blocks) if chain[place] not in held), num_blocks)
            uncached += max(len(prompt.tokens) - depth * STRIDE, 1)
            answered += len(prompt.answer)
        held.update(chain)
    counted = len(prompts) - first
    return Work(uncached / counted, answered / counted)


def capacity(specs: Sequence[EngineSpec], work: Work) -> float:
    return sum(_requests_per_s(spec, work) for spec in specs)


def _requests_per_s(spec: EngineSpec, work: Work) -> float:
    prefill_s = work.uncached_tokens / spec.prefill_rate
    slot_s = prefill_s + (work.answer_tokens - 1) / spec.decode_rate
    return min(1 / prefill_s, spec.slots / slot_s)


def _prompts(sessions: Iterable[Session]) -> Iterator[Prompt]:
    for session in sessions:
        yield from session.prompts
