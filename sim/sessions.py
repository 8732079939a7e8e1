"""Workloads that are made up: prompts of clients and their times, as streams of sessions.

A session's next prompt comes ``think_s`` after the previous answer, so a slow answer delays what follows, as with
people. Sessions begin as a Poisson process at a rate that makes ``rate`` prompts a second in total. Where sessions have
several prompts, some are under way when the workload begins, so that this rate holds from the start.

- ``mmlu``: one prompt per session, ``workload.Mmlu``: 57 shared prefixes drawn by Zipf's law, a question of its own, an
  answer of 1 to 64 tokens.
- ``no-sharing``: prompts as long as those of ``mmlu``, which share nothing.
- ``multi-turn``, ``tools``, ``agents``: conversations, each with one of a few system prompts, drawn by Zipf's law, and
  then turn by turn longer. See ``CONVERSATIONS``.

Uniform between the two values in brackets, and pauses log-normal with sigma 1:

| | system prompts | their tokens | first turn | each next turn | answer | turns | median pause | mean prompt |
|---|---|---|---|---|---|---|---|---|
| multi-turn: people | 8 | 100-800 | 20-200 | 20-200 | 50-400 | 1-9 | 20 s | 1,200 |
| tools: short calls, their results | 12 | 700-1,900 | 20-200 | 50-400 | 20-100 | 2-12 | 3 s | 2,400 |
| agents: long sessions with slow tools | 8 | 5,000-7,000 | 3,000-9,000 | 900-2,200 | 50-800 | 6-20 | 150 s | 25,000 |

With ``agents``, prompts grow from at least 8,000 to at most 60,000 tokens by 1,000 to 3,000 a turn. 30 nodes at a load
of 0.7 have caches for about a third of the sessions that are under way.

The users of an entry node are one client, as they are to a real node without keys, and only the system prompts are
shared by all.
"""

import math
import random
from bisect import bisect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from heapq import merge
from itertools import accumulate
from operator import attrgetter

from mycelia.proto.cache.sharing import Salt
from mycelia.sim.prompts import Piece, Session, Text, Turn
from mycelia.sim.workload import Mmlu

MAX_ANSWER_TOKENS = 64
USUAL_DECODE_RATE = 25.0
"""Tokens/s: about how long answers take, for the number of sessions under way."""

Range = tuple[int, int]
"""The least and the greatest value, both included."""


@dataclass(frozen=True)
class Conversation:
    """What conversations of one kind are like: the columns of the table above."""

    num_systems: int
    system_tokens: Range
    first_tokens: Range
    next_tokens: Range
    answer_tokens: Range
    turns: Range
    pause_s: float
    max_tokens: int = 1 << 30
    """A conversation ends before a prompt is longer."""


CONVERSATIONS = {
    "multi-turn": Conversation(8, (100, 800), (20, 200), (20, 200), (50, 400), (1, 9), 20.0),
    "tools": Conversation(12, (700, 1_900), (20, 200), (50, 400), (20, 100), (2, 12), 3.0),
    "agents": Conversation(8, (5_000, 7_000), (3_000, 9_000), (900, 2_200), (50, 800), (6, 20), 150.0, 60_000),
}


def arrivals(rate: float, rng: random.Random) -> Iterator[float]:
    """A Poisson process without end: seconds since its start."""
    at_s = 0.0
    while True:
        at_s += rng.expovariate(rate)
        yield at_s


def in_bursts(sessions: Iterator[Session], burst_s: float) -> Iterator[Session]:
    """The same sessions, but they begin only during every other ``burst_s`` seconds, and then twice as often."""
    for session in sessions:
        cycles, within_s = divmod(session.at_s, 2 * burst_s)
        yield replace(session, at_s=cycles * 2 * burst_s + within_s / 2)


def mmlu(rate: float, zipf: float, rng: random.Random) -> Iterator[Session]:
    prompts, text = Mmlu(zipf, rng), Text()
    for at_s in arrivals(rate, rng):
        pieces = tuple(Piece(*piece) for piece in prompts.draw_pieces())
        yield Session(at_s, (Turn(pieces, text.new(rng.randint(1, MAX_ANSWER_TOKENS))),))


