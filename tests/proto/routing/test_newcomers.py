"""The share of newcomers while others can serve; how long an answer's tokens may take; which rates are believed."""

from itertools import pairwise

import msgspec
import pytest

from mycelia.proto.answers.token_pace import TokenPace
from mycelia.proto.config import RoutingConfig
from mycelia.proto.effects import Abandon, Dispatch
from mycelia.proto.events import VitalsChanged
from mycelia.proto.routing.candidates import Candidate, Candidates
from mycelia.proto.routing.choose import rate
from mycelia.proto.routing.load_table import LoadTable
from mycelia.proto.routing.newcomers import ALL_SHARE, LEAST_SHARE, LONGER_S, MAX_IN_FLIGHT, PROBATION_S, Newcomers
from mycelia.proto.routing.observed import Observed
from mycelia.proto.routing.speeds import Speeds
from mycelia.proto.wire.messages import Accepted, Final, Served, Vitals
from tests.proto.planes.test_requests import (
    HOLDER,
    ME,
    PROMPT,
    REQUEST,
    USAGE,
    dispatched,
    frame,
    loaded,
    quiet_world,
    submit,
    tokens,
)
from tests.proto.playbook import IDLE, NAMESPACE, World, peer_id

CONFIG = RoutingConfig()
OLD = [b"old %d" % number for number in range(6)]
NEW = [b"new %d" % number for number in range(30)]


class Swarm:
    """Nodes that served for an hour, newcomers, and prompts that go to the first newcomer that may have one."""

    def __init__(self, key_of: dict[bytes, bytes] | None = None, others: list[bytes] = OLD) -> None:
        self.observed = Observed(CONFIG)
        self.table = LoadTable(
            ME, CONFIG, self.observed, lambda peer: (key_of or {}).get(peer, peer), lambda peer: self.now
        )
        self.newcomers = Newcomers()
        self.now = 10_000.0
        for peer in (ME, *OLD, *NEW):
            self.load(peer, IDLE)
        for peer in others:
            self.good(peer, self.now - 3_600.0)

    def load(self, peer: bytes, vitals: Vitals) -> None:
        served = Served(namespace=NAMESPACE, model="m", context_tokens=100, vitals=vitals)
        self.table.put(peer, served, self.now, 0.0, 0.1)

    def good(self, peer: bytes, now: float) -> None:
        self.observed.on_answered(peer, now, now)
        self.table.observe(peer)

    def left_out(self, in_flight: int = 0) -> set[bytes]:
        return self.newcomers.look(self.table, lambda peer: in_flight, self.now)[1]

    def share(self, wish: list[bytes], num: int = 400) -> float:
        """The share of ``num`` prompts that went to one of ``wish``, which get as many as they may."""
        got = 0
        for number in range(num):
            self.now += 0.1
            left_out = self.left_out()
            chosen = next((peer for peer in wish if peer not in left_out), OLD[number % len(OLD)])
            got += chosen in wish
            self.newcomers.sent(chosen, self.table, self.now)
            self.newcomers.check_invariants()
        return got / num


def test_a_newcomer_gets_a_tenth_whatever_it_claims() -> None:
    assert 0.05 < Swarm().share(NEW[:1]) <= LEAST_SHARE


def test_all_keys_of_a_subnet_are_one_newcomer() -> None:
    assert Swarm(dict.fromkeys(NEW, b"203.0.113.0/24")).share(NEW) <= LEAST_SHARE


def test_all_newcomers_together_get_half() -> None:
    assert LEAST_SHARE < Swarm().share(NEW) <= ALL_SHARE


def test_a_node_that_has_served_for_as_long_as_it_takes_is_no_newcomer() -> None:
    swarm = Swarm()
    swarm.good(NEW[0], swarm.now - PROBATION_S)
    assert swarm.share(NEW[:1]) == 1.0
    swarm.observed.on_lie(NEW[0], swarm.now)
    swarm.table.observe(NEW[0])
    assert swarm.share(NEW[:1]) <= LEAST_SHARE, "a lie costs all of its past"


