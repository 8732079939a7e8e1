"""The prefix ladder: which node of another cell holds a long prompt.

Cells do not gossip with each other, so the index knows only the node's own cell. For long prompts there are records in
the DHT, at a few depths of a prompt's chain of block hashes, the *rungs*: "this node holds the prefix that ends here".
A node in a cell of depth > 0 provides up to ``ladder_keys`` of them, one at a time, spread over ``republish_s``. While
all nodes are one cell it provides and looks up nothing.

Only what may pay is looked up: a prompt of at least ``min_prompt_tokens`` of which the best known match covers less
than ``known_share``. All rungs deeper than that match are looked up at once. The request waits at most for a share of
the time that the missing tokens would take to compute, and is then routed with what is known: in 0.3 s no lookup
between homes all over the world is done, but a processor computes 3,000 tokens in 10 s. Of the deepest rung with a
provider, up to ``max_dials`` nodes are dialled; such a node sends a hello and its digest like every connected node. So
a record is only a hint: a false or stale one costs a dial, and routing never believes it.

Bounded: lookups in flight, lookups a second, dials per lookup, and the connections made for them, of which the oldest
idle one is closed if there are too many. The same deepest rung is not looked up twice within a minute.
"""

import random
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from blake3 import blake3

from mycelia.proto.admission.limits import TokenBucket
from mycelia.proto.config import LadderConfig
from mycelia.proto.wire.blocks import HASH_BYTES, STRIDE

RUNGS = (256, 1_024, 4_096, 16_384)
"""Depths in tokens."""
MAX_PROVIDERS = 20
"""Providers of one key that are looked at: a DHT returns no more."""
_MAX_REMEMBERED = 1_024
_ASK_AGAIN_S = 60.0


def ladder_key(namespace: bytes, block: int) -> bytes:
    """The 16-byte DHT key of the prefix that ends with the block of this hash."""
    packed = block.to_bytes(HASH_BYTES, "big")
    return blake3(namespace + packed, derive_key_context="mycelia 2026 prefix ladder v1").digest(length=16)


