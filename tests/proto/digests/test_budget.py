"""Bytes: the bucket's bound in every window, and the digest plane when it is empty or receives too much."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mycelia.proto.config import DigestConfig, OverlayConfig
from mycelia.proto.digests.budget import METER_TAU_S, Plane, RateMeter, SendBudget, plane_of, size_of
from mycelia.proto.digests.estimates import State
from mycelia.proto.effects import Effect, Publish, Send
from mycelia.proto.events import CacheChanged, Event, Gossiped
from mycelia.proto.wire.blocks import STRIDE
from mycelia.proto.wire.codec import encode
from mycelia.proto.wire.messages import Control, Delta, Gossip, ServingFrame
from tests.profiles import examples
from tests.proto.examples import EXAMPLES
from tests.proto.playbook import NAMESPACE, World, peer_id

ME = peer_id(0)
TIGHT = replace(DigestConfig(), send_bytes_per_s=200.0, send_burst_bytes=2_000.0)


@pytest.mark.properties
@given(st.lists(st.tuples(st.floats(0, 20), st.integers(1, 500)), max_size=60))
@settings(max_examples=examples(100), deadline=None)
def test_no_window_has_more_bytes_than_the_bucket_promises(wishes: list[tuple[float, int]]) -> None:
    budget, now, sent = SendBudget(rate=50.0, burst=300.0, now=0.0), 0.0, []
    for pause, size in wishes:
        now += pause
        if budget.ready_at(now) <= now:
            budget.spend(size, now)
            sent.append((now, size))
    for first, (begin, _) in enumerate(sent):
        total = 0
        for end, size in sent[first:]:
            total += size
            assert total <= 300 + 50 * (end - begin) + 500 + 1e-6


def test_a_bucket_says_when_it_is_ready_again() -> None:
    budget = SendBudget(rate=100.0, burst=200.0, now=0.0)
    assert budget.ready_at(0.0) == 0.0
    budget.spend(450, 0.0)
    assert budget.ready_at(0.0) == 2.5
    assert budget.ready_at(2.5) == 2.5


def test_a_meter_finds_a_steady_rate_and_forgets_it() -> None:
    meter = RateMeter()
    for second in range(300):
        meter.add(1_000, float(second))
    assert meter.per_s(299.0) == pytest.approx(1_000, rel=0.05)
    assert meter.per_s(299.0 + METER_TAU_S) == pytest.approx(1_000 / math.e, rel=0.05)


@pytest.mark.parametrize("message", [m for m in EXAMPLES if isinstance(m, Control | Gossip | ServingFrame)], ids=repr)
def test_sizes_are_about_right_and_never_too_small_for_digests(message: Control | Gossip | ServingFrame) -> None:
    size = len(encode(message))
    assert size_of(message) <= size + 300
    if plane_of(message) is Plane.DIGESTS:
        assert size_of(message) >= size


class Recorded(World):
    """Records the digest messages that node 0 sent, and when."""

    def __init__(self, num_nodes: int, config: DigestConfig) -> None:
        self.sent: list[tuple[float, Control | Gossip]] = []
        super().__init__(num_nodes, config=OverlayConfig(digest=config))

    def handle(self, me: bytes, event: Event) -> list[Effect]:
        effects = super().handle(me, event)
        for effect in effects if me == ME else ():
            if isinstance(effect, Publish | Send) and plane_of(effect.message) is Plane.DIGESTS:
                self.sent.append((self.now, effect.message))
        return effects


def test_what_a_node_sends_stays_in_its_budget_and_the_newest_state_wins() -> None:
    world = Recorded(3, TIGHT)
    world.deliver_all()
    for number in range(120):
        world.handle(ME, CacheChanged(NAMESPACE, [(number % 6, [number] * STRIDE * 20)], []))
        world.advance(1)
    largest = max(len(encode(message)) for _, message in world.sent)
    for first, (begin, _) in enumerate(world.sent):
        total = 0
        for end, message in world.sent[first:]:
            total += len(encode(message))
            assert total <= 2_000 + 200 * (end - begin) + largest
    traffic = world.nodes[ME].overlay.traffic
    assert traffic.num_postponed > 0
    assert traffic.sent_bytes >= sum(len(encode(message)) for _, message in world.sent)
    world.advance(150)
    own = world.nodes[ME].own_digest
    assert not own.is_behind()
    for reader in (peer_id(1), peer_id(2)):
        estimates = world.nodes[reader].overlay.estimates
        assert estimates.entries(ME, NAMESPACE) == own.entries and estimates.state(ME, NAMESPACE) is State.LIVE


def interval_of(world: World, seconds: int, noise_bytes: int) -> float:
    """Mean time between node 0's deltas while it changes every second and receives ``noise_bytes`` a second."""
    own = world.nodes[ME].own_digest
    assert own.head is not None
    start = own.head.seq
    author = peer_id(1)
    other = world.nodes[author].own_digest
    assert other.head is not None
    noise = Delta(head=other.head, from_seq=0, upserts=bytes(noise_bytes), removes=b"")
    for number in range(seconds):
        world.handle(ME, CacheChanged(NAMESPACE, [(0, [number] * STRIDE)], []))
        if noise_bytes:
            world.handle(ME, Gossiped(author, author, NAMESPACE, noise))  # (a copy: refused, but received)
        world.advance(1)
    return seconds / (own.head.seq - start)


def test_deltas_become_rarer_while_too_much_is_received_and_then_frequent_again() -> None:
    world = World(2)
    world.deliver_all()
    world.advance(20)
    config = world.config.digest
    quiet = interval_of(world, 200, 0)
    assert quiet < config.delta_interval_s * 1.3
    loud = interval_of(world, 300, 17_000)  # (40 kB/s with all copies)
    assert config.delta_interval_s * 1.8 < loud <= config.delta_interval_s * config.max_stretch * 1.2
    traffic = world.nodes[ME].overlay.traffic
    assert traffic.digests_per_s(world.now) > config.receive_bytes_per_s
    assert traffic.digests_per_s(world.now) > config.gossip_copies * traffic.received_per_s(Plane.DIGESTS, world.now)
    interval_of(world, 200, 0)
    assert interval_of(world, 200, 0) < config.delta_interval_s * 1.3
