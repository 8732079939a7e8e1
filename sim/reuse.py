"""How much of what is cached anywhere a swarm of cells finds: only in its cell, with the prefix ladder, or knowing all.

Every node takes requests at random (Poisson): a document, drawn by Zipf's law, and a tail of its own. A request goes to
a node that holds the document, if one is known: of the own cell, connected outside it, or found through the ladder
within the time that a request waits. Otherwise it goes to a random node of the cell. The serving node holds the
document then, and drops the least recently used ones. Digests count as fresh and queues as empty. The ladder is the
node's own (``cells/ladder.py``), over records in a Kademlia whose lookups take what ``kademlia.py`` says: a sample is
simulated, the others are drawn from it.
"""

import random
from bisect import bisect
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain

import numpy as np

from mycelia.proto.cells.cells import ROOT, Cell, address_of
from mycelia.proto.cells.ladder import Lookups, Publisher, ladder_key, rungs_of
from mycelia.proto.config import CellConfig, LadderConfig
from mycelia.proto.wire.blocks import STRIDE
from mycelia.proto.wire.messages import MAX_CELL_BITS
from mycelia.sim.kademlia import Found, Kademlia
from mycelia.sim.node import peer_id
from mycelia.sim.scenario import DEGREE
from mycelia.sim.world import NAMESPACE

REQUESTS_PER_S = 0.05
"""Requests a second at each node."""
TAIL_TOKENS = 512
CACHE_TOKENS = 65_536
DOCUMENTS_PER_NODE, ZIPF = 4, 0.8
MEDIAN_TOKENS, SIGMA = 3_000, 0.8
"""The documents' log-normal lengths, clamped to 512 to 16,384 tokens."""
WARM_S, COUNTED_S = 600.0, 300.0
OUTSIDERS = DEGREE // 4
_SAMPLED_LOOKUPS = 400

OWN_CELL, LADDER, ALL = "own cell", "ladder", "all"


def cells_of(addresses: Sequence[int], max_nodes: int) -> list[Cell]:
    """The cell of each address once every cell with more than ``max_nodes`` has split: where the nodes' rules lead."""
    found = [ROOT] * len(addresses)
    left = [(ROOT, list(range(len(addresses))))]
    while left:
        cell, members = left.pop()
        if len(members) <= max_nodes or cell.bits == MAX_CELL_BITS:
            for member in members:
                found[member] = cell
            continue
        for prefix in (2 * cell.prefix, 2 * cell.prefix + 1):
            child = Cell(cell.bits + 1, prefix)
            left.append((child, [member for member in members if child.holds(addresses[member])]))
    return found


class _Chain(Sequence[int]):
    """Block hashes of a document, computed on access."""

    def __init__(self, document: int, num_tokens: int) -> None:
        self._document = document
        self._num_blocks = num_tokens // STRIDE

    def __len__(self) -> int:
        return self._num_blocks

    def __getitem__(self, place: int) -> int:  # type: ignore[override]
        return self._document << 16 | place


@dataclass
class Reuse:
    """The results of one run. Bytes are sent and received by the node that asks or provides."""

    hit_share: float = 0.0
    """Prompt tokens that were found cached / all prompt tokens."""
    lookups: list[Found] = field(default_factory=list)
    num_lookups: int = 0
    num_found: int = 0
    num_in_wait: int = 0
    """Lookups that led to a node in time for the request itself."""
    num_false: int = 0
    """Dials of nodes that no longer held what their record said."""
    lookup_bytes_per_s: float = 0.0
    """Per node."""
    provide_bytes_per_s: float = 0.0
    provides: list[Found] = field(default_factory=list)


class _Node:
    def __init__(self, cell: Cell, near: list[int], config: LadderConfig, rng: random.Random, number: int) -> None:
        self.cell = cell
        self.near = near
        self.sought: dict[int, None] = {}
        """Nodes connected through a lookup."""
        self.cache: OrderedDict[int, int] = OrderedDict()
        """Document -> tokens that it takes; the last used one at the end."""
        self.publisher = Publisher(config)
        self.lookups = Lookups(peer_id(number), config, rng)
        self.used = 0