def test_who_started_with_the_others_is_no_newcomer() -> None:
    swarm = Swarm(others=[])
    for peer in (*OLD, NEW[0]):
        swarm.good(peer, swarm.now - LONGER_S)
    assert swarm.share(NEW[:1]) == pytest.approx(0.5, abs=0.05), "only this node itself counts against it"


def test_newcomers_get_what_the_others_have_no_place_for() -> None:
    swarm = Swarm()
    for peer in (ME, *OLD):
        swarm.load(peer, msgspec.structs.replace(IDLE, active_requests=4, waiting_requests=2))
    assert swarm.share(NEW[:1]) == 1.0


def test_a_newcomer_has_few_requests_at_once() -> None:
    swarm = Swarm()
    assert not swarm.left_out(MAX_IN_FLIGHT - 1) and swarm.left_out(MAX_IN_FLIGHT) == set(NEW)


def test_of_rates_no_more_is_believed_than_was_seen_or_four_times_what_is_usual() -> None:
    def prefill_s(claimed: float, seen: float) -> float:
        one = Candidate(b"liar", 0, 0, is_local=False, prefill_rate=claimed, seen_rate=seen)
        others = [Candidate(b"%d" % number, 0, 0, is_local=False, prefill_rate=500.0) for number in range(4)]
        return float(rate(Candidates.of([one, *others]), 1_000, CONFIG).prefill_s[0])

    assert prefill_s(200_000.0, 0.0) == prefill_s(200_000.0, 900.0) == 1_000 / 2_000
    assert prefill_s(200_000.0, 5_000.0) == 1_000 / 5_000 and prefill_s(1_500.0, 0.0) == 1_000 / 1_500


# --- pace ----------------------------------------------------------------------------------------------------------


def test_a_pause_is_late_at_once_however_many_tokens_came_before() -> None:
    for num_before in (1, 1_000):
        pace = TokenPace(0.1, 3.0, 0)
        for number in range(num_before):
            pace.came(1, number * 0.01)
        last = (num_before - 1) * 0.01
        assert pace.late_s(last + 0.3) == pytest.approx(0.0) and pace.late_s(last + 2.3) == pytest.approx(2.0)


def test_a_token_now_and_then_is_later_each_time() -> None:
    pace, late_s = TokenPace(0.1, 3.0, 0), []
    for number in range(10):
        pace.came(1, number * 1.0)
        late_s.append(pace.late_s(number * 1.0))
    assert late_s == sorted(late_s) and late_s[-1] == pytest.approx(9 * 0.7 - 0.3)


def test_tokens_that_may_be_withheld_are_waited_for() -> None:
    pace = TokenPace(0.1, 3.0, 4)
    pace.came(1, 0.0)
    assert pace.late_s(1.5) == 0.0 < pace.late_s(1.6)


def begun(world_size: int = 3, num_tokens: int = 2) -> World:
    """A request that the holder has begun to answer, where tokens usually come 0.05 s apart."""
    world = quiet_world(world_size)
    world.store(HOLDER, 1, PROMPT)
    world.advance(2)
    for peer in (ME, HOLDER, peer_id(2)):
        world.nodes[ME].overlay.members.observed.speeds(NAMESPACE).on_pace(peer, 0.05)
    submit(world, max_tokens=64)
    assert dispatched(world).peer == HOLDER
    frame(world, 1, Accepted(cached_tokens=192, vitals=IDLE))
    for position in range(num_tokens):
        frame(world, 1, tokens(position, 11))
    return world


