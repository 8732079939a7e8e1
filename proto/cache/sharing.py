"""Whose cached prefixes a request may reuse, so that a cache tells nobody what others asked.

Theory. Reuse shows: in the count of cached tokens, and in the time that the rest takes. A cache that matches any two
prompts token by token is an oracle for each token: 123 probes spelled a credit card number of another user. So every
request has an *owner*, and sees a cache that holds two things:

- what the same owner computed, token by token;
- what is *open*: whole blocks (``STRIDE`` tokens) that two subnets computed on their own before and then went on
  differently, or that a request computed which says that they hold no secrets: a ``PUBLIC`` one of all its tokens,
  any other of its first ones (``Generate.open_tokens``).

An owner is named by a *tag* of 16 bytes, which only those know who may use its prefixes: the entry node makes it of a
secret and of the user, or of the ``cache_salt`` that the request names (``node/requests/salts.py``), and of the serving
node, which can so use it at no other one (``Salt``). ``PUBLIC`` is a tag that everybody knows. An owner without a
subnet opens nothing.

What others computed and is not open is not only left unused, it leaves no trace. Each sequence has a place of its own
in the tree: a *path* is its open tokens as they are and then the rest, the first of which carries the tag, so that no
other owner's match goes on there (``paint``). If equal prefixes of two owners were one entry, an owner would notice
that its own entry outlives its own use, and a flood that displaces everything else would make that an oracle for single
tokens. The price is that cells of equal private prefixes are held, and computed, once an owner.

Why *went on differently*: the second subnet must have had the tokens from elsewhere than from the first one's
conversation. A user who goes on with a conversation through another entry node is no second subnet.

What remains: who guesses the *whole* next block after a prefix that it knows can learn by one computed request a guess
(and a look at the digest, or a second request) whether some subnet had asked exactly that. Within a block nothing
shows. Who wants to exclude that too gives its requests a ``cache_salt``: what they compute never opens.

``Sharing`` remembers blocks by hashes under a secret key, whether or not the cache still holds them: what is open stays
so. Invariants: at most ``max_blocks`` are remembered, those of prefixes longest unused go first, the deepest first; a
block keeps at most ``MAX_SUBNETS`` subnets, an open one none.

No clock, no IO. Methods say whether they mutate.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from blake3 import blake3

from mycelia.proto.cache.radix import RadixTree, TreeRow
from mycelia.proto.wire.blocks import STRIDE, block_hashes, pack_tokens

CLIENTS, SALTED, EVERYBODY = range(3)
"""``Generate.scope``: whom what a request computes may become open to. By the rule of two subnets; nobody; everybody
at once."""
TAG_BYTES = 16

BLOCK_BYTES = 4 * STRIDE
MAX_BLOCKS = 16_384
"""A million tokens; 8 MB where no two prompts share anything."""
MAX_SUBNETS = 4

_UNIT_BITS = 64
_UNIT = (1 << _UNIT_BITS) - 1


class Owner(NamedTuple):
    """Who computes, as far as reuse goes."""

    tag: bytes = b""
    subnet: str = ""
    """Empty: what it computes never opens."""


PUBLIC = Owner(b"public")


def owner_of(tag: bytes, scope: int, peer: bytes, subnet: str) -> Owner:
    """Of a request that ``peer`` sends: who knows a tag is its owner, and without one it is the peer's own."""
    if scope == EVERYBODY:
        return PUBLIC
    secret, what = (tag, b"tag") if tag else (peer, b"peer")
    name = blake3(what + secret, derive_key_context="mycelia 2026 prefix owner v1").digest(length=TAG_BYTES)
    return Owner(name, "" if scope == SALTED else subnet)


class Salt(NamedTuple):
    """What an entry node knows an owner by, at whatever node it is served."""

    key: bytes = b""
    """A secret; empty: the entry node's own, or everybody's."""
    scope: int = CLIENTS

    def tag_at(self, peer: bytes) -> bytes:
        """``Generate.tag`` for ``peer``: it says nothing about the owner's tags at others."""
        if not self.key:
            return b""
        context = "mycelia 2026 prefix tag v1"
        return blake3(blake3(self.key).digest() + peer, derive_key_context=context).digest(length=TAG_BYTES)

    @property
    def mask(self) -> int:
        """Tells this owner's block hashes from others' where an entry node remembers them."""
        return int.from_bytes(blake3(self.key).digest(length=8)) if self.key else 0


class Path(NamedTuple):
    """A sequence with what others may reuse of it."""

    tokens: Sequence[int]
    num_open: int
    """Of the leading tokens."""
    tag: bytes | None
    """The owner's of the rest; None: there is no rest."""


def paint(tokens: Sequence[int], num_open: int, tag: bytes) -> tuple[int, ...]:
    """The place of ``tokens`` in a tree: a match never goes from one owner's into another's. Units may be tokens or
    block hashes, anything below 2**64."""
    if num_open >= len(tokens):
        return tuple(tokens)
    return (*tokens[:num_open], _colour(tag) | tokens[num_open], *tokens[num_open + 1 :])


