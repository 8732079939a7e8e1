"""Whose cached prefixes a request may reuse, so that a cache reveals to no client what others asked.

Theory. Reuse is visible: in the count of cached tokens, and in the time that the other tokens take. A cache that
matches any two prompts token by token can be asked for each token: 123 probes found a credit card number of another
user. So every request has an *owner*, and sees a cache that holds two things:

- what the same owner computed, token by token;
- what is *open*: whole blocks (``STRIDE`` tokens) that two subnets computed independently before and then continued
  differently, or that a request computed and declared free of secrets: a ``PUBLIC`` request all its tokens, any other
  its first ones (``Generate.open_tokens``).

A *tag* of 16 bytes names an owner. Only those that may use its prefixes know it. The entry node makes it from a secret
and the user, or from the ``cache_salt`` of the request (``node/requests/salts.py``), and from the serving node, which
can therefore use it at no other node (``Salt``). Every node knows the tag ``PUBLIC``. An owner without a subnet opens
nothing.

An engine may answer the prompts of several swarms. Each *swarm* is a cache of its own: what a request of one swarm
computed is reused by requests of the same swarm alone, and opens by what its own subnets ask.

What others computed and is not open is not only unused, it leaves no trace. Each sequence has its own place in the
tree: a *path* is its open tokens as they are and then the others, the first of which carries the tag, so that no other
owner's match continues there (``paint``). The first token carries the swarm, unless that is the open network. If equal
prefixes of two owners were one entry, an owner would notice that its entry outlives its own use, and a flood that
displaces everything else would reveal single tokens. The price is that cells of equal private prefixes are computed and
held once per owner.

Why *continued differently*: the second subnet must have got the tokens from elsewhere than the first one's
conversation. A user who continues a conversation through another entry node is no second subnet.

What remains: a client that knows a prefix and guesses the *whole* next block can learn whether some subnet had asked
exactly that. Each guess costs a computed request (and a look at the digest, or a second request). Within a block
nothing shows. A client can exclude this too with a ``cache_salt``: what its requests compute then never opens.

``Sharing`` stores blocks by hashes under a secret key, whether or not the cache still holds them: open blocks stay
open. Invariants: at most ``max_blocks`` are stored; those of the longest unused prefixes go first, the deepest first. A
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
"""``Generate.scope``: whether computed tokens become open: by the rule of two subnets; never; to all at once."""
TAG_BYTES = SWARM_BYTES = 16

BLOCK_BYTES = 4 * STRIDE
MAX_BLOCKS = 16_384
"""A million tokens; 8 MB if no two prompts share anything."""
MAX_SUBNETS = 4

_UNIT_BITS = 64
_UNIT = (1 << _UNIT_BITS) - 1
_SWARM_SHIFT = _UNIT_BITS + 8 * (1 + TAG_BYTES)
_COLOURED = (1 << _SWARM_SHIFT) - 1
"""A unit with the tag of an owner."""


class Owner(NamedTuple):
    """The owner of a computation, as far as reuse is concerned."""

    tag: bytes = b""
    subnet: str = ""
    """Empty: what it computes never opens."""
    swarm: bytes = b""
    """SWARM_BYTES long, see ``swarm_of``; empty: the open network."""

    @property
    def is_public(self) -> bool:
        """Whether all its tokens are open, in its swarm."""
        return self.tag == PUBLIC.tag


PUBLIC = Owner(b"public")


def owner_of(tag: bytes, scope: int, peer: bytes, subnet: str) -> Owner:
    """The owner of a request that ``peer`` sends: named by the tag, or without one by the peer itself."""
    if scope == EVERYBODY:
        return PUBLIC
    secret, what = (tag, b"tag") if tag else (peer, b"peer")
    name = blake3(what + secret, derive_key_context="mycelia 2026 prefix owner v1").digest(length=TAG_BYTES)
    return Owner(name, "" if scope == SALTED else subnet)


def swarm_of(salt: bytes) -> bytes:
    """The name of a swarm inside an engine, by the salt of its namespaces; empty for the open network, without one."""
    if not salt:
        return b""
    return blake3(salt, derive_key_context="mycelia 2026 prefix swarm v1").digest(length=SWARM_BYTES)


class Salt(NamedTuple):
    """The secret by which an entry node names an owner, independent of the serving node."""

    key: bytes = b""
    """A secret; empty: the entry node's own, or public."""
    scope: int = CLIENTS

    def tag_at(self, peer: bytes) -> bytes:
        """``Generate.tag`` for ``peer``. It reveals nothing about the owner's tags at other nodes."""
        if not self.key:
            return b""
        context = "mycelia 2026 prefix tag v1"
        return blake3(blake3(self.key).digest() + peer, derive_key_context=context).digest(length=TAG_BYTES)

    @property
    def mask(self) -> int:
        """Distinguishes this owner's block hashes from others' where an entry node remembers them."""
        return int.from_bytes(blake3(self.key).digest(length=8)) if self.key else 0


