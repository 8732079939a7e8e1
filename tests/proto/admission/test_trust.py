"""Offences outlive a restart, fade with time, and harm no peer for ever, even with a wrong file or clock."""

import math
from dataclasses import replace
from typing import Any, TypeVar

import pytest

from mycelia.proto.admission.trust import Offender, Trust
from mycelia.proto.config import RoutingConfig, TrustConfig
from mycelia.proto.effects import Disconnect
from mycelia.proto.events import Connected, Malformed, TrustRestored
from mycelia.proto.routing.observed import FORGOTTEN_HALF_LIVES, Observation, Observed
from tests.proto.playbook import World, peer_id

CONFIG, ROUTING = TrustConfig(), RoutingConfig()
NOW = 1_800_000_000.0
YEAR_S = 365 * 86_400.0
PEER, OTHER = peer_id(1), peer_id(2)
Record = TypeVar("Record", Offender, Observation)
ODD = (math.nan, math.inf, -math.inf, 1e300, -1e300, -1.0, 0.0, NOW + YEAR_S, NOW - YEAR_S)


def odd_one(record: Record, field: str, odd: float) -> Record:
    changes: dict[str, Any] = {field: odd}
    return replace(record, **changes)


def restarted(trust: Trust, now: float, at: float) -> Trust:
    again = Trust(CONFIG)
    again.restore(trust.offenders(now), at)
    return again


def a_banned_peer() -> Trust:
    trust = Trust(CONFIG)
    assert trust.offend(PEER, NOW, CONFIG.offences_to_quarantine)
    trust.offend(OTHER, NOW, 3.0)
    return trust


def test_a_quarantine_goes_on_after_a_restart_and_ends_as_it_would_have() -> None:
    again = restarted(a_banned_peer(), NOW, NOW + 60.0)
    assert again.banned_until(PEER) == NOW + CONFIG.quarantine_s
    assert again.is_banned(PEER, NOW + CONFIG.quarantine_s - 1) and not again.is_banned(PEER, NOW + CONFIG.quarantine_s)
    assert again.offences(OTHER, NOW + 60.0) == 2.0 and not again.is_banned(OTHER, NOW + 60.0)


def test_what_time_has_forgiven_is_not_kept() -> None:
    later = NOW + CONFIG.quarantine_s + 20 * CONFIG.offence_decay_s
    trust = a_banned_peer()
    assert not trust.offenders(later) and not restarted(trust, NOW, later).offenders(later)
    assert [one.peer for one in trust.offenders(NOW + 5 * CONFIG.offence_decay_s)] == [PEER]


def test_a_clock_that_went_back_bans_nobody_for_longer_than_an_offence_does() -> None:
    now = NOW - YEAR_S
    again = restarted(a_banned_peer(), NOW, now)
    assert again.banned_until(PEER) == now + CONFIG.quarantine_s
    assert again.offences(OTHER, now) == 3.0 and again.offences(OTHER, now + 4 * CONFIG.offence_decay_s) == 0.0


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("field", ["offences", "at", "banned_until"])
def test_no_number_bans_for_ever(field: str, odd: float) -> None:
    trust = Trust(CONFIG)
    trust.restore([odd_one(Offender(PEER, 5.0, NOW, 0.0), field, odd)], NOW)
    over = NOW + CONFIG.quarantine_s + 1
    assert not trust.is_banned(PEER, over)
    assert 0.0 <= trust.offences(PEER, NOW) <= 2 * CONFIG.offences_to_quarantine
    assert trust.offences(PEER, NOW + 2 * CONFIG.offences_to_quarantine * CONFIG.offence_decay_s) == 0.0
    assert trust.offend(PEER, over, CONFIG.offences_to_quarantine), "and it can still be put in quarantine"


def test_the_guiltiest_are_kept_when_there_are_too_many() -> None:
    config = replace(CONFIG, max_tracked=4)
    trust = Trust(config)
    trust.restore([Offender(bytes([n]) * 4, 1.0 + n, NOW, NOW + 60.0 * (n == 3)) for n in range(9)], NOW)
    assert {one.peer[0] for one in trust.offenders(NOW)} == {3, 6, 7, 8}


def observed_of(*observations: Observation, now: float = NOW) -> Observed:
    observed = Observed(ROUTING)
    observed.restore(observations, now)
    return observed


def test_what_was_observed_fades_on_over_a_restart() -> None:
    observed = Observed(ROUTING)
    observed.on_first_token(PEER, 0.0, 8.0, NOW)
    observed.on_cached(OTHER, 100, 0, NOW)
    later = NOW + ROUTING.observation_half_life_s
    again = observed_of(*observed.observations(NOW), now=later)
    for peer in (PEER, OTHER):
        assert again.lateness_s(peer, later) == observed.lateness_s(peer, later)
        assert again.precision(peer, later) == observed.precision(peer, later)
    assert again.lateness_s(PEER, later) == 4.0
    again.on_first_token(PEER, 0.0, 8.0, later)
    observed.on_first_token(PEER, 0.0, 8.0, later)
    assert again.observations(later)[-1] == observed.observations(later)[-1]
    assert not observed.observations(later + FORGOTTEN_HALF_LIVES * ROUTING.observation_half_life_s)


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("field", ["imprecision", "lateness_s", "at"])
def test_no_number_makes_a_peer_late_for_ever(field: str, odd: float) -> None:
    observed = observed_of(odd_one(Observation(PEER, 0.5, 2.0, 3, NOW), field, odd))
    assert 0.0 <= observed.precision(PEER, NOW) <= 1.0
    assert 0.0 <= observed.lateness_s(PEER, NOW) <= ROUTING.max_lateness_s
    assert observed.lateness_s(PEER, NOW + FORGOTTEN_HALF_LIVES * ROUTING.observation_half_life_s) < 0.01
    observed.on_first_token(PEER, 0.0, 1.0, NOW)
    observed.on_cached(PEER, 10, 5, NOW)


@pytest.mark.parametrize("num_late", [-(2**63), -1, 0, 2**63, 10**400])
def test_no_count_of_observations_breaks_the_next_one(num_late: int) -> None:
    observed = observed_of(Observation(PEER, 0.0, 1.0, num_late, NOW))
    observed.on_first_token(PEER, 0.0, 2.0, NOW)
    assert 1.0 < observed.lateness_s(PEER, NOW) <= 2.0


def test_those_observed_last_are_kept() -> None:
    observed = Observed(replace(ROUTING, max_observed=3))
    observed.restore([Observation(bytes([n]) * 4, 0.5, 1.0, 1, NOW) for n in range(9)], NOW)
    assert [one.peer[0] for one in observed.observations(NOW)] == [6, 7, 8]


def test_an_overlay_hands_out_what_it_holds_against_peers_and_takes_it_back() -> None:
    world = World(3)
    world.deliver_all()
    me, peer = peer_id(0), peer_id(1)
    for _ in range(CONFIG.offences_to_quarantine):
        world.handle(me, Malformed(peer, "nonsense"))
    before = world.nodes[me].overlay
    before.members.observed.on_first_token(OTHER, 0.0, 3.0, world.now)
    restored = TrustRestored(before.offenders(world.now), before.observations(world.now))
    assert [one.peer for one in restored.offenders] == [peer]

    other_world = World(1)
    again = other_world.nodes[me].overlay
    assert other_world.handle(me, restored) == []
    until = other_world.now + CONFIG.quarantine_s
    assert other_world.handle(me, Connected(peer, "/memory")) == [Disconnect(peer, "in quarantine", until)]
    assert again.observations(other_world.now) == restored.observations
    again.check_invariants()
