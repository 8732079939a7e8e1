"""What one network reports of its demand: a node that chooses its models takes any, and moves for none of it."""

import random

from mycelia.proto.supply.chooser import Began, Chooser, Looked, Move, Option, Reported, Serving, View
from mycelia.proto.supply.demand import MAX_HEARD, OwnDemand
from mycelia.proto.wire.codec import decode, encode
from mycelia.proto.wire.messages import MAX_SMALL, Demand, ModelDemand

_NAMES = ("held", "near", "far", "unknown", "x" * 128, "\x00")
_RATES = (0, 1, 3, 64, 2**20, MAX_SMALL)
_OPTIONS = (Option("held", 100.0), Option("near", 100.0), Option("far", 50.0, 600.0))

Item = list[tuple[bytes, bytes, float]]
"""(peer, its report in bytes, seconds since the one before)"""


class Supply:
    name = "supply"
    weight = 0.2

    def make(self, rng: random.Random) -> Item:
        peers = [bytes([number]) for number in range(rng.choice((1, 5, 255)))]
        return [
            (rng.choice(peers), encode(_demand(rng)), rng.choice((0.0, 60.0, 3_600.0)))
            for _ in range(rng.randrange(1, 30))
        ]

    def check(self, item: Item) -> bool:
        chooser, now = Chooser(b"me", [OwnDemand()], random.Random(1), 0.0), 0.0
        chooser.handle(Began("held"), now)
        for peer, data, pause_s in item:
            now += pause_s
            told = decode(data)
            assert isinstance(told, Demand)
            chooser.handle(Reported(peer, "198.51.100.0/24", told), now)
            chooser.heard.check_invariants()
        loads = [Serving(name, "198.51.100.0/24", load) for name in ("near", "held") for load in (0.0, 1e9)]
        (effect,) = chooser.handle(Looked(View(_OPTIONS, loads, 0.0, 16.0)), now)
        assert not isinstance(effect, Move), "one network moves no node"
        return chooser.heard.num_fresh(now) <= MAX_HEARD


def _demand(rng: random.Random) -> Demand:
    rows = tuple(
        ModelDemand(model=rng.choice(_NAMES), asked=rng.choice(_RATES), refused=rng.choice(_RATES))
        for _ in range(rng.choice((0, 1, 3, 32)))
    )
    coming = tuple(rng.choice(_NAMES) for _ in range(rng.randrange(5)))
    return Demand(models=rows, coming=coming, chooses=rng.random() < 0.5)