class Path(NamedTuple):
    """A sequence and how much of it others may reuse."""

    tokens: Sequence[int]
    num_open: int
    """Number of leading open tokens."""
    tag: bytes | None
    """The owner's tag of the other tokens; None: there are no others."""
    swarm: bytes = b""


def paint(tokens: Sequence[int], num_open: int, tag: bytes | None, swarm: bytes = b"") -> tuple[int, ...]:
    """The place of ``tokens`` in a tree: a match never continues from one owner's into another's, nor from one swarm's.
    Units may be tokens or block hashes, anything below 2**64. tag: may be None if all tokens are open."""
    path = list(tokens)
    if num_open < len(path):
        assert tag is not None
        path[num_open] |= _colour(tag) << _UNIT_BITS
    if swarm and path:
        path[0] |= _colour(swarm) << _SWARM_SHIFT
    return tuple(path)


def unpaint(path: Sequence[int]) -> Path:
    """The inverse of ``paint``."""
    swarm, path = split_swarm(path)
    highest = max(path, default=0)
    if highest <= _UNIT:
        return Path(path, len(path), None, swarm)
    place = path.index(highest)
    tokens = (*path[:place], highest & _UNIT, *path[place + 1 :])
    return Path(tokens, place, _name(highest >> _UNIT_BITS), swarm)


def split_swarm(path: Sequence[int]) -> tuple[bytes, Sequence[int]]:
    """The swarm of a path, and the path that it would be in the open network."""
    if not path or path[0] <= _COLOURED:
        return b"", path
    return _name(path[0] >> _SWARM_SHIFT), (path[0] & _COLOURED, *path[1:])


def match(tree: RadixTree, owner: Owner, tokens: Sequence[int], num_open: int) -> tuple[int, int | None, int]:
    """The longest prefix of ``tokens``, ``num_open`` of which are open, in a tree of paths that ``owner`` may reuse; a
    leaf that covers it; and how many tokens of its path are open there, 0 or ``num_open``. Does not mutate."""
    own = tree.match(paint(tokens, 0, owner.tag, owner.swarm))
    opened = tree.match(paint(tokens, num_open, owner.tag, owner.swarm)) if num_open else own
    # Open tokens can only be left at whole blocks, and those of PUBLIC are also in the tree as its own.
    if own[0] >= opened[0] if owner.is_public else own[0] > opened[0]:
        return *own, 0
    return *opened, num_open


def tags_of(rows: Iterable[TreeRow]) -> list[bytes | None]:
    """The owner's tag of each edge of a tree of paths; None: the edge is open."""
    tags: list[bytes | None] = []
    above: list[bytes | None] = []
    """Tags of the edges from the root to the last one."""
    for row in rows:
        del above[row.level :]
        inherited = above[-1] if above else None
        above.append(unpaint(row.tokens).tag if inherited is None else inherited)
        tags.append(above[-1])
    return tags


