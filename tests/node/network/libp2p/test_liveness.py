"""Pings on connections: peers that send bytes are not pinged."""

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


async def test_round_trips_are_measured_on_both_sides() -> None:
    async with opened(node()) as (one, _), opened(node()) as (two, _):
        await connect(two, one)
        await eventually(lambda: one.round_trip_s(two.peer_id) and two.round_trip_s(one.peer_id))
