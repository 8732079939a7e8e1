"""Prompts of clients and their times: workloads as streams of sessions, each with one prompt after the other.

A session's next prompt comes ``think_s`` after the previous answer, so a slow answer delays what follows, as with
people. Sessions begin as a Poisson process at a rate that makes ``rate`` prompts a second in total, or at the trace's
times. The tokens are numbers without meaning: equal where prompts share a prefix, and new where they do not.

- ``mmlu``: one prompt per session, ``workload.Mmlu``: 57 shared prefixes drawn by Zipf's law, a question of its own, an
  answer of 1 to 64 tokens.
- ``multi-turn``: 8 system prompts of 100 to 800 tokens, drawn by Zipf's law; 1 to 9 turns of 20 to 200 tokens, answers
  of 50 to 400, a median pause of 20 s before the next turn (log-normal, sigma 1). The users of an entry node are one
  client, as they are to a real node without keys, and only the system prompts are shared by all.
- ``no-sharing``: prompts as long as those of ``mmlu``, which share nothing.
- ``mooncake``: a trace, see ``read_mooncake``.
"""

import random
from bisect import bisect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from mycelia.proto.cache.sharing import EVERYBODY, Salt
from mycelia.sim.workload import Mmlu

MAX_ANSWER_TOKENS = 64
SYSTEM_PROMPTS, SYSTEM_TOKENS = 8, (100, 800)
TURNS, USER_TOKENS, ANSWER_TOKENS = (1, 9), (20, 200), (50, 400)
THINK_S = 20.0

_NEW_TOKENS = 1 << 30
"""First token of those that no two pieces of text share; below are the tokens of shared prefixes and of traces."""


@dataclass(frozen=True)
class Prompt:
    """A client's prompt and the answer that any model will give."""

    tokens: tuple[int, ...]
    answer: tuple[int, ...]
    """At least one token."""
    salt: Salt = Salt(scope=EVERYBODY)  # noqa: RUF009  immutable
    """Which prefixes it may reuse: without a salt all, as few-shot prompts should."""
    open_tokens: int = 0
    """Number of leading tokens that hold no secrets."""


@dataclass(frozen=True)
class Session:
    """Prompts that come one after the other."""

    at_s: float
    """When the first prompt comes, in seconds since the workload's start."""
    prompts: tuple[Prompt, ...]
    think_s: tuple[float, ...] = ()
    """Seconds between the answer to a prompt and the next one."""


class _Text:
    """Makes runs of tokens that differ from all others."""

    def __init__(self) -> None:
        self._num_pieces = 0

    def new(self, num_tokens: int) -> tuple[int, ...]:
        self._num_pieces += 1
        return (_NEW_TOKENS + self._num_pieces,) * num_tokens


def arrivals(rate: float, rng: random.Random) -> Iterator[float]:
    """A Poisson process without end: seconds since its start."""
    at_s = 0.0
    while True:
        at_s += rng.expovariate(rate)
        yield at_s


def mmlu(rate: float, zipf: float, rng: random.Random) -> Iterator[Session]:
    prompts, text = Mmlu(zipf, rng), _Text()
    for at_s in arrivals(rate, rng):
        tokens = tuple(prompts.draw())
        yield Session(at_s, (Prompt(tokens, text.new(rng.randint(1, MAX_ANSWER_TOKENS))),))


def no_sharing(rate: float, zipf: float, rng: random.Random) -> Iterator[Session]:
    text = _Text()
    for session in mmlu(rate, zipf, rng):
        (prompt,) = session.prompts
        yield replace(session, prompts=(Prompt(text.new(len(prompt.tokens)), text.new(len(prompt.answer))),))


def multi_turn(rate: float, zipf: float, rng: random.Random) -> Iterator[Session]:
    text = _Text()
    system = [text.new(rng.randint(*SYSTEM_TOKENS)) for _ in range(SYSTEM_PROMPTS)]
    weights = list(accumulate((rank + 1) ** -zipf for rank in range(SYSTEM_PROMPTS)))
    for at_s in arrivals(rate / (sum(TURNS) / 2), rng):
        said = prefix = system[bisect(weights, rng.random() * weights[-1])]
        prompts: list[Prompt] = []
        for _ in range(rng.randint(*TURNS)):
            tokens = said + text.new(rng.randint(*USER_TOKENS))
            prompts.append(Prompt(tokens, text.new(rng.randint(*ANSWER_TOKENS)), Salt(), len(prefix)))
            said = tokens + prompts[-1].answer
        think_s = tuple(THINK_S * rng.lognormvariate(0.0, 1.0) for _ in prompts[1:])
        yield Session(at_s, tuple(prompts), think_s)


Generator = Callable[[float, float, random.Random], Iterator[Session]]
"""(prompts a second, Zipf's exponent, random generator) -> sessions in order of their start, without end."""
GENERATORS: dict[str, Generator] = {"mmlu": mmlu, "multi-turn": multi_turn, "no-sharing": no_sharing}


def hit_bound(prompts: Sequence[tuple[Sequence[int], int, int]], counted: Sequence[bool], stride: int) -> float:
    """The share of the counted prompts' tokens that one unlimited cache would hold, in order of arrival.

    prompts: (block hashes of prompt and answer, number of the prompt's blocks, tokens of the prompt). Answers are known
    at once. 0 if nothing counts.
    """
    held: set[int] = set()
    hits = tokens = 0
    for (chain, num_blocks, num_tokens), counts in zip(prompts, counted, strict=True):
        if counts:
            depth = next((place for place in range(num_blocks) if chain[place] not in held), num_blocks)
            hits += min(depth * stride, num_tokens - 1)
            tokens += num_tokens
        held.update(chain)
    return hits / tokens if tokens else 0.0
