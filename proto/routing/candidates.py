"""The nodes that could answer a prompt, as columns: one array per quantity, one place per node.

A request in a cell of 256 nodes looks at all of them, which is some 3,000 numbers. Making them as objects takes
milliseconds, as arrays tens of microseconds (docs/performance.md). ``Candidate`` is the same for a single node, for
rules that look at nodes one by one and for display.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Column = NDArray[np.float64]


class Usual(NamedTuple):
    """What the prompts of an entry node were lately: means. Infinity: not known, and no prompt is longer than usual."""

    tokens: float = math.inf
    """Tokens of a prompt."""
    uncached: float = math.inf
    """Tokens of it to prefill, at least 1."""

    @property
    def cached(self) -> float:
        """Tokens of a prompt that need no prefill; 0 if not known."""
        return max(self.tokens - self.uncached, 0.0) if self.tokens < math.inf else 0.0


UNKNOWN = Usual()


@dataclass(frozen=True)
class Candidate:
    """A node that could serve the prompt, with what the entry node knows of it now."""

    peer: bytes
    matched_tokens: int
    """Estimated tokens of the prompt in the node's cache."""
    num_requests: int
    """Requests active or waiting there, as reported, and requests sent there by this node since."""
    is_local: bool
    queued_tokens: int = 0
    """Tokens of other prompts that the node must prefill before this one."""
    slots: int = 1
    """Requests the node works on at once."""
    prefill_rate: float = 0.0
    """Tokens/s; 0 when not measured yet."""
    hold_s: float = 0.0
    """How long a request holds its slot there: a moving average."""
    round_trip_s: float = 0.0
    precision: float = 1.0
    """rho: tokens found in the node's cache / tokens believed to be there, a moving average."""
    lateness_s: float = 0.0
    """By how much first tokens from there came later than expected (moving average), or one is late now."""
    load_age_s: float = 0.0
    """Time since the node last reported its load."""
    sent_tokens: int = 0
    """Tokens of the prompt that this node sent there lately: mostly earlier turns of the same conversation."""
    seen_rate: float = math.inf
    """The fastest prefill observed of the node, in tokens/s. 0: none observed; infinity: its reports are true."""


@dataclass(frozen=True, eq=False)
class Candidates:
    """The quantities of ``Candidate`` in columns as long as ``peers``. Do not change them."""

    peers: Sequence[bytes]
    local: int
    """The place of this node itself; -1: this node is not a candidate."""
    matched_tokens: Column
    num_requests: Column
    queued_tokens: Column
    slots: Column
    prefill_rate: Column
    hold_s: Column
    round_trip_s: Column
    precision: Column
    lateness_s: Column
    load_age_s: Column
    sent_tokens: Column
    seen_rate: Column
    usual: Usual = field(default=UNKNOWN, kw_only=True)
    """The entry node's prompts."""
    prompts_per_node: float = field(default=0.0, kw_only=True)
    """Usual prompts that wait to be computed, by the nodes' reports alone: mean of all nodes."""

    def __len__(self) -> int:
        return len(self.peers)

    def __getitem__(self, place: int) -> Candidate:
        quantities = {name: getattr(self, name)[place].item() for name in _FLOATS}
        counts = {name: int(getattr(self, name)[place]) for name in _COUNTS}
        return Candidate(peer=self.peers[place], is_local=place == self.local, **counts, **quantities)

    def to_list(self) -> list[Candidate]:
        """All candidates, in the order of ``peers``."""
        columns = {name: getattr(self, name).astype(np.int64).tolist() for name in _COUNTS}
        columns |= {name: getattr(self, name).tolist() for name in _FLOATS}
        names = list(columns)
        rows = zip(self.peers, *columns.values(), strict=True)
        return [
            Candidate(peer=peer, is_local=place == self.local, **dict(zip(names, row, strict=True)))
            for place, (peer, *row) in enumerate(rows)
        ]

    @classmethod
    def of(cls, candidates: Sequence[Candidate], usual: Usual = UNKNOWN, prompts_per_node: float = 0.0) -> "Candidates":
        """The columns of ``candidates``, of which at most one is local."""
        columns = {
            name: np.array([getattr(one, name) for one in candidates], dtype=np.float64) for name in _COUNTS + _FLOATS
        }
        local = next((place for place, one in enumerate(candidates) if one.is_local), -1)
        return cls(
            peers=[one.peer for one in candidates],
            local=local,
            **columns,
            usual=usual,
            prompts_per_node=prompts_per_node,
        )


_FLOATS = tuple(field.name for field in fields(Candidate) if field.type is float)
_COUNTS = tuple(field.name for field in fields(Candidate) if field.type is int)
