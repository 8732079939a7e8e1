"""Pings on connections: peers that send bytes are not pinged."""

import math

import pytest
import trio
from trio.testing import MockClock

from mycelia.node.network.libp2p import liveness
from tests.node.network.libp2p.network_helpers import eventually, node
from tests.node.network.libp2p.test_network import connect, opened


class Talker:
    """A fake muxer that receives bytes each second until ``silent_at``."""

    is_closed = False

    def __init__(self, silent_at: float) -> None:
        self._silent_at = silent_at

    @property
    def last_received_at(self) -> float:
        return min(trio.current_time(), self._silent_at)

    async def wait_closed(self) -> None:
        await trio.sleep_forever()


class Table:
    """A fake table of peers."""

    def record_round_trip(self, peer: bytes, seconds: float) -> None: ...


async def quiet_after(silent_s: float) -> float:
    """Seconds until ``watch`` pings a peer that falls silent after ``silent_s``."""
    began = trio.current_time()
    await liveness.wait_quiet(Talker(began + silent_s))  # type: ignore[arg-type]
    return trio.current_time() - began


async def test_only_a_silent_peer_is_pinged(autojump_clock: MockClock) -> None:
    for silent_s in (0.0, 7.0, 20.0):
        waited_s = await quiet_after(silent_s)
        assert waited_s - silent_s >= (1 - liveness.PING_SPREAD) * liveness.PING_INTERVAL_S
        assert waited_s - silent_s <= liveness.PING_INTERVAL_S
    assert await quiet_after(1e9) == pytest.approx(liveness.ROUND_TRIP_INTERVAL_S)


class Silent:
    """A fake muxer whose peer never answers; it pings at most until ``answers_at``."""

    is_closed = False
    last_received_at = -1.0

    def __init__(self, answers_at: float = math.inf) -> None:
        self._answers_at = answers_at
        self.num_pings = 0

    async def ping(self) -> float:
        self.num_pings += 1
        await trio.sleep_until(self._answers_at)
        return 0.1


@pytest.mark.parametrize(
    ("late_s", "is_there", "num_pings"), [(0.0, False, 1), (liveness.STARVED_S, False, liveness.MAX_STARVED)]
)
async def test_a_starved_process_accuses_no_peer_at_once(
    late_s: float, is_there: bool, num_pings: int, autojump_clock: MockClock
) -> None:
    muxer, starvation = Silent(), liveness.Starvation()

    async def starve() -> None:
        while True:
            await trio.sleep(liveness.PING_DEADLINE_S / 2)
            starvation.note(trio.current_time(), late_s)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(starve)
        found = await liveness.is_there(muxer, b"peer", Table(), starvation)  # type: ignore[arg-type]
        nursery.cancel_scope.cancel()
    assert (found, muxer.num_pings) == (is_there, num_pings)


async def test_a_peer_that_answers_after_the_starvation_is_there(autojump_clock: MockClock) -> None:
    muxer, starvation = Silent(trio.current_time() + 1.5 * liveness.PING_DEADLINE_S), liveness.Starvation()
    starvation.note(trio.current_time(), liveness.STARVED_S)
    assert await liveness.is_there(muxer, b"peer", Table(), starvation)  # type: ignore[arg-type]
    assert muxer.num_pings == 2


async def test_starvation_is_measured_on_the_clock(autojump_clock: MockClock) -> None:
    starvation = liveness.Starvation()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(starvation.run)
        await trio.sleep(10)
        assert starvation.late_s(0.0) == 0.0
        nursery.cancel_scope.cancel()


async def test_round_trips_are_measured_on_both_sides() -> None:
    async with opened(node()) as (one, _), opened(node()) as (two, _):
        await connect(two, one)
        await eventually(lambda: one.round_trip_s(two.peer_id) and two.round_trip_s(one.peer_id))
