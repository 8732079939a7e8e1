"""The simulator itself: equal runs, true byte counts, latency, loss and partitions."""

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mycelia.proto.digests.batches import BATCH_S, Batches
from mycelia.proto.effects import Publish, Send
from mycelia.proto.wire.codec import encode
from mycelia.proto.wire.errors import LocalError
from mycelia.proto.wire.messages import Reconcile, Version
from mycelia.sim.links import Links, Partition, constant_rtt, measured_rtt, mesh_of, modelled_rtt, random_graph
from mycelia.sim.metadata import Churn, Setting, is_converged, make_swarm, start_all
from mycelia.sim.node import SimNode, peer_id
from mycelia.sim.traffic import GOSSIP, GOSSIP_ENVELOPE_BYTES, PLANES, REPAIR, STREAM_ENVELOPE_BYTES, size_of
from mycelia.sim.world import NAMESPACE, World


def run(seed: int, num_nodes: int = 20) -> World:
    swarm = make_swarm(Setting(num_nodes, loss=0.05, seed=seed))
    Churn(swarm.world, 0.2, swarm.world.now + 20).begin()
    swarm.wait(30)
    return swarm.world


def test_equal_seeds_are_equal_runs() -> None:
    world = run(3)
    assert world.num_events > 1_000
    assert world.trace() == run(3).trace() != run(4).trace()
    world.check_invariants()


