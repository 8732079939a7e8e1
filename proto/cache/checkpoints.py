"""Which states of a recurrent or hybrid model are kept, so that later prompts can begin with one.

Theory. An attention layer keeps a cell per token, and any prefix of the cells can be reused. A recurrent layer keeps
one *state*, of constant size, and every token changes it: what is not saved at some length cannot be restored there. A
prompt can begin at the longest saved state of its tokens; in a hybrid model, which has both kinds of layers, also the
cells up to there must be in the cache.

    prompt     |----------------------------------------------->
    cells      |==============================|                  known
    states              ^         ^                ^
                             begins here

A saved state of a small model has 10 to 30 MB, as much as 200 to 1,500 of its tokens' cells. So it matters where states
are saved and which of them are kept (Marconi, Pan et al., MLSys 2025). They are saved:

- where a prompt leaves what the cache knows (``BRANCH``). This is where two prompts were seen to branch, such as after
  a system prompt; the third one begins there. The first two cannot: nobody knew the place when they were computed;
- near the end of a prompt (``PROMPT_END``). The same prompt again needs a state before the last token, whose logits are
  wanted. The next turn of a conversation begins with all of the last prompt if its answer had thoughts, which templates
  leave out afterwards, but not always with its last tokens, which open the answer. So the place is after the last
  control token, if that is near the end;
- at the end of an answer (``ANSWER_END``), for the next turn of a conversation;
- every ``EVERY_TOKENS`` of a long prompt (``BETWEEN``). No prompt needs exactly that, but a first branch loses less.

No state is saved less than ``LEAST_TOKENS`` after another one.

Which states are used again differs more by their place than by anything else, and from workload to workload: with
few-shot prompts nine of ten at branches and almost none at ends of answers, with conversations the ends of two of three
answers, but each only once, and less often the longer the conversation is. So ``ReuseCounts`` counts, for each place,
number of turns and number of uses so far, how often such a state was used again. The state of least value is evicted
first:

    chance of another use / (T + time since the last use) * sqrt(tokens that it saves) / bytes

T is ``HELD_S`` of its place. Without it, a new state that nobody will use would go before no old one. A state saves the
tokens after the next shorter one. The root is a compromise: with the tokens themselves few-shot prompts gain 1 % and
conversations lose 3 %. Cells have the value of the states that need them: cells that no state needs go
first, others only when no state is left. docs/performance.md, "Models that keep states", has the measurements.

No clock, no IO.
"""

from collections import Counter
from collections.abc import Collection, Iterable

BRANCH, PROMPT_END, ANSWER_END, BETWEEN = range(4)
"""The places of states."""

EVERY_TOKENS = 512
"""Maximum distance of the states of a prompt: the prefill of so many tokens takes far longer than a copy of a state."""
LEAST_TOKENS = 16
"""Among 8 to 64, this gains most."""
NEAR_END_TOKENS = 32
"""A state before a control token is as good for the same prompt as one before the last token, if not more tokens have
to be computed again: these take about one step."""
HELD_S = {BRANCH: 30.0, PROMPT_END: 30.0, ANSWER_END: 5.0, BETWEEN: 30.0}
"""Differences in age that are shorter than this say little."""
MAX_USES, MAX_TURNS, MAX_COUNT = 2, 4, 256
"""Numbers of uses and of turns that ``ReuseCounts`` tells apart, and the states of a kind that it remembers."""


def lengths(begin: int, num_prompt: int, known: int, turn: int = 0, grid: int = 1) -> dict[int, int]:
    """Length -> place of the states to save while a prompt of ``num_prompt`` tokens is computed from ``begin`` on, in
    ascending order. known: tokens of the prompt that the cache knew; turn: the length after the last control token;
    grid: lengths are multiples of it."""
    last = turn if num_prompt - NEAR_END_TOKENS <= turn < num_prompt else num_prompt - 1
    between = range(begin // EVERY_TOKENS * EVERY_TOKENS, num_prompt, EVERY_TOKENS)
    chosen: dict[int, int] = {}
    for wanted, place in ((known, BRANCH), (last, PROMPT_END), *((length, BETWEEN) for length in between)):
        length = wanted // grid * grid
        near = (begin, *chosen)
        if begin < length < num_prompt and min(abs(length - other) for other in near) >= LEAST_TOKENS:
            chosen[length] = place
    return dict(sorted(chosen.items()))


def turns_of(tokens: Iterable[int], control_tokens: Collection[int]) -> int:
    """Turns of a conversation: templates begin or end each message with the same control token, and a turn of the
    user and one of the assistant count as one. At most ``MAX_TURNS``."""
    counts = Counter(token for token in tokens if token in control_tokens)
    return min(max(counts.values(), default=0) // 2, MAX_TURNS)


class ReuseCounts:
    """How often states of each place and number of turns and uses are used again. Half a state counts in advance."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, int, int], list[float]] = {}
        """(place, turns, uses) -> [states that were used again, all states], of about the last ``MAX_COUNT``."""

    def saved(self, place: int, turns: int = 0) -> None:
        """A state was saved. Mutates."""
        self._add(place, turns, 0, 1)

    def used(self, place: int, uses: int, turns: int = 0) -> None:
        """A state that had been used ``uses`` times was used again. Mutates."""
        self._add(place, turns, min(uses, MAX_USES), 0)
        self._add(place, turns, min(uses + 1, MAX_USES), 1)

    def chance(self, place: int, uses: int, turns: int = 0) -> float:
        again, seen = self._seen.get((place, turns, min(uses, MAX_USES)), _NOTHING_SEEN)
        return again / seen

    def _add(self, place: int, turns: int, uses: int, index: int) -> None:
        counts = self._seen.setdefault((place, turns, uses), [*_NOTHING_SEEN])
        counts[index] += 1.0
        if counts[1] > MAX_COUNT:
            counts[:] = [count / 2 for count in counts]

    def check_invariants(self) -> None:
        assert all(0.0 < seen <= MAX_COUNT + 1 for _, seen in self._seen.values())
        assert len(self._seen) <= len(HELD_S) * (MAX_TURNS + 1) * (MAX_USES + 1)


_NOTHING_SEEN = (0.5, 1.0)
