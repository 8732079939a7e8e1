"""Which models clients ask for: what this node's own clients do, and what other nodes report of theirs.

A node reports only what its own clients ask for, never what it heard. So each claim has one author, and it can be
counted by the author's *subnet*: its network, or the node itself where addresses are not scarce (see ``hear``).

Claims are not believed one by one. Of the claims about one thing the largest subnet's is left out, and each other
one counts up to a limit that the reader sets. So one subnet alone changes nothing, whatever it says and however many
keys it has; each further one changes as much as one honest node could.

Invariants: the newest report of each of MAX_HEARD nodes is kept, at most MAX_OF_SUBNET of one subnet. It counts
for HEARD_S.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from mycelia.proto.loading.plan import Faded
from mycelia.proto.wire.messages import MAX_DEMANDED, MAX_SMALL, Demand, ModelDemand

HALF_LIFE_S = 1_200.0
"""After this time half of what was asked counts no more. Shorter than the pause between two decisions: a lack that is
over must be forgotten by then."""
MAX_COUNTED = 64
"""Models whose requests a node counts: clients may name anything."""
MAX_HEARD, MAX_OF_SUBNET = 256, 4
HEARD_S = 3_600.0


def believed(claims: Iterable[tuple[str, float]], most: float) -> float:
    """The sum of what subnets claim, each at most ``most``, without the largest. claims: (subnet, what a node of it
    claims); of a subnet the mean counts."""
    sums: dict[str, tuple[float, int]] = {}
    for subnet, size in claims:
        total, num = sums.get(subnet, (0.0, 0))
        sums[subnet] = total + size, num + 1
    sizes = sorted(total / num for total, num in sums.values())[:-1]
    return sum(min(size, most) for size in sizes)


@dataclass(slots=True)
class Rate:
    """Requests for one model."""

    asked: Faded = field(default_factory=lambda: Faded(half_life_s=HALF_LIFE_S))
    refused: Faded = field(default_factory=lambda: Faded(half_life_s=HALF_LIFE_S))
    """Those that nobody answered."""


class OwnDemand:
    """What this node's own clients ask for. Requests that other nodes pass on are their demand."""

    def __init__(self) -> None:
        self._rates: dict[str, Rate] = {}

    def ended(self, model: str, is_answered: bool, now: float, num: int = 1) -> None:
        """``num`` requests ended. Mutates."""
        rate = self._rates.get(model)
        if rate is None:
            if len(self._rates) >= MAX_COUNTED:
                del self._rates[min(self._rates, key=lambda name: self._rates[name].asked.now(now))]
            rate = self._rates[model] = Rate()
        rate.asked.add(num, now)
        if not is_answered:
            rate.refused.add(num, now)

    def asked(self, model: str, now: float) -> float:
        """Requests per hour."""
        rate = self._rates.get(model)
        return rate.asked.per_hour(now) if rate else 0.0

    def refused(self, model: str, now: float) -> float:
        """Requests per hour that nobody answered."""
        rate = self._rates.get(model)
        return rate.refused.per_hour(now) if rate else 0.0

    def rows(self, is_public: Callable[[str], bool], now: float) -> tuple[ModelDemand, ...]:
        """The report for other nodes: models that others know anyway, with rounded rates. Does not mutate."""
        names = sorted(filter(is_public, self._rates), key=lambda name: (-self.asked(name, now), name))
        rows = [
            ModelDemand(model=name, asked=asked, refused=min(rounded(self.refused(name, now)), asked))
            for name in names[:MAX_DEMANDED]
            if (asked := rounded(self.asked(name, now)))
        ]
        return tuple(rows)


def rounded(rate: float) -> int:
    """A rate as others get to know it: 0 or a power of two."""
    return 0 if rate < 0.5 else min(1 << max(0, round(math.log2(rate))), MAX_SMALL)


@dataclass(frozen=True, slots=True)
class _Heard:
    peer: bytes
    subnet: str
    at: float
    asked: Mapping[str, int]
    refused: Mapping[str, int]
    coming: Collection[str]
    chooses: bool


class HeardDemand:
    """The reports of other nodes."""

    def __init__(self) -> None:
        self._heard: dict[bytes, _Heard] = {}
        """The newest last."""
        self._num_of: Counter[str] = Counter()
        """Subnet -> reports."""

    def hear(self, peer: bytes, subnet: str, demand: Demand, now: float) -> None:
        """Store the report of a node in place of its last one. subnet: the network of its address in the open
        network; in private networks and private swarms the node itself, since members are not free to invent. Mutates.
        """
        if peer in self._heard:
            self._forget(peer)
        if self._num_of[subnet] >= MAX_OF_SUBNET:
            self._forget(next(other for other, heard in self._heard.items() if heard.subnet == subnet))
        asked, refused = dict[str, int](), dict[str, int]()
        for row in demand.models:  # (a model may have several names)
            asked[row.model] = asked.get(row.model, 0) + row.asked
            refused[row.model] = refused.get(row.model, 0) + row.refused
        self._heard[peer] = _Heard(peer, subnet, now, asked, refused, frozenset(demand.coming), demand.chooses)
        self._num_of[subnet] += 1
        if len(self._heard) > MAX_HEARD:
            self._forget(next(iter(self._heard)))

    def asked(self, model: str, most: float, now: float) -> float:
        """Requests per hour for ``model`` that are believed."""
        return believed([(one.subnet, one.asked.get(model, 0)) for one in self._fresh(now)], most)

    def refused(self, model: str, most: float, now: float) -> float:
        """Requests per hour for ``model`` that nobody answered, as believed."""
        return believed([(one.subnet, one.refused.get(model, 0)) for one in self._fresh(now)], most)

    def coming(self, model: str, now: float) -> float:
        """Nodes that are about to serve ``model``, as believed."""
        return believed([(one.subnet, model in one.coming) for one in self._fresh(now)], 1.0)

    def choosers(self, now: float) -> list[bytes]:
        """The nodes that choose their models themselves."""
        return [one.peer for one in self._fresh(now) if one.chooses]

    def num_fresh(self, now: float) -> int:
        return len(self._fresh(now))

    def check_invariants(self) -> None:
        assert self._num_of == Counter(heard.subnet for heard in self._heard.values())
        assert self._num_of.total() <= MAX_HEARD and all(0 < num <= MAX_OF_SUBNET for num in self._num_of.values())

    def _forget(self, peer: bytes) -> None:
        subnet = self._heard.pop(peer).subnet
        self._num_of[subnet] -= 1
        if not self._num_of[subnet]:
            del self._num_of[subnet]

    def _fresh(self, now: float) -> list[_Heard]:
        return [heard for heard in self._heard.values() if now - heard.at <= HEARD_S]
