"""The edges of the second tier: cells or a state of a token sequence, with its owner. The theory is in ``tier.py``."""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from blake3 import blake3

from mycelia.proto.cache.checkpoints import BETWEEN, EVERY_TOKENS
from mycelia.proto.cache.sharing import PUBLIC, paint
from mycelia.proto.cache.value import Reuse
from mycelia.proto.wire.blocks import unpack_tokens
from mycelia.proto.wire.messages import MAX_TOKENS_PER_REQUEST

RUN_TOKENS = 256
"""Length of the longest edge; edges end at its multiples. llama.cpp reads only whole blobs: for a prompt that shares
half of a long edge, it would read half of the cells in vain, and need room for them."""

TOKEN_BYTES = 4
DIGEST_BYTES = 16


class Whose(NamedTuple):
    """The owner, the open part and the swarm of a prompt or of an edge's sequence, see ``proto.sharing``."""

    tag: bytes | None
    """The owner's tag; None: open."""
    num_open: int
    swarm: bytes = b""


def open_in(swarm: bytes) -> Whose:
    return Whose(None, MAX_TOKENS_PER_REQUEST, swarm)


OPEN = open_in(b"")


@dataclass(eq=False)
class Edge:
    """Cells ``start..end`` of the sequence ``packed``. Only ``Tier`` changes it."""

    edge_id: int
    packed: bytes
    """The tokens from the root to ``end``, as ``proto.blocks.pack_tokens`` writes them."""
    start: int
    blob_bytes: int
    content_hash: bytes
    """BLAKE3 of the blob, 32 bytes."""
    reuse: Reuse
    whose: Whose = OPEN
    blob: memoryview | None = None
    on_disk: bool = False
    writing: bool = False
    gone: bool = False
    """The edge left all tiers; code that still holds the object must not use it."""
    place: int = BETWEEN
    """Where a state was saved, see ``checkpoints.py``."""
    turns: int = 0
    """Turns of the state's conversation, see ``checkpoints.turns_of``."""
    uses: int = 0
    """How often prompts began at the state."""
    saves: int = 0
    """Number of tokens that need no prefill thanks to the state."""
    needed: int = 0
    """Number of states that need these cells."""
    needs: list["Edge"] = field(default_factory=list)
    """The cells that a state needs; some may be gone."""

    @property
    def is_state(self) -> bool:
        return self.start * TOKEN_BYTES == len(self.packed)

    @property
    def end(self) -> int:
        return len(self.packed) // TOKEN_BYTES

    @property
    def path(self) -> Sequence[int]:
        """The key as a path, see ``proto.sharing``."""
        tokens = unpack_tokens(self.packed)
        return paint(tokens, self.whose.num_open, self.whose.tag, self.whose.swarm)

    @property
    def num_bytes(self) -> int:
        return self.blob_bytes + len(self.packed)

    def value(self, now: float) -> float:
        """Value per byte: tokens saved times the chance of reuse."""
        return (self.end - self.start) / self.num_bytes * self.reuse.chance(now)


class ByPrefix:
    """Edges by their start and the tokens before it."""

    def __init__(self) -> None:
        self.starts: list[int] = []
        """Sorted, without duplicates: the only lengths at which a prompt's prefix is hashed."""
        self.found: dict[int, dict[bytes, list[Edge]]] = {}
        """start -> hash of the key's first ``start`` tokens -> edges."""

    def edges(self) -> Iterator[Edge]:
        return (edge for digests in self.found.values() for edges in digests.values() for edge in edges)

    def add(self, edge: Edge) -> None:
        if edge.start not in self.found:
            insort(self.starts, edge.start)
        self.found.setdefault(edge.start, {}).setdefault(key_of(edge), []).append(edge)

    def remove(self, edge: Edge) -> None:
        digests, key = self.found[edge.start], key_of(edge)
        digests[key].remove(edge)
        if not digests[key]:
            del digests[key]
        if not digests:
            del self.found[edge.start]
            del self.starts[bisect_left(self.starts, edge.start)]


def link(state: Edge, cells: Edge) -> None:
    state.needs.append(cells)
    cells.needed += 1


def may_share(cells: Edge, whose: Whose) -> bool:
    return cells.whose.swarm == whose.swarm and cells.whose.tag in (None, whose.tag)


def may_use(state: Edge, whose: Whose) -> bool:
    """Whether a state of any owner may be used for ``whose``: its owner's, or of open tokens and at a length that says
    nothing about the private tokens of its owner's prompts."""
    tag = state.whose.tag
    if state.whose.swarm != whose.swarm:
        return False
    if tag is not None and tag == whose.tag:
        return True
    return state.end <= whose.num_open and (tag in (None, PUBLIC.tag) or state.end % EVERY_TOKENS == 0)


def runs(start: int, end: int) -> Iterator[tuple[int, int]]:
    """Cut ``start..end`` into the ranges of edges."""
    while start < end:
        stop = min(end, (start // RUN_TOKENS + 1) * RUN_TOKENS)
        yield start, stop
        start = stop


def common_tokens(first: bytes, second: bytes) -> int:
    """Length in tokens of the longest common prefix of two packed sequences; slices are compared at C speed."""
    low, high = 0, min(len(first), len(second)) // TOKEN_BYTES
    while low < high:
        middle = (low + high + 1) // 2
        if first[low * TOKEN_BYTES : middle * TOKEN_BYTES] == second[low * TOKEN_BYTES : middle * TOKEN_BYTES]:
            low = middle
        else:
            high = middle - 1
    return low


def key_of(edge: Edge) -> bytes:
    return blake3(edge.packed[: edge.start * TOKEN_BYTES]).digest(length=DIGEST_BYTES)