def unpaint(path: Sequence[int]) -> Path:
    """The inverse of ``paint``."""
    highest = max(path, default=0)
    if highest <= _UNIT:
        return Path(path, len(path), None)
    place, colour = path.index(highest), highest >> _UNIT_BITS
    tokens = (*path[:place], highest & _UNIT, *path[place + 1 :])
    return Path(tokens, place, colour.to_bytes((colour.bit_length() + 7) // 8)[1:])


def match(tree: RadixTree, owner: Owner, tokens: Sequence[int], num_open: int) -> tuple[int, int | None, int]:
    """The longest prefix of ``tokens``, ``num_open`` of which are open, in a tree of paths that ``owner`` may reuse; a
    leaf that covers it; and how many tokens of its path are open there, 0 or ``num_open``. Does not mutate."""
    own = tree.match(paint(tokens, 0, owner.tag))
    opened = tree.match(paint(tokens, num_open, owner.tag)) if num_open else own
    # What is open can be left at whole blocks only, and that of PUBLIC is in the tree as its own, too.
    if own[0] >= opened[0] if owner == PUBLIC else own[0] > opened[0]:
        return *own, 0
    return *opened, num_open


def tags_of(rows: Iterable[TreeRow]) -> list[bytes | None]:
    """Whose each edge of a tree of paths is; None: it is open."""
    tags: list[bytes | None] = []
    above: list[bytes | None] = []
    """Of the edges from the root to the last one."""
    for row in rows:
        del above[row.level :]
        inherited = above[-1] if above else None
        above.append(unpaint(row.tokens).tag if inherited is None else inherited)
        tags.append(above[-1])
    return tags


def plain(path: Sequence[int]) -> list[int]:
    """The tokens of a path, or of a part of one."""
    return [unit & _UNIT for unit in path]


def _colour(tag: bytes) -> int:
    return int.from_bytes(b"\x01" + tag) << _UNIT_BITS


class Sharing:
    """Which blocks are open. See the module's text."""

    def __init__(self, secret: bytes, max_blocks: int = MAX_BLOCKS) -> None:
        """secret: key of the hashes, of any length; without it blocks could be made that count as others."""
        self._secret = secret
        self._max_blocks = max_blocks
        self._blocks: OrderedDict[int, dict[str, bytes] | None] = OrderedDict()
        """Hash of a prefix of whole blocks -> subnet -> what of the next block it went on with; None: open."""

    def __len__(self) -> int:
        return len(self._blocks)

    def chain(self, tokens: Sequence[int]) -> Sequence[int]:
        """What ``num_open`` knows a prompt by. Does not mutate."""
        return block_hashes(self._secret, tokens)

    def num_open(self, chain: Sequence[int]) -> int:
        """Leading tokens that any request may reuse: whole blocks. Mutates only their age."""
        count = 0
        while count < len(chain) and self._blocks.get(chain[count], _UNKNOWN) is None:
            count += 1
        self._touch(chain[:count])
        return count * STRIDE

    def note(self, owner: Owner, tokens: Sequence[int], declared: int = 0) -> Sequence[int]:
        """``owner`` has computed ``tokens``, or reused what it may. declared: as many of the first hold no secrets.
        Returns their ``chain``. Mutates."""
        chain = self.chain(tokens)
        if owner.tag == PUBLIC.tag or owner.subnet or declared >= STRIDE:
            self.note_blocks(owner, chain, pack_tokens(tokens), BLOCK_BYTES, declared // STRIDE)
        return chain

    def note_blocks(
        self, owner: Owner, chain: Sequence[int], content: bytes, block_bytes: int, declared: int = 0
    ) -> None:
        """As ``note``, for a sequence of blocks whose contents are ``block_bytes`` long, and a rest. Mutates."""
        self._open(chain, len(chain) if owner.tag == PUBLIC.tag else declared)
        if owner.subnet and owner.tag != PUBLIC.tag:
            for place in range(len(chain) - 1, -1, -1):
                begin = (place + 1) * block_bytes
                if self._note_block(owner.subnet, chain[place], content[begin : begin + block_bytes]):
                    self._open(chain, place + 1)
                    break
        self._touch(chain)
        while len(self._blocks) > self._max_blocks:
            self._blocks.popitem(last=False)

    def open(self, tokens: Sequence[int]) -> None:
        """The whole blocks of ``tokens`` were open in an earlier run. Mutates."""
        chain = self.chain(tokens)
        self._open(chain, len(chain))
        self._touch(chain)
        while len(self._blocks) > self._max_blocks:
            self._blocks.popitem(last=False)

    def _note_block(self, subnet: str, block: int, following: bytes) -> bool:
        """Whether the block is open, or is to be."""
        subnets = self._blocks.setdefault(block, {})
        if subnets is None:
            return True
        others = (known for name, known in subnets.items() if name != subnet)
        if any(_differ(following, known) for known in others):
            return True
        subnets.pop(subnet, None)
        subnets[subnet] = following
        if len(subnets) > MAX_SUBNETS:
            del subnets[next(iter(subnets))]
        return False

    def _open(self, chain: Sequence[int], count: int) -> None:
        for block in chain[:count]:
            self._blocks[block] = None

    def _touch(self, chain: Sequence[int]) -> None:
        for block in reversed(chain):  # (the first one last: without it the rest counts for nothing)
            if block in self._blocks:
                self._blocks.move_to_end(block)

    def check_invariants(self) -> None:
        assert len(self._blocks) <= self._max_blocks
        assert all(subnets is None or 0 < len(subnets) <= MAX_SUBNETS for subnets in self._blocks.values())


_UNKNOWN: dict[str, bytes] = {}


def _differ(one: bytes, other: bytes) -> bool:
    """Whether they went on differently, and not only one farther than the other."""
    return not (one.startswith(other) or other.startswith(one))
