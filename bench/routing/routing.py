"""``mycelia bench routing``: the cost of one decision at the entry node.

The entry node is in a full cell: it is connected to all other nodes, has their digests and their load, and has observed
some of their answers. A prompt begins with one of ``_PREFIXES`` prefixes, each held by a third of the nodes. The
measured time is from the prompt's arrival to the effect that sends it: block hashes, index, cost, bookkeeping.
"""

import random
import time
from collections.abc import Sequence
from statistics import median, quantiles

from mycelia.bench.plans import RoutingBench
from mycelia.bench.report.report import Progress, Report, report_of, row_of
from mycelia.proto.effects import Dispatch
from mycelia.proto.events import CacheChanged, FrameReceived, RequestCancelled, RequestSubmitted
from mycelia.proto.wire.blocks import STRIDE, pack_tokens, token_array
from mycelia.proto.wire.messages import Sampling, Tokens, Vitals
from mycelia.sim.links import Links, constant_rtt
from mycelia.sim.world import NAMESPACE, World

_PREFIXES, _PREFIX_SHARE = 20, 0.75
_REQUESTS = 300
_SETTLE_S = 30.0


def bench_routing(bench: RoutingBench) -> Report:
    nodes, tokens, runs = bench.num_nodes, bench.tokens, bench.runs
    progress = Progress(1 + runs)
    rng = random.Random(bench.seed)  # noqa: S311  no secret
    progress.step(f"{nodes} nodes tell what they hold")
    whole = tokens // STRIDE
    prefixes = [_tokens(rng, int(whole * _PREFIX_SHARE) * STRIDE) for _ in range(_PREFIXES)]
    world = _full_cell(nodes, prefixes, rng, bench.seed)
    took_us: list[list[float]] = []
    for run in range(runs):
        progress.step(f"run {run + 1} of {runs}")
        took_us.append(_decisions(world, prefixes, tokens, run, rng))
    progress.close()
    return report_of(
        "routing",
        [
            row_of("decision_us_p50", "us", [median(each) for each in took_us]),
            row_of("decision_us_p99", "us", [quantiles(each, n=100)[98] for each in took_us]),
        ],
    )


def _full_cell(nodes: int, prefixes: Sequence[Sequence[int]], rng: random.Random, seed: int) -> World:
    """Node 0 is connected to all other nodes, and knows them."""
    links = Links(constant_rtt(nodes, 0.05), seed)
    links.set_mesh([(0, number) for number in range(1, nodes)])
    world = World(links, nodes, seed, readers=[0], perform_request=lambda *_: None)
    for number in range(nodes):
        vitals = Vitals(
            queued_tokens=rng.randrange(2_000),
            active_requests=rng.randrange(4),
            waiting_requests=0,
            slots=4,
            prefill_rate=rng.randint(300, 3_000),
            decode_rate=30,
            hold_ms=1_000,
        )
        world.serve(world.start(number), vitals)
    for number in range(1, nodes):
        world.connect(0, number)
    for number in range(nodes):
        held = [(leaf, prefix) for leaf, prefix in enumerate(prefixes, 1) if rng.random() < 1 / 3]
        world.handle(world.node(number), CacheChanged(NAMESPACE, held, []))
    world.run(world.now + _SETTLE_S)
    return world


def _decisions(
    world: World, prefixes: Sequence[Sequence[int]], tokens: int, run: int, rng: random.Random
) -> list[float]:
    """Microseconds of each decision."""
    overlay = world.node(0).overlay
    took_us: list[float] = []
    for number in range(_REQUESTS):
        prefix = rng.choice(prefixes)
        prompt = token_array(pack_tokens([*prefix, *_tokens(rng, tokens - len(prefix))]))
        request_id = (run * _REQUESTS + number + 1).to_bytes(16, "big")
        event = RequestSubmitted(request_id, NAMESPACE, prompt, Sampling(max_tokens=1))
        world.run(world.now + 0.1)
        began = time.perf_counter()
        effects = overlay.handle(event, world.now)
        took_us.append((time.perf_counter() - began) * 1e6)
        (dispatch,) = [effect for effect in effects if isinstance(effect, Dispatch)]
        first = Tokens(position=0, tokens=pack_tokens([1]), text=b"")
        overlay.handle(FrameReceived(request_id, dispatch.attempt, first), world.now + rng.random())
        overlay.handle(RequestCancelled(request_id), world.now)
    return took_us


def _tokens(rng: random.Random, number: int) -> list[int]:
    return [rng.randrange(50_000) for _ in range(number)]
