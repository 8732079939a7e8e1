"""A bounded line to the internet."""

import trio
import trio.testing

from mycelia.node.network.line import BURST_S, Line


async def test_a_line_counts_and_does_not_wait_without_a_bound(autojump_clock: trio.testing.MockClock) -> None:
    line, began = Line(), trio.current_time()
    await line.sent(10**9)
    await line.received(5)
    assert (line.sent_bytes, line.received_bytes, trio.current_time()) == (10**9, 5, began)


async def test_bytes_pass_at_the_bounded_rate_each_way(autojump_clock: trio.testing.MockClock) -> None:
    line, began = Line(1000.0), trio.current_time()
    for _ in range(10):
        await line.sent(500)
    sent_s = trio.current_time() - began
    assert abs(sent_s - (5 - BURST_S)) < 1e-6
    await line.received(100)
    assert trio.current_time() - began == sent_s, "the other way is free"
    await trio.sleep(100)
    began = trio.current_time()
    await line.sent(1000)
    assert abs(trio.current_time() - began - (1 - BURST_S)) < 1e-6, "a rest is not saved up"
