"""The nodes that could answer a prompt, in columns: one array a quantity, one place a node.

A request in a cell of 256 nodes looks at all of them, and what is looked at comes to some 3,000 numbers. As objects
they take milliseconds to make; as arrays, tens of microseconds (docs/performance.md). ``Candidate`` is the same for one
node, for rules that look at nodes one by one, and for people.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

Column = NDArray[np.float64]


@dataclass(frozen=True)
class Candidate:
    """A node that could serve, with what is known of it now."""

    peer: bytes
    matched_tokens: int
    """Estimated tokens of the prompt in its cache."""
    num_requests: int
    """Requests active or waiting there, as reported, and those sent there by this node since."""
    is_local: bool
    queued_tokens: int = 0
    """Of prompts that are to be prefilled there before this one."""
    slots: int = 1
    """Requests it works on at once."""
    prefill_rate: float = 0.0
    """Tokens/s; 0 when nobody has measured it yet."""
    hold_s: float = 0.0
    """That a request holds its slot there, in the mean of late."""
    round_trip_s: float = 0.0
    precision: float = 1.0
    """rho: tokens found in its cache / tokens believed to be there, of late."""
    lateness_s: float = 0.0
    """How much longer than expected a first token took there of late, or is taking now."""
    load_age_s: float = 0.0
    """Since its load was last heard of."""
    sent_tokens: int = 0
    """Of the prompt, sent there by this node lately: earlier turns of the same conversation, mostly."""
    seen_rate: float = math.inf
    """The fastest prefill that was seen of it, in tokens/s; 0: none was, infinity: what it tells is true."""


@dataclass(frozen=True, eq=False)
class Candidates:
    """The quantities of ``Candidate`` in columns of the length of ``peers``. Not to be changed."""

    peers: Sequence[bytes]
    local: int
    """The place of this node itself; -1: it is not among them."""
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

    def __len__(self) -> int:
        return len(self.peers)

    def __getitem__(self, place: int) -> Candidate:
        quantities = {name: getattr(self, name)[place].item() for name in _FLOATS}
        counts = {name: int(getattr(self, name)[place]) for name in _COUNTS}
        return Candidate(peer=self.peers[place], is_local=place == self.local, **counts, **quantities)

    def to_list(self) -> list[Candidate]:
        """All of them, in the order of ``peers``."""
        columns = {name: getattr(self, name).astype(np.int64).tolist() for name in _COUNTS}
        columns |= {name: getattr(self, name).tolist() for name in _FLOATS}
        names = list(columns)
        rows = zip(self.peers, *columns.values(), strict=True)
        return [
            Candidate(peer=peer, is_local=place == self.local, **dict(zip(names, row, strict=True)))
            for place, (peer, *row) in enumerate(rows)
        ]

    @classmethod
    def of(cls, candidates: Sequence[Candidate]) -> "Candidates":
        """At most one of them is local."""
        columns = {
            name: np.array([getattr(one, name) for one in candidates], dtype=np.float64) for name in _COUNTS + _FLOATS
        }
        local = next((place for place, one in enumerate(candidates) if one.is_local), -1)
        return cls(peers=[one.peer for one in candidates], local=local, **columns)


_FLOATS = tuple(field.name for field in fields(Candidate) if field.type is float)
_COUNTS = tuple(field.name for field in fields(Candidate) if field.type is int)
