"""The workloads of ``bench swarm``: what clients ask, in which order, before it has times.

- ``mmlu``: questions with five examples, see ``mmlu.py``.
- ``dialogue``: the shape of the simulator's ``tools``, with all lengths x ``SCALE`` so that a small model on a few
  cores can keep up: one of 12 system prompts of 280 to 760 tokens, a task, and then turn by turn a short call (8 to 40
  tokens) and its result (20 to 160). A prompt has some 1,000 tokens. The next one comes after the answer and a pause
  (median 3 s). Texts are made of common words. A client sends its earlier calls as the script has them, whatever the
  model answered, so that all policies and the simulator get the same prompts.
"""

import random
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

from mycelia.bench.plans import DIALOGUE, SwarmBench
from mycelia.bench.swarm.mmlu import draw_prompts, load_subjects, made_up_subjects, words
from mycelia.proto.wire.messages import ChatMessage
from mycelia.sim.sessions import CONVERSATIONS, Range

SCALE = 0.4
_TOOLS = CONVERSATIONS["tools"]
PAUSE_S = _TOOLS.pause_s


@dataclass(frozen=True)
class Asked:
    """One prompt."""

    messages: tuple[ChatMessage, ...]
    max_tokens: int
    after: int | None = None
    """The prompt of the same client before it, by its place in the workload; None: it is the first one."""
    pause_s: float = 0.0
    """Time from the answer to that prompt."""


def user(text: str) -> ChatMessage:
    return ChatMessage(role="user", content=text)


def prompts_of(bench: SwarmBench, run: int) -> list[Asked]:
    """The prompts of a run, in which a client's prompts are in order. Raises LocalError for a folder without MMLU."""
    rng = random.Random(f"prompts {bench.seed + run}")  # noqa: S311  no secret
    if bench.workload == DIALOGUE:
        return draw_dialogues(bench.num_requests, bench.zipf, rng)
    subjects = load_subjects(bench.data) if bench.data else made_up_subjects(bench.num_requests, bench.seed)
    texts = draw_prompts(subjects, bench.num_requests, bench.zipf, rng)
    return [Asked((user(text),), bench.max_tokens) for text in texts]


def draw_dialogues(count: int, zipf: float, rng: random.Random) -> list[Asked]:
    """``count`` prompts of clients that come one after the other; the last client's may be cut off."""
    systems = [
        f"You are assistant number {number}. {words(_length(_TOOLS.system_tokens, rng), rng)}"
        for number in range(_TOOLS.num_systems)
    ]
    weights = list(accumulate((rank + 1) ** -zipf for rank in range(len(systems))))
    asked: list[Asked] = []
    while len(asked) < count:
        system = systems[bisect(weights, rng.random() * weights[-1])]
        said: tuple[ChatMessage, ...] = (ChatMessage(role="system", content=system),)
        for turn in range(rng.randint(*_TOOLS.turns)):
            said = (*said, user(words(_length(_TOOLS.next_tokens if turn else _TOOLS.first_tokens, rng), rng)))
            num_answer = _length(_TOOLS.answer_tokens, rng)
            pause_s = PAUSE_S * rng.lognormvariate(0.0, 1.0)
            asked.append(Asked(said, num_answer, len(asked) - 1, pause_s) if turn else Asked(said, num_answer))
            said = (*said, ChatMessage(role="assistant", content=words(num_answer, rng)))
    return asked[:count]


def flat(runs: Sequence[Sequence[Asked]]) -> list[Asked]:
    return list(chain.from_iterable(runs))


def _length(between: Range, rng: random.Random) -> int:
    return max(1, round(SCALE * rng.randint(*between)))