def no_sharing(rate: float, zipf: float, rng: random.Random) -> Iterator[Session]:
    text = Text()
    for session in mmlu(rate, zipf, rng):
        (turn,) = session.turns
        yield replace(session, turns=(Turn((text.new(turn.num_tokens),), text.new(turn.answer.length)),))


def conversations(kind: Conversation, rate: float, zipf: float, rng: random.Random) -> Iterator[Session]:
    text = Text()
    systems = [text.new(rng.randint(*kind.system_tokens)) for _ in range(kind.num_systems)]
    weights = list(accumulate((rank + 1) ** -zipf for rank in range(kind.num_systems)))
    least, most = kind.turns

    def make(rng: random.Random, num_turns: int) -> tuple[Turn, ...]:
        system = systems[bisect(weights, rng.random() * weights[-1])]
        lengths = [rng.randint(*(kind.next_tokens if turn else kind.first_tokens)) for turn in range(num_turns)]
        answers = [rng.randint(*kind.answer_tokens) for _ in lengths]
        return turns_of(text, (system,), list(zip(lengths, answers, strict=True)), kind.max_tokens)

    answer_s = sum(kind.answer_tokens) / 2 / USUAL_DECODE_RATE
    return stream(rate, range(least, most + 1), make, kind.pause_s, answer_s, rng)


def turns_of(
    text: Text, said: tuple[Piece, ...], lengths: Sequence[tuple[int, int]], max_tokens: int = 1 << 30
) -> tuple[Turn, ...]:
    """A conversation after ``said``, whose turns add (tokens, tokens of the answer). It ends before a prompt would be
    longer than ``max_tokens``. Everybody may reuse what is ``said``, and only its own client all else."""
    open_tokens = sum(piece.length for piece in said)
    turns: list[Turn] = []
    for num_tokens, num_answer in lengths:
        said = (*said, text.new(num_tokens))
        turn = Turn(said, text.new(num_answer), Salt(), open_tokens)
        if turn.num_tokens > max_tokens:
            break
        turns.append(turn)
        said = (*said, turn.answer)
    return tuple(turns)


def stream(
    rate: float,
    lengths: Sequence[int],
    make: Callable[[random.Random, int], tuple[Turn, ...]],
    pause_s: float,
    answer_s: float,
    rng: random.Random,
) -> Iterator[Session]:
    """Sessions without end, of ``rate`` prompts a second.

    lengths: the numbers of turns of sessions, of which one is drawn for each. make: (random generator, number of turns)
    -> the turns. pause_s: the median pause. answer_s: the usual time of an answer.

    Sessions under way at the start are drawn as a renewal process has them: the longer a session, the likelier, at any
    of its turns, and in the middle of a pause that is likely a long one.
    """
    before = random.Random(rng.getrandbits(64))  # (the sessions that begin later do not depend on the rate)
    mean_pause_s = pause_s * math.exp(0.5)

    def session(at_s: float, turns: tuple[Turn, ...], rng: random.Random) -> Session:
        return Session(at_s, turns, tuple(pause_s * rng.lognormvariate(0.0, 1.0) for _ in turns[1:]))

    def begin() -> Iterator[Session]:
        for at_s in arrivals(rate * len(lengths) / sum(lengths), rng):
            yield session(at_s, make(rng, rng.choice(lengths)), rng)

    under_way = []
    for _ in range(round(rate * (mean_pause_s + answer_s))):
        (num_turns,) = before.choices(lengths, lengths)
        turns = make(before, num_turns)
        at_s = before.random() * (pause_s * before.lognormvariate(1.0, 1.0) + answer_s)
        under_way.append(session(at_s, turns[before.randrange(len(turns)) :], before))
    return merge(sorted(under_way, key=attrgetter("at_s")), begin(), key=attrgetter("at_s"))


Generator = Callable[[float, float, random.Random], Iterator[Session]]
"""(prompts a second, Zipf's exponent, random generator) -> sessions in order of their start, without end."""


def _generator(kind: Conversation) -> Generator:
    return lambda rate, zipf, rng: conversations(kind, rate, zipf, rng)


GENERATORS: dict[str, Generator] = {
    "mmlu": mmlu,
    **{name: _generator(kind) for name, kind in CONVERSATIONS.items()},
    "no-sharing": no_sharing,
}


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
