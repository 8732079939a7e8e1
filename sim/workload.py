"""Changes of caches: steady change, and the MMLU benchmark's prompts over caches of limited size."""

import random
from bisect import bisect
from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate

from mycelia.proto.wire.blocks import STRIDE

# Tokens of the 5-shot prefix of each of MMLU's 57 subjects (Hendrycks et al., arXiv 2009.03300) in the usual prompt
# form, tokenizer o200k. Sorted; mean 504.
MMLU_PREFIX_TOKENS = (
    205,
    220,
    231,
    242,
    250,
    253,
    261,
    263,
    272,
    272,
    289,
    290,
    292,
    306,
    307,
    312,
    324,
    326,
    329,
    330,
    344,
    358,
    360,
    374,
    375,
    377,
    377,
    391,
    397,
    403,
    410,
    414,
    432,
    443,
    445,
    452,
    456,
    475,
    476,
    483,
    489,
    496,
    497,
    498,
    533,
    534,
    542,
    572,
    654,
    704,
    743,
    873,
    996,
    1065,
    1372,
    1899,
    2433,
)
MMLU_QUESTION_TOKENS = 104
"""Mean of the test set."""

_QUESTION_BASE = 1_000


class PrefixCache:
    """A node's prefix cache as its digest sees it: leaves of tokens, the least recently used dropped first.

    ``store`` returns the contents of ``CacheChanged``. Blocks count as on the wire: whole, shared ones once.
    """

    def __init__(self, capacity_blocks: int) -> None:
        self._capacity = capacity_blocks
        self._leaves: OrderedDict[int, tuple[bytes, ...]] = OrderedDict()
        self._uses: dict[bytes, int] = {}
        """Block, named by its whole prefix's identity -> leaves through it."""
        self._next = 0

    def match(self, blocks: Sequence[bytes]) -> int:
        for depth, block in enumerate(blocks):
            if block not in self._uses:
                return depth
        return len(blocks)

    def store(self, blocks: Sequence[bytes]) -> tuple[int, list[int]]:
        """Hold ``blocks`` as the newest leaf: (its id, the leaves dropped for it)."""
        self._next += 1
        self._leaves[self._next] = tuple(blocks)
        for block in blocks:
            self._uses[block] = self._uses.get(block, 0) + 1
        dropped = []
        while len(self._uses) > self._capacity and len(self._leaves) > 1:
            leaf, chain = self._leaves.popitem(last=False)
            dropped.append(leaf)
            for block in chain:
                self._uses[block] -= 1
                if not self._uses[block]:
                    del self._uses[block]
        return self._next, dropped


class Mmlu:
    """Prompts: a subject drawn with Zipf weights, its prefix, and a question of its own."""

    def __init__(self, zipf: float, rng: random.Random) -> None:
        self._rng = rng
        self._subjects = rng.sample(range(len(MMLU_PREFIX_TOKENS)), len(MMLU_PREFIX_TOKENS))
        self._weights = list(accumulate((rank + 1) ** -zipf for rank in range(len(self._subjects))))
        self._num_questions = 0

    def draw(self) -> list[int]:
        """The tokens of the next prompt; no question comes twice."""
        return [token for token, count in self.draw_pieces() for _ in range(count)]

    def draw_pieces(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """The next prompt as (token, count) of its subject and of its question."""
        subject = self._subjects[bisect(self._weights, self._rng.random() * self._weights[-1])]
        self._num_questions += 1
        length = self._rng.randint(MMLU_QUESTION_TOKENS // 2, MMLU_QUESTION_TOKENS * 3 // 2)
        return (subject, MMLU_PREFIX_TOKENS[subject]), (_QUESTION_BASE + self._num_questions, length)


def blocks_of(tokens: Sequence[int]) -> list[bytes]:
    """Names of the prefixes of the whole blocks of a prompt of ``Mmlu.draw``: equal names, equal prefixes."""
    # A prefix of such a prompt is its subject's tokens, then one question's: its last token and length identify it.
    ends = range(STRIDE, len(tokens) + 1, STRIDE)
    return [b"%d.%d.%d" % (tokens[0], tokens[end - 1], end) for end in ends]