def test_a_run_does_not_depend_on_the_hash_seed() -> None:
    code = "from tests.sim.test_world import run; print(run(5, 12).trace())"
    traces = set()
    for hash_seed in ("0", "1"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        traces.add(ran.stdout)
    assert len(traces) == 1


def test_bytes_are_the_codecs_and_the_envelopes() -> None:
    world = World(Links(constant_rtt(2, 0.1), seed=1, jitter=0.0), 2, seed=1)
    world.links.set_mesh([(0, 1)])
    streamed = [0, 0]
    gossiped = [0, 0]

    def on_send(node: SimNode, effect: Send, size: int) -> None:
        assert size == len(encode(effect.message)) + STREAM_ENVELOPE_BYTES
        streamed[node.number] += size

    def on_publish(node: SimNode, effect: Publish) -> None:
        gossiped[node.number] += len(encode(effect.message)) + GOSSIP_ENVELOPE_BYTES

    world.on_send, world.on_publish = on_send, on_publish
    start_all(world, [(0, 1)])
    world.run(world.now + 100)
    for node, other in ((0, 1), (1, 0)):
        assert world.sent[GOSSIP][node] == world.received[GOSSIP][other] == gossiped[node] > 0
        on_streams = sum(int(world.sent[plane][node]) for plane in PLANES if plane not in (GOSSIP, "lazy"))
        assert on_streams == streamed[node] > 0
        assert world.sent[REPAIR][node] == world.received[REPAIR][other]


@pytest.mark.parametrize("count", [0, 1, 23, 24, 300])
def test_a_version_vector_is_summed_up_right(count: int) -> None:
    versions = tuple(
        Version(owner=peer_id(n), namespace=NAMESPACE, epoch=n * 10**9, seq=n * n * n) for n in range(count)
    )
    message = Reconcile(versions=versions)
    assert size_of(message) == len(encode(message))


def test_a_message_takes_half_the_rtt_and_gossip_the_shortest_way() -> None:
    rtt = constant_rtt(4, 0.2)
    links = Links(rtt, seed=1, jitter=0.0)
    assert links.delay_s(0, 3, 0.0) == pytest.approx(0.1)
    links.set_mesh([(0, 1), (1, 2), (2, 3)])
    heard, first, sent, received = links.flood(0, 0.0, np.ones(4, dtype=np.bool_))
    assert heard.tolist() == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert first.tolist() == [-1, 0, 1, 2]
    assert sent.tolist() == [1, 1, 1, 0] and received.tolist() == [0, 1, 1, 1]


def test_the_mesh_brings_every_message_about_three_times() -> None:
    rng = random.Random(1)
    links = Links(modelled_rtt(100, rng), seed=1)
    edges = random_graph(100, 32, rng)
    links.set_mesh(mesh_of(edges, 100, 4, rng))
    up = np.ones(100, dtype=np.bool_)
    copies = [links.flood(source, 100.0 * source, up)[3].mean() for source in range(20)]
    assert 2.7 < sum(copies) / len(copies) < 3.5


def test_a_busy_mesh_brings_every_message_about_twice_and_a_little_later() -> None:
    rng = random.Random(1)
    links = Links(modelled_rtt(100, rng), seed=1)
    links.set_mesh(mesh_of(random_graph(100, 32, rng), 100, 4, rng))
    up = np.ones(100, dtype=np.bool_)
    floods = [links.flood(rng.randrange(100), 1_000 + 0.25 * number, up) for number in range(100)]
    copies = np.mean([received.mean() for _, _, _, received in floods])
    assert 1.9 < copies < 2.6
    assert all(sent.sum() == received.sum() for _, _, sent, received in floods)
    latencies = np.array([heard for heard, _, _, _ in floods])
    assert 0.5 < np.median(latencies) / BATCH_S < 2.5 and latencies.max() / BATCH_S < 6


def test_a_link_carries_batches_as_a_nodes_neighbour_gets_them() -> None:
    """One sender's messages at random times leave when ``Batches`` hands them out."""
    rng = random.Random(7)
    links = Links(constant_rtt(2, 0.002), seed=1, jitter=0.0)
    links.set_mesh([(0, 1)])
    batches, left, begun_at = Batches[int, int](), dict[int, float](), float(links.begun_at[0])
    times = sorted(rng.uniform(0, 100) for _ in range(100))
    ticks = [(begun_at + BATCH_S * number, None) for number in range(1, 102)]
    for at, number in sorted([*ticks, *((at, number) for number, at in enumerate(times))], key=lambda one: one[0]):
        out = batches.begin_interval().get(1, []) if number is None else batches.add(1, b"%d" % number, number, 9)
        left |= dict.fromkeys(out, at)
    heard = [at + links.flood(0, at, np.ones(2, dtype=np.bool_))[0][1] for at in times]
    assert heard == pytest.approx([left[number] + 0.001 for number in range(100)])


def test_loss_loses_its_share() -> None:
    links = Links(constant_rtt(2, 0.1), seed=1, loss=0.2)
    lost = sum(links.delay_s(0, 1, 0.0) is None for _ in range(5_000))
    assert 0.18 < lost / 5_000 < 0.22


def test_nothing_crosses_a_partition_while_it_lasts() -> None:
    links = Links(constant_rtt(4, 0.1), seed=1)
    links.set_mesh([(0, 1), (1, 2), (2, 3), (3, 0)])
    links.partition = Partition(10.0, 20.0, [True, True, False, False])
    up = np.ones(4, dtype=np.bool_)
    for now, crosses in ((9.0, True), (10.0, False), (19.0, False), (20.0, True)):
        assert (links.delay_s(0, 2, now) is not None) == crosses
        assert bool(np.isfinite(links.flood(0, now, up)[0]).all()) == crosses


def test_modelled_latencies_are_those_of_an_internet() -> None:
    rtt = modelled_rtt(100, random.Random(1))
    assert np.allclose(rtt, rtt.T)
    assert rtt.min() > 0.04 and rtt.max() < 0.5
    assert 0.1 < np.median(rtt) < 0.25


def test_measured_latencies_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "rtt.json"
    path.write_text('{"rtt_ms": [[0, 100], [100, 0]]}')
    rtt = measured_rtt(path, 10, random.Random(1))
    assert rtt.shape == (10, 10) and 0.1 < rtt.max() < 0.15
    for bad in ("", "[]", '{"rtt_ms": [[1, 2]]}', '{"rtt_ms": [[-1]]}', '{"rtt_ms": "far"}'):
        path.write_text(bad)
        with pytest.raises(LocalError, match=r"rtt\.json"):
            measured_rtt(path, 10, random.Random(1))


def test_a_node_that_stops_is_forgotten_and_one_that_restarts_is_heard_again() -> None:
    swarm = make_swarm(Setting(10, loss=0.0))
    world = swarm.world
    assert is_converged(world)
    peers = sorted(world.node(3).near)
    world.stop(3)
    swarm.wait(200)
    assert all(node.overlay.estimates.state(peer_id(3), NAMESPACE) is None for node in world.up())
    node = world.start(3)
    for other in peers:
        world.connect(3, other)
    world.serve(node)
    swarm.wait(90)
    assert is_converged(world)
    world.check_invariants()