class Reusing:
    """One run. ``kind``: OWN_CELL, LADDER or ALL."""

    def __init__(
        self,
        dht: Kademlia,
        num_nodes: int,
        kind: str,
        seed: int,
        cells: CellConfig,
        ladder: LadderConfig,
        wait_s: float,
    ) -> None:
        self._rng = random.Random(seed)
        self._dht = dht
        self._kind = kind
        self._ladder = ladder
        self._wait_s = wait_s
        addresses = [address_of(NAMESPACE, peer_id(number)) for number in range(num_nodes)]
        own = cells_of(addresses, cells.max_cell_nodes)
        rng = self._rng
        near = [[rng.randrange(num_nodes) for _ in range(OUTSIDERS)] for _ in own]
        self._nodes = [_Node(own[number], near[number], ladder, rng, number) for number in range(num_nodes)]
        self._members: dict[Cell, list[int]] = {}
        for number, cell in enumerate(own):
            self._members.setdefault(cell, []).append(number)
        self._number_of = {peer_id(number): number for number in range(num_nodes)}
        num_documents = DOCUMENTS_PER_NODE * num_nodes
        self._weights = list(accumulate((rank + 1) ** -ZIPF for rank in range(num_documents)))
        lengths = np.random.default_rng(seed).lognormal(np.log(MEDIAN_TOKENS), SIGMA, num_documents)
        self._lengths = [int(length) for length in np.clip(lengths, 512, 16_384)]
        self._holders: dict[int, dict[Cell, dict[int, None]]] = {}
        self._records: dict[bytes, OrderedDict[bytes, None]] = {}
        self._rung_blocks: dict[int, list[int]] = {}
        self._num_provided = 0
        self.result = Reuse()

    def run(self) -> Reuse:
        num_nodes, rng = len(self._nodes), self._rng
        end = WARM_S + COUNTED_S
        pause_s = self._nodes[0].publisher.pause_s
        is_split = len(self._members) > 1
        now, found, asked, next_provide = 0.0, 0, 0, 0.0
        turn = 0
        while now < end:
            now += rng.expovariate(REQUESTS_PER_S * num_nodes)
            while self._kind == LADDER and is_split and next_provide <= now:
                self._provide(turn % num_nodes, next_provide)
                turn += 1
                next_provide += pause_s / num_nodes
            document = bisect(self._weights, rng.random() * self._weights[-1])
            matched = self._request(rng.randrange(num_nodes), document, now, is_split)
            if now >= WARM_S:
                found += matched
                asked += self._lengths[document] + TAIL_TOKENS
        result = self.result
        result.hit_share = found / asked
        per_lookup = np.mean([f.sent_bytes + f.received_bytes for f in result.lookups]) if result.lookups else 0.0
        result.lookup_bytes_per_s = float(per_lookup) * result.num_lookups / num_nodes / end
        per_key = np.mean([self._dht.provide_bytes(f) for f in result.provides]) if result.provides else 0.0
        result.provide_bytes_per_s = float(per_key) * self._num_provided / num_nodes / end
        return result

    def _request(self, entry: int, document: int, now: float, is_split: bool) -> int:
        node, length = self._nodes[entry], self._lengths[document]
        holder = self._known_holder(node, document)
        if holder is None and self._kind == LADDER and is_split:
            holder = self._look_up(entry, node, document, now)
        matched = length if holder is not None else 0
        server = holder if holder is not None else self._rng.choice(self._members[node.cell])
        self._store(server, document, length)
        return matched

    def _known_holder(self, node: _Node, document: int) -> int | None:
        by_cell = self._holders.get(document)
        if not by_cell:
            return None
        if self._kind == ALL:
            cell = self._rng.choice(list(by_cell))
            return self._rng.choice(list(by_cell[cell]))
        if near := by_cell.get(node.cell):
            return self._rng.choice(list(near))
        known = (other for other in (*node.near, *node.sought) if document in self._nodes[other].cache)
        return next(known, None)

    def _look_up(self, entry: int, node: _Node, document: int, now: float) -> int | None:
        """A node found in time; one found later is connected for later requests."""
        request_id, length = b"request", self._lengths[document]
        keys = node.lookups.begin(request_id, NAMESPACE, _Chain(document, length), length + TAIL_TOKENS, 0, now)
        if not keys:
            return None
        took = 0.0
        for key in keys:
            providers = list(self._records.get(key, ()))
            self._rng.shuffle(providers)
            took = max(took, self._lookup_of(entry, key, bool(providers)).seconds)
            if node.lookups.found(request_id, key, providers):
                break  # (all keys are looked up at once, and this result comes before the shallower ones)
        in_time = None
        dials = node.lookups.end(request_id)
        self.result.num_found += bool(dials)
        for peer in dials:
            other = self._number_of[peer]
            _, surplus = node.lookups.may_dial(peer, lambda peer: False)
            node.sought[other] = None
            if surplus is not None:
                node.sought.pop(self._number_of[surplus], None)
            if document not in self._nodes[other].cache:
                self.result.num_false += 1
            elif in_time is None and took + self._dht.connect_s(entry, other) <= self._wait_s:
                in_time = other
        self.result.num_in_wait += in_time is not None
        return in_time

    def _lookup_of(self, entry: int, key: bytes, is_provided: bool) -> Found:
        result = self.result
        result.num_lookups += 1
        if len(result.lookups) < _SAMPLED_LOOKUPS:
            found = self._dht.find_providers(entry, key, set(self._dht.holders(key)) if is_provided else ())
            result.lookups.append(found)
            return found
        alike = [found for found in self._rng.sample(result.lookups, 8) if found.is_found == is_provided]
        return self._rng.choice(alike or result.lookups)

    def _provide(self, number: int, now: float) -> None:
        node = self._nodes[number]
        wanted = chain.from_iterable(map(self._rungs, reversed(node.cache)))
        block = node.publisher.next_block(wanted, now)
        if block is None:
            return
        key = ladder_key(NAMESPACE, block)
        records = self._records.setdefault(key, OrderedDict())
        records[peer_id(number)] = None
        records.move_to_end(peer_id(number))
        if len(records) > 20:
            records.popitem(last=False)
        self._num_provided += 1
        if len(self.result.provides) < _SAMPLED_LOOKUPS // 4:
            self.result.provides.append(self._dht.find_providers(number, key, ()))

    def _rungs(self, document: int) -> list[int]:
        """The blocks of the document's rungs, deepest first."""
        if document not in self._rung_blocks:
            self._rung_blocks[document] = [block for _, block in rungs_of(_Chain(document, self._lengths[document]))]
        return self._rung_blocks[document]

    def _store(self, number: int, document: int, length: int) -> None:
        node = self._nodes[number]
        if document not in node.cache:
            node.used += length + TAIL_TOKENS
            self._holders.setdefault(document, {}).setdefault(node.cell, {})[number] = None
        node.cache[document] = length + TAIL_TOKENS
        node.cache.move_to_end(document)
        while node.used > CACHE_TOKENS and len(node.cache) > 1:
            dropped, tokens = node.cache.popitem(last=False)
            node.used -= tokens
            by_cell = self._holders[dropped]
            del by_cell[node.cell][number]
            if not by_cell[node.cell]:
                del by_cell[node.cell]


def sizes(num_nodes: int, cells: CellConfig) -> list[int]:
    """Sizes of all cells of a swarm of ``num_nodes``, sorted."""
    addresses = [address_of(NAMESPACE, peer_id(number)) for number in range(num_nodes)]
    return sorted(Counter(cells_of(addresses, cells.max_cell_nodes)).values())
