"""How many prompts a second a swarm can answer: what a load of 1 means.

    requests/s of an engine  <=  prefill_rate / u                            prompts are prefilled one at a time
                             <=  slots / (u / prefill_rate + (a - 1) / decode_rate)      each holds a slot meanwhile

u is the number of uncached tokens of a prompt and a of tokens of an answer, both means of the workload, if every prompt
finds what *one* cache holds of it that is as large as all caches of the swarm together and drops what was not used for
longest. A swarm's capacity is the sum over its engines of the lesser bound: with such a cache and perfect balance all
are fully busy at a load of 1. No routing rule reaches that, because each node has a cache of its own and prompts arrive
at random; a rule with fewer hits is overloaded earlier.

More prompts a second keep more sessions under way, of which such a cache holds a smaller part. So the rate at a load is
the one that is this share of what the swarm can answer *at that rate*.
"""

import heapq
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from mycelia.proto.wire.blocks import STRIDE
from mycelia.sim.machine import EngineSpec
from mycelia.sim.prompts import Session, Turn
from mycelia.sim.sessions import USUAL_DECODE_RATE

SAMPLE = 1_000
"""Prompts that fill the one cache, and the same number that is measured."""
_PRECISION = 1.01
_SLOWEST = 1e-3
"""Prompts/s at which hardly any session is under way while another one is."""


@dataclass(frozen=True)
class Work:
    """Mean work of a prompt, in tokens."""

    uncached_tokens: float
    answer_tokens: float


def rate_at(load: float, specs: Sequence[EngineSpec], sessions_at: Callable[[float], Iterable[Session]]) -> float:
    """Prompts a second at a load. sessions_at: the workload at a rate of prompts a second. Raises ValueError without
    prompts."""
    cache_tokens = sum(spec.context_tokens for spec in specs)

    def answered(rate: float) -> float:
        return load * capacity(specs, mean_work(sessions_at(rate), cache_tokens))

    high = answered(_SLOWEST)
    low = min(answered(high), high)  # (a higher rate is never answered better, but for chance)
    while high > low * _PRECISION:
        middle = math.sqrt(low * high)
        if answered(middle) > middle:
            low = middle
        else:
            high = middle
    return low


def mean_work(sessions: Iterable[Session], cache_tokens: float = math.inf) -> Work:
    """Mean work of the second ``SAMPLE`` prompts in order of time, or of the second half if there are fewer than twice
    as many. Answers take their usual time. Raises ValueError without prompts."""
    turns = list(islice(_in_time(sessions), 2 * SAMPLE))
    if not turns:
        raise ValueError("no prompts")
    first = len(turns) // 2
    cache = _Cache(cache_tokens)
    uncached = answered = 0
    for number, turn in enumerate(turns):
        if number >= first:
            cached = cache.match(turn) // STRIDE * STRIDE
            uncached += max(turn.num_tokens - cached, 1)
            answered += turn.answer.length
        cache.store(turn)
    counted = len(turns) - first
    return Work(uncached / counted, answered / counted)


def capacity(specs: Sequence[EngineSpec], work: Work) -> float:
    return sum(_requests_per_s(spec, work) for spec in specs)


class _Cache:
    """A prefix cache of texts, the least recently used ones dropped first. A text is a token, see ``prompts.Piece``."""

    def __init__(self, capacity_tokens: float) -> None:
        self._capacity = capacity_tokens
        self._counts: OrderedDict[int, int] = OrderedDict()
        self._num_tokens = 0

    def match(self, turn: Turn) -> int:
        """Tokens of the prompt that are held, from its beginning."""
        matched = 0
        for token, count in turn.pieces:
            held = self._counts.get(token, 0)
            matched += min(held, count)
            if held < count:
                break
        return matched

    def store(self, turn: Turn) -> None:
        # From the end on, so that a prefix is always used later than what follows it.
        for token, count in (turn.answer, *reversed(turn.pieces)):
            self._num_tokens += count - self._counts.pop(token, 0)
            self._counts[token] = count
        while self._num_tokens > self._capacity:
            _, count = self._counts.popitem(last=False)
            self._num_tokens -= count


def _requests_per_s(spec: EngineSpec, work: Work) -> float:
    prefill_s = work.uncached_tokens / spec.prefill_rate
    slot_s = prefill_s + (work.answer_tokens - 1) / spec.decode_rate
    return min(1 / prefill_s, spec.slots / slot_s)


def _in_time(sessions: Iterable[Session]) -> Iterator[Turn]:
    """The prompts of all sessions by the times at which they come, if each answer takes its usual time."""
    coming = iter(sessions)
    begins = next(coming, None)
    waiting: list[tuple[float, int, Session, int]] = []
    number = 0
    while begins is not None or waiting:
        if begins is not None and (not waiting or begins.at_s <= waiting[0][0]):
            number += 1
            heapq.heappush(waiting, (begins.at_s, number, begins, 0))
            begins = next(coming, None)
            continue
        at_s, order, session, place = heapq.heappop(waiting)
        turn = session.turns[place]
        yield turn
        if place + 1 < len(session.turns):
            at_s += turn.answer.length / USUAL_DECODE_RATE + session.think_s[place]
            heapq.heappush(waiting, (at_s, order, session, place + 1))
