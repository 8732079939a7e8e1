"""The values that a decision gets of some nodes are the same, to the bit, whatever other nodes are in the table."""

import math
import random
from dataclasses import fields

import numpy as np
import pytest

from mycelia.proto.config import RoutingConfig
from mycelia.proto.routing.candidates import UNKNOWN, Candidates, Usual
from mycelia.proto.routing.dispatches import UnderWay
from mycelia.proto.routing.load_table import LoadTable
from mycelia.proto.routing.observed import Observed
from mycelia.proto.wire.messages import Served, Vitals

CONFIG, NAMESPACE = RoutingConfig(), bytes(16)
ME = b"node 0"
OTHERS = {b"left out %d" % number for number in range(16)}


def load(rng: random.Random) -> Served:
    vitals = Vitals(
        active_requests=rng.randint(0, 9),
        waiting_requests=rng.randint(0, 5),
        slots=rng.choice([0, 1, 4]),
        queued_tokens=rng.randint(0, 90_000),
        prefill_rate=rng.choice([0, 100, 5_000]),
        decode_rate=30,
        hold_ms=rng.randint(0, 60_000),
    )
    return Served(namespace=NAMESPACE, model="m", context_tokens=rng.choice([100, 4_096]), vitals=vitals)


def observe(rng: random.Random, observed: Observed, peer: bytes) -> None:
    observed.on_first_token(peer, rng.random(), 9 * rng.random(), rng.uniform(50, 130))
    if rng.random() < 0.5:
        observed.on_cached(peer, 100, rng.randint(0, 120), 120.0)
        observed.speeds(NAMESPACE).on_prefilled(peer, rng.uniform(1, 9_999))


def under_way(rng: random.Random, now: float) -> UnderWay:
    return UnderWay(now - rng.random(), rng.randint(0, 999), rng.choice([math.inf, now + rng.uniform(-3, 3)]))


def bits(candidates: Candidates) -> dict[str, object]:
    columns = {field.name: getattr(candidates, field.name) for field in fields(candidates)}
    return {
        name: column.tobytes() if isinstance(column, np.ndarray) else repr(column) for name, column in columns.items()
    }


@pytest.mark.parametrize("seed", range(60))
def test_nodes_that_are_left_out_change_nothing(seed: int) -> None:
    rng = random.Random(seed)
    peers = [b"node %d" % number for number in range(rng.randint(0, 7))]
    tables: list[LoadTable] = []

    def tell(peer: bytes) -> None:
        for table in tables:
            table.observe(peer)

    observed = Observed(CONFIG, tell)
    few, many = (LoadTable(ME, CONFIG, observed, namespace=NAMESPACE) for _ in range(2))
    tables += [few, many]
    for peer in peers:
        report = load(rng), rng.uniform(0, 120), rng.choice([0.0, 110.0, math.inf]), rng.choice([None, rng.random()])
        few.put(peer, *report)
        many.put(peer, *report)
        if rng.random() < 0.7:
            observe(rng, observed, peer)
    for peer in OTHERS:
        many.put(peer, load(rng), 100.0, 0.0, 0.1)
    for limit in (math.inf, 0.0, 4.0):
        now = rng.uniform(90, 200)
        some = {peer: rng.randint(0, 999) for peer in peers if rng.random() < 0.5}
        running = {peer: [under_way(rng, now) for _ in range(2)] for peer in peers if rng.random() < 0.5}
        left_out = set(peers[:1]) if rng.random() < 0.2 else set()
        asked = rng.choice([50, 1_000]), some, dict(reversed(some.items())), running
        usual = rng.choice([UNKNOWN, Usual(500.0, 300.0)])
        alone = few.candidates(*asked, left_out, now, limit, usual)
        among_others = many.candidates(*asked, left_out | OTHERS, now, limit, usual)
        assert bits(alone) == bits(among_others)