def test_an_answer_that_stops_after_two_tokens_goes_on_elsewhere() -> None:
    world = begun()
    world.advance(1.5)
    assert not world.nodes[ME].take(Abandon), "a pause is nothing"
    world.advance(2.0)
    assert world.nodes[ME].take(Abandon) == [Abandon(REQUEST, 1)]
    second = dispatched(world)
    assert second.peer != HOLDER and second.generate.resumed_tokens == 2
    assert world.nodes[ME].overlay.members.observed.lateness_s(HOLDER, world.now) > 0.5
    assert not world.nodes[ME].overlay.refusals, "to be slow is no offence"


def test_an_answer_that_trickles_goes_on_elsewhere() -> None:
    world = begun()
    for position in range(2, 8):
        world.advance(1.0)
        if world.nodes[ME].take(Abandon):
            break
        frame(world, 1, tokens(position, 11))
    assert position < 7 and dispatched(world).peer != HOLDER


def test_an_answer_in_time_stays_where_it_is() -> None:
    world = begun()
    for position in range(2, 64):
        world.advance(0.12)
        frame(world, 1, tokens(position, 11))
    frame(world, 1, Final(reason="length", usage=USAGE, vitals=IDLE))
    assert not world.nodes[ME].take(Abandon)
    assert world.nodes[ME].overlay.members.observed.lateness_s(HOLDER, world.now) == 0.0


def test_each_move_doubles_what_is_borne() -> None:
    world = begun(6)
    world.handle(ME, VitalsChanged(NAMESPACE, loaded(10**6)))
    waits, attempt, since = list[float](), 1, world.now
    while len(waits) < 4:
        world.advance(0.25)
        moved = world.nodes[ME].take(Dispatch)
        assert world.now - since < 60, "it moves again"
        if moved:
            waits.append(world.now - since)
            attempt, since = attempt + 1, world.now
            frame(world, attempt, tokens(0, 11))
    assert all(1.5 * before < after < 3 * before for before, after in pairwise(waits))


def test_a_node_that_begins_and_brings_no_token_is_left() -> None:
    world = begun(num_tokens=0)
    world.advance(40)
    assert world.nodes[ME].take(Abandon) == [Abandon(REQUEST, 1)] and dispatched(world).peer != HOLDER


def test_a_slow_machine_is_expected_to_be_slow_within_bounds() -> None:
    observed = Speeds(CONFIG)
    assert observed.expected_token_s(b"a") == CONFIG.default_token_s
    for peer, token_s in ((b"a", 0.02), (b"b", 0.05), (b"c", 0.1), (b"d", 0.05), (b"liar", 25.0)):
        observed.on_pace(peer, token_s)
    assert observed.expected_token_s(b"a") == observed.expected_token_s(b"unknown") == 0.05
    assert observed.expected_token_s(b"c") == 0.1 and observed.expected_token_s(b"liar") == 0.05 * CONFIG.max_slowness


def test_a_lie_costs_the_past_and_losses_a_part_of_it() -> None:
    observed, now = Observed(CONFIG), 1_000.0
    assert observed.record(b"peer", 900.0)[-1] == 900.0
    for number in range(2):
        observed.on_answered(b"peer", now - 50.0, now + number)
    assert observed.record(b"peer", now)[-1] == now - 50.0, "since it connected"
    observed.on_late(b"peer", 1.0, now)
    assert observed.record(b"peer", now)[-1] == now - 50.0, "once is nothing"
    observed.on_late(b"peer", 1.0, now)
    assert observed.record(b"peer", now)[-1] == float("inf")
    again = Observed(CONFIG)
    observed.on_answered(b"peer", now, now + 5.0)
    again.restore(observed.observations(now + 86_400.0), now + 86_400.0)
    assert again.record(b"peer", now)[-1] == now, "a past outlives a restart, and a night"
    again.on_lie(b"peer", now + 60.0)
    assert again.record(b"peer", now)[-1] == float("inf")
    again.on_answered(b"peer", now, now + 70.0)
    assert again.record(b"peer", now)[-1] == now + 70.0, "a liar starts anew"
