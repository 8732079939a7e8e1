"""Given requests through a given swarm: the prediction for a real swarm that gets the same requests.

All nodes are at one distance and connected, each with all others or with as many as nodes dial for. They serve when the
first request comes. Caches are empty then.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from mycelia.proto.config import OverlayConfig
from mycelia.sim.host import Host
from mycelia.sim.links import Links, constant_rtt, mesh_of, random_graph
from mycelia.sim.machine import EngineSpec
from mycelia.sim.metadata import MESH_DEGREE
from mycelia.sim.policies import make_policy
from mycelia.sim.prompts import Prompt
from mycelia.sim.record import Record
from mycelia.sim.serving import Serving
from mycelia.sim.views import TrueState
from mycelia.sim.world import World

START_S, SETTLE_S = 1.0, 15.0
"""As in ``simulate.py``."""
DRAIN_S = 3_600.0
"""Time for the last answers. A request without an answer by then has failed."""


@dataclass(frozen=True)
class Request:
    at_s: float
    """Seconds since the start; after another request, since its end."""
    entry: int
    prompt: Prompt
    after: int | None = None
    """The request that its client makes before it, by its place."""


@dataclass(frozen=True)
class Swarm:
    """The nodes, and the distance between them."""

    specs: Sequence[EngineSpec]
    rtt_s: float
    speeds: Sequence[float] | None = None
    """Speeds of engines that share a machine, see ``Host``; None: each has its own machine."""
    connections: int | None = None
    """Connections that each node dials for; None: all are connected with each other."""


def replay(requests: Sequence[Request], swarm: Swarm, policy: str, seed: int) -> list[Record]:
    """The records of ``requests``, in their order, equal for equal seeds. Raises LocalError for an unknown policy."""
    num_nodes = len(swarm.specs)
    world = World(
        Links(constant_rtt(num_nodes, swarm.rtt_s), seed, jitter=0.0),
        num_nodes,
        seed,
        replace(OverlayConfig(), max_peers=max(OverlayConfig().max_peers, num_nodes)),
        perform_request=lambda node, effect: serving.perform(node, effect),
        policy_of=lambda number: make_policy(
            policy,
            random.Random(f"policy {seed} {number}"),
            TrueState(serving, number),
        ),
    )
    serving = Serving(world, swarm.specs, host=Host(swarm.speeds, world.call) if swarm.speeds else None)
    if swarm.connections is None:
        pairs = mesh = [(one, other) for one in range(num_nodes) for other in range(one)]
    else:
        pairs = random_graph(num_nodes, swarm.connections, world.rng)
        mesh = mesh_of(pairs, num_nodes, MESH_DEGREE, world.rng)
    world.links.set_mesh(mesh)
    for number in range(num_nodes):
        world.call(world.now + START_S * world.rng.random(), partial(serving.start, world.start(number)))
    for one, other in pairs:
        world.connect(one, other)
    world.run(world.now + START_S + SETTLE_S)

    began = world.now
    records: dict[int, Record] = {}
    followers = followers_of([request.after for request in requests])

    def submit(place: int) -> None:
        records[place] = serving.submit(requests[place].entry, requests[place].prompt, lambda _: submit_after(place))

    def submit_after(place: int | None) -> None:
        for follower in followers.get(place, ()):
            world.call(world.now + requests[follower].at_s, partial(submit, follower))

    submit_after(None)
    until = began + max((request.at_s for request in requests), default=0.0) + DRAIN_S
    while world.now < until and not (len(records) == len(requests) and all(one.is_over for one in records.values())):
        world.run(world.now + 1.0)
    return [records[place] for place in range(len(requests))]


def followers_of(after: Sequence[int | None]) -> dict[int | None, list[int]]:
    """For each place, and for None, the places that come directly after it. after: what each place comes after."""
    followers: dict[int | None, list[int]] = {}
    for place, before in enumerate(after):
        followers.setdefault(before, []).append(place)
    return followers