def rungs_of(chain: Sequence[int]) -> list[tuple[int, int]]:
    """(depth in tokens, block hash) of the rungs that a chain of block hashes reaches, deepest first."""
    return [(depth, chain[depth // STRIDE - 1]) for depth in reversed(RUNGS) if len(chain) >= depth // STRIDE]


class Publisher:
    """Chooses what to provide next, in one namespace.

    Invariant: at most ``ladder_keys`` keys in any ``republish_s``, if ``next_block`` is called at most once in
    ``pause_s``.
    """

    def __init__(self, config: LadderConfig) -> None:
        self._config = config
        self._provided_at: dict[int, float] = {}

    @property
    def pause_s(self) -> float:
        return self._config.republish_s / self._config.ladder_keys

    def next_block(self, wanted: Iterable[int], now: float) -> int | None:
        """The block whose key to provide now; None: none is due. ``wanted``: the cache's rungs, best first. Mutates."""
        chosen = list(dict.fromkeys(wanted))[: self._config.ladder_keys]
        self._provided_at = {block: self._provided_at[block] for block in chosen if block in self._provided_at}
        block = next((block for block in chosen if block not in self._provided_at), None)
        if block is None and chosen:
            block = min(chosen, key=self._provided_at.__getitem__)
            if now < self._provided_at[block] + self._config.republish_s:
                return None
        if block is not None:
            self._provided_at[block] = now
        return block


@dataclass
class Lookup:
    namespace: bytes
    depths: dict[bytes, int]
    """Key -> its depth in tokens; answered keys are removed."""
    over_at: float
    deepest: int = 0
    """The deepest rung with a provider."""
    providers: list[bytes] = field(default_factory=list)
    """Providers of the deepest."""


class Lookups:
    """All lookups of a node, and the connections that they led to."""

    def __init__(self, me: bytes, config: LadderConfig, rng: random.Random) -> None:
        self._me = me
        self._config = config
        self._rng = rng
        self._lookups: dict[bytes, Lookup] = {}
        self._bucket = TokenBucket(config.lookups_per_s, config.lookups_burst, 0.0)
        self._asked_at: OrderedDict[bytes, float] = OrderedDict()
        """Deepest key of a lookup -> when it was asked."""
        self._dialled: OrderedDict[bytes, None] = OrderedDict()
        """Connections made for lookups, oldest first."""

    def __len__(self) -> int:
        return len(self._lookups)

    def begin(
        self, request_id: bytes, namespace: bytes, chain: Sequence[int], num_tokens: int, best: int, now: float
    ) -> tuple[bytes, ...]:
        """The keys to look up for a prompt of ``num_tokens`` of which ``best`` are known to be held; none if that would
        not pay or is not allowed now. Report each with ``found``. Mutates."""
        config = self._config
        if num_tokens < config.min_prompt_tokens or best >= config.known_share * num_tokens:
            return ()
        depths = {ladder_key(namespace, block): depth for depth, block in rungs_of(chain) if depth > best}
        if not depths or len(self._lookups) >= config.max_lookups:
            return ()
        first = next(iter(depths))
        if now < self._asked_at.get(first, -_ASK_AGAIN_S) + _ASK_AGAIN_S or not self._bucket.take(now):
            return ()
        self._asked_at[first] = now
        self._asked_at.move_to_end(first)
        if len(self._asked_at) > _MAX_REMEMBERED:
            self._asked_at.popitem(last=False)
        keys = tuple(depths)
        self._lookups[request_id] = Lookup(namespace, depths, now + config.lookup_over_s)
        return keys

    def wait_s(self, num_tokens: int, best: int, prefill_rate: int) -> float:
        """How long a request may wait. prefill_rate: of this node, tokens/s; 0 if not measured."""
        config = self._config
        if not prefill_rate:
            return config.lookup_wait_s
        return min(config.lookup_wait_share * (num_tokens - best) / prefill_rate, config.max_lookup_wait_s)

    def found(self, request_id: bytes, key: bytes, providers: Sequence[bytes]) -> bool:
        """The answer about one key. Returns whether nothing deeper can be found any more: then ``end`` it. Mutates."""
        lookup = self._lookups.get(request_id)
        depth = lookup.depths.pop(key, None) if lookup else None
        if lookup is None or depth is None:
            return False
        others = [peer for peer in dict.fromkeys(providers[:MAX_PROVIDERS]) if peer != self._me]
        if others and depth > lookup.deepest:
            lookup.deepest, lookup.providers = depth, others
        return all(depth < lookup.deepest for depth in lookup.depths.values())

    def over_at(self, request_id: bytes) -> float | None:
        """When an incomplete lookup ends anyway; None if there is none."""
        lookup = self._lookups.get(request_id)
        return lookup.over_at if lookup else None

    def end(self, request_id: bytes) -> list[bytes]:
        """The nodes that may hold most of the prompt, at most ``max_dials``: connect to them. Mutates."""
        lookup = self._lookups.pop(request_id, None)
        if lookup is None:
            return []
        return self._rng.sample(lookup.providers, min(self._config.max_dials, len(lookup.providers)))

    def may_dial(self, peer: bytes, is_busy: Callable[[bytes], bool]) -> tuple[bool, bytes | None]:
        """Whether to make a connection for a lookup, and which other one to close for it, if any: the oldest one
        without an answer in progress. Mutates: ``peer`` then counts as dialled."""
        surplus = None
        if peer not in self._dialled and len(self._dialled) >= self._config.ladder_peers:
            surplus = next((other for other in self._dialled if not is_busy(other)), None)
            if surplus is None:
                return False, None
            del self._dialled[surplus]
        self._dialled[peer] = None
        self._dialled.move_to_end(peer)
        return True, surplus

    def forget(self, peer: bytes) -> None:
        self._dialled.pop(peer, None)

    def check_invariants(self) -> None:
        assert len(self._lookups) <= self._config.max_lookups
        assert len(self._dialled) <= self._config.ladder_peers
        assert len(self._asked_at) <= _MAX_REMEMBERED
        assert all(len(lookup.providers) <= MAX_PROVIDERS for lookup in self._lookups.values())