def plain(path: Sequence[int]) -> list[int]:
    """The tokens of a path or of a part of it."""
    return [unit & _UNIT for unit in path]


def _colour(name: bytes) -> int:
    return int.from_bytes(b"\x01" + name)


def _name(colour: int) -> bytes:
    return colour.to_bytes((colour.bit_length() + 7) // 8)[1:]


class Sharing:
    def __init__(self, secret: bytes, max_blocks: int = MAX_BLOCKS) -> None:
        """secret: key of the hashes, of any length. Without it, a client could make blocks that count as another's."""
        self._secret = secret
        self._max_blocks = max_blocks
        self._blocks: OrderedDict[int, dict[str, bytes] | None] = OrderedDict()
        """Hash of a prefix of whole blocks -> subnet -> its part of the next block; None: open."""

    def __len__(self) -> int:
        return len(self._blocks)

    def chain(self, tokens: Sequence[int], swarm: bytes = b"") -> Sequence[int]:
        """The hashes by which ``num_open`` knows a prompt in a swarm. Does not mutate."""
        return block_hashes(self._secret + swarm, tokens)

    def num_open(self, chain: Sequence[int]) -> int:
        """Number of leading tokens that any request may reuse: whole blocks. Mutates only their age."""
        count = 0
        while count < len(chain) and self._blocks.get(chain[count], _UNKNOWN) is None:
            count += 1
        self._touch(chain[:count])
        return count * STRIDE

    def note(self, owner: Owner, tokens: Sequence[int], declared: int = 0) -> Sequence[int]:
        """``owner`` has computed ``tokens``, or reused what it may. declared: number of leading tokens that hold no
        secrets. Returns the ``chain`` of ``tokens``. Mutates."""
        chain = self.chain(tokens, owner.swarm)
        if owner.is_public or owner.subnet or declared >= STRIDE:
            self.note_blocks(owner, chain, pack_tokens(tokens), BLOCK_BYTES, declared // STRIDE)
        return chain

    def note_blocks(
        self, owner: Owner, chain: Sequence[int], content: bytes, block_bytes: int, declared: int = 0
    ) -> None:
        """The same for a sequence of blocks whose contents are ``block_bytes`` long, and a rest. Mutates."""
        self._open(chain, len(chain) if owner.is_public else declared)
        if owner.subnet and not owner.is_public:
            for place in range(len(chain) - 1, -1, -1):
                begin = (place + 1) * block_bytes
                if self._note_block(owner.subnet, chain[place], content[begin : begin + block_bytes]):
                    self._open(chain, place + 1)
                    break
        self._touch(chain)
        while len(self._blocks) > self._max_blocks:
            self._blocks.popitem(last=False)

    def open(self, tokens: Sequence[int], swarm: bytes = b"") -> None:
        """The whole blocks of ``tokens`` were open in an earlier run. Mutates."""
        chain = self.chain(tokens, swarm)
        self._open(chain, len(chain))
        self._touch(chain)
        while len(self._blocks) > self._max_blocks:
            self._blocks.popitem(last=False)

    def _note_block(self, subnet: str, block: int, following: bytes) -> bool:
        """Note how ``subnet`` continued after ``block``; returns whether the block is open or must become so."""
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
        for block in reversed(chain):  # (the first one last: without it the others count for nothing)
            if block in self._blocks:
                self._blocks.move_to_end(block)

    def check_invariants(self) -> None:
        assert len(self._blocks) <= self._max_blocks
        assert all(subnets is None or 0 < len(subnets) <= MAX_SUBNETS for subnets in self._blocks.values())


_UNKNOWN: dict[str, bytes] = {}


def _differ(one: bytes, other: bytes) -> bool:
    """Whether both continued differently, and not only one further than the other."""
    return not (one.startswith(other) or other.startswith(one))
