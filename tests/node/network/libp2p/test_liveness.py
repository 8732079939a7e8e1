"""Pings on connections: peers that send bytes are not pinged."""

import math
from collections.abc import Callable

import pytest
import trio
from libp2p.peer.id import ID
from trio.testing import MockClock

from mycelia.node.network.libp2p import liveness
from mycelia.node.network.libp2p.starvation import STARVED_S, Starvation
from tests.node.network.libp2p.network_helpers import eventually, node
from tests.node.network.libp2p.test_network import connect, opened


class Muxer:
    """A fake muxer. Its peer sends bytes all the time until ``silent_at``, and answers pings from ``answers_at`` on."""

    is_closed, is_initiator = False, True
    peer_id = ID(b"peer")

    def __init__(self, silent_at: float = -1.0, answers_at: float = math.inf) -> None:
        self._silent_at = silent_at
        self._answers_at = answers_at
        self._answered_at = -1.0
        self.now = 0.0
        self.pinged_at: list[float] = []
        self.num_forgotten = 0

    @property
    def last_received_at(self) -> float:
        return max(min(self.now, self._silent_at), self._answered_at)

    def send_ping(self, on_answer: Callable[[float], None]) -> int:
        self.pinged_at.append(self.now)
        if self.now >= self._answers_at:
            self._answered_at = self.now
            on_answer(0.1)
        return len(self.pinged_at)

    def forget_ping(self, nonce: int) -> None:
        self.num_forgotten += 1


def watched(muxer: Muxer, starvation: Starvation, until: float) -> float:
    """Looks at ``muxer`` each step, and returns when its peer was found silent; infinity: never until ``until``."""
    pulse = liveness.Pulse(muxer, lambda seconds: None)  # type: ignore[arg-type]
    while muxer.now < until:
        if not pulse.look(muxer.now, starvation):
            return muxer.now
        muxer.now += liveness.STEP_S
    return math.inf


@pytest.fixture
def no_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness, "PING_SPREAD", 0.0)


@pytest.mark.parametrize(("num_connections", "expected_s"), [(1, 4.0), (12, 4.0), (30, 10.0), (48, 16.0), (500, 16.0)])
def test_a_node_with_many_connections_pings_each_less_often(num_connections: int, expected_s: float) -> None:
    assert liveness.ping_interval_s(num_connections) == expected_s


@pytest.mark.parametrize("silent_s", [0.0, 7.0, 20.0])
def test_only_a_silent_peer_is_pinged(silent_s: float) -> None:
    muxer = Muxer(silent_at=silent_s, answers_at=0.0)
    assert watched(muxer, Starvation(), until=silent_s + liveness.PING_INTERVAL_S) == math.inf
    first, *others = muxer.pinged_at
    assert first == 0.0  # (it measures the round trip)
    assert len(others) == 1
    earliest = (1 - liveness.PING_SPREAD) * liveness.PING_INTERVAL_S - liveness.STEP_S
    assert silent_s + earliest <= others[0] <= silent_s + liveness.PING_INTERVAL_S


def test_round_trips_are_measured_again() -> None:
    muxer = Muxer(silent_at=1e9, answers_at=0.0)
    watched(muxer, Starvation(), until=liveness.ROUND_TRIP_INTERVAL_S + 1)
    first, again = muxer.pinged_at
    assert again - first == pytest.approx(liveness.ROUND_TRIP_INTERVAL_S, abs=liveness.STEP_S)


@pytest.mark.usefixtures("no_jitter")
def test_a_silent_peer_is_found_in_time() -> None:
    muxer = Muxer(silent_at=0.0)
    found_at = watched(muxer, Starvation(), until=60.0)
    assert liveness.PING_DEADLINE_S - liveness.STEP_S <= found_at - muxer.pinged_at[0] <= liveness.PING_DEADLINE_S
    assert len(muxer.pinged_at) == muxer.num_forgotten == 1


def test_a_peer_that_sends_bytes_is_there_though_it_answers_no_ping() -> None:
    muxer = Muxer(silent_at=1e9)
    assert watched(muxer, Starvation(), until=120.0) == math.inf
    assert muxer.num_forgotten >= len(muxer.pinged_at) - 1 >= 3


def test_a_starved_process_accuses_no_peer_at_once() -> None:
    muxer, starvation = Muxer(silent_at=0.0), Starvation()
    for second in range(100):
        starvation.note(float(second), STARVED_S)
    found_at = watched(muxer, starvation, until=60.0)
    assert len(muxer.pinged_at) == liveness.MAX_STARVED
    assert found_at > (liveness.MAX_STARVED - 1) * (liveness.PING_DEADLINE_S - liveness.STEP_S)


def test_a_peer_that_answers_after_the_starvation_is_there() -> None:
    muxer, starvation = Muxer(silent_at=0.0, answers_at=liveness.PING_DEADLINE_S / 2), Starvation()
    starvation.note(1.0, STARVED_S)
    assert watched(muxer, starvation, until=2 * liveness.PING_DEADLINE_S) == math.inf
    assert len(muxer.pinged_at) >= 2


async def test_starvation_is_measured_on_the_clock(autojump_clock: MockClock) -> None:
    starvation = Starvation()
    watching = liveness.Liveness(Table(), starvation)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watching.run)
        await trio.sleep(10)
        assert starvation.late_s(0.0) == 0.0
        nursery.cancel_scope.cancel()


class Table:
    """A fake table of peers."""

    def record_round_trip(self, connection: object, seconds: float) -> None: ...


async def test_round_trips_are_measured_on_both_sides() -> None:
    async with opened(node()) as (one, _), opened(node()) as (two, _):
        await connect(two, one)
        await eventually(lambda: one.round_trip_s(two.peer_id) and two.round_trip_s(one.peer_id))
