"""The logprobs of prompts that an entry node reported, so that it does not ask for them again.

A cell of a cached prefix holds no logits: with ``echo`` and logprobs, a serving node would have to compute every prompt
from its first token, however much of it is cached. Evaluations send thousands of prompts that begin alike (few-shot
examples) and read only the logprobs of their ends. So the entry node, which knows the tokens, keeps what it reported,
and asks the serving node only for what comes after (``Sampling.logprobs_from``): that node computes only these tokens.
Kept here and not beside the cells, this works whichever node serves, and the known part is not sent again.

Only requests of the same owner see the entry of an owner (``salts.py``), as with cached prefixes: what is known shows
in the time that an answer takes. A peer that reports wrong numbers can do so for the same owner's later prompts.

Theory. The table is a trie of *strands*. A strand holds the tokens by which one prompt differed from all earlier ones,
with their logprobs, and branches off its parent at any offset; no strand is ever split. Invariants: at most
``MAX_RECORDS`` logprobs are held; a strand was used no later than its parent, so the least recently used one has no
children and can go.

Of prompts that begin alike and come at once, the first is computed, and the others wait for what they share with it.
"""

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import trio

from mycelia.proto.cache.radix import common_prefix
from mycelia.proto.cache.sharing import Salt
from mycelia.proto.wire.messages import MAX_LOGPROBS_PER_FRAME, PromptLogprobs, TokenLogprobs

MAX_RECORDS = 131_072
"""Logprobs held, alternatives included: about 20 MB."""
MAX_PROMPT_RECORDS = 262_144
"""The same of one answer: prompts of 131,072 tokens with one alternative each, 30 MB."""
MIN_SHARED_TOKENS = 32
"""Fewer shared tokens are not worth waiting for another prompt."""


class Owner(NamedTuple):
    """Whose logprobs, and of which kind: only these are exchangeable."""

    namespace: bytes
    """The model's: equal tokens of another model are another text."""
    salt: Salt
    num_top: int


@dataclass(eq=False)
class _Strand:
    parent: "_Strand | None"
    place: tuple[Hashable, int]
    """(offset in the parent, first token), the key among the parent's children; below the root (owner, first token)."""
    tokens: list[int]
    logprobs: list[TokenLogprobs]
    children: dict[tuple[Hashable, int], "_Strand"] = field(default_factory=dict)

    @property
    def num_records(self) -> int:
        return sum(1 + len(entry.top) for entry in self.logprobs)


class LogprobsTable:
    """What is known of prompts. Pure."""

    def __init__(self, max_records: int = MAX_RECORDS) -> None:
        self._max_records = max_records
        self._num_records = 0
        self._root = _Strand(None, ("", 0), [], [])
        self._used: OrderedDict[_Strand, None] = OrderedDict()
        """All strands but the root, the least recently used first."""

    def known(self, owner: Owner, tokens: Sequence[int]) -> list[TokenLogprobs]:
        """The logprobs of the longest known prefix of ``tokens``. Mutates only ages."""
        return self._walk(owner, tokens)[0]

    def add(self, owner: Owner, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs]) -> None:
        """Note the logprobs of all ``tokens``. Mutates."""
        known, strand, offset = self._walk(owner, tokens)
        if len(known) == len(tokens):
            return
        rest = slice(len(known), None)
        new = _Strand(strand, (offset, tokens[len(known)]), list(tokens[rest]), list(logprobs[rest]))
        if new.num_records > self._max_records:
            return
        strand.children[new.place] = new
        self._used[new] = None
        self._touch(strand)
        self._num_records += new.num_records
        while self._num_records > self._max_records:
            self._drop(next(iter(self._used)))

    def _walk(self, owner: Owner, tokens: Sequence[int]) -> tuple[list[TokenLogprobs], _Strand, Hashable]:
        """(what is known, the strand where that ends, the offset there)."""
        known: list[TokenLogprobs] = []
        strand, offset = self._root, cast(Hashable, owner)
        while len(known) < len(tokens) and (child := strand.children.get((offset, tokens[len(known)]))) is not None:
            length = common_prefix(child.tokens, tokens[len(known) :])
            strand, offset = child, length
            known += child.logprobs[:length]
        self._touch(strand)
        return known, strand, offset

    def _touch(self, strand: _Strand) -> None:
        while strand.parent is not None:
            self._used.move_to_end(strand)
            strand = strand.parent

    def _drop(self, strand: _Strand) -> None:
        parent = strand.parent
        assert parent is not None and not strand.children, "used after its children"
        del parent.children[strand.place], self._used[strand]
        self._num_records -= strand.num_records

    def check_invariants(self) -> None:
        assert self._num_records == sum(strand.num_records for strand in self._used) <= self._max_records
        assert all(
            strand.parent is not None and strand.parent.children[strand.place] is strand for strand in self._used
        )


@dataclass(eq=False)
class PromptReport:
    """The logprobs of one prompt on their way to its client."""

    owner: Owner
    tokens: Sequence[int]
    start: int
    """The first token that the client wants."""
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    """The logprobs of the tokens from the first one on, without a gap."""
    over: trio.Event = field(default_factory=trio.Event)
    num_reported: int = 0
    """Number of leading tokens that are reported, or that the client does not want."""
    _is_told: bool = False

    def begin(self, known: list[TokenLogprobs]) -> None:
        self.logprobs, self.num_reported = known, max(len(known), self.start)

    def add(self, frame: PromptLogprobs) -> None:
        """The next tokens are reported. Mutates."""
        if frame.position == len(self.logprobs):
            self.logprobs += frame.logprobs
        self.num_reported = frame.position + len(frame.logprobs)

    def known_frames(self) -> list[PromptLogprobs]:
        """The frames of what was known at the start; empty after the first call. Mutates."""
        if self._is_told:
            return []
        self._is_told = True
        return [
            PromptLogprobs(position=at, logprobs=tuple(self.logprobs[at : at + MAX_LOGPROBS_PER_FRAME]))
            for at in range(self.start, len(self.logprobs), MAX_LOGPROBS_PER_FRAME)
        ]


class PromptReports:
    """All prompts whose logprobs are reported at an entry node, and what is known from earlier ones."""

    def __init__(self, table: LogprobsTable | None = None) -> None:
        self._table = table or LogprobsTable()
        self._running: list[PromptReport] = []

    async def begin(self, owner: Owner, tokens: Sequence[int], first: TokenLogprobs, start: int) -> PromptReport:
        """A new report, as far as its logprobs are known; call ``end`` in any case. first: stands for the first token,
        which has no probability. May wait once for another report of the same owner."""
        known = self._table.known(owner, tokens)
        other, most = None, len(known) + MIN_SHARED_TOKENS - 1
        for running in self._running:
            if running.owner == owner and (shared := common_prefix(running.tokens, tokens)) > most:
                other, most = running, shared
        report = PromptReport(owner, tokens, start)
        self._running.append(report)
        if other is not None:
            try:
                await other.over.wait()
            except BaseException:
                self.end(report)
                raise
            known = self._table.known(owner, tokens)
        report.begin(known or [first])
        return report

    def end(self, report: PromptReport) -> None:
        """All its logprobs are known, or no more will come. May be called again. Mutates."""
        if report in self._running:
            self._running.remove(report)
            self._table.add(report.owner, report.tokens[: len(report.logprobs)], report.logprobs)
            report.over.set()
