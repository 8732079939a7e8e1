"""The conditions for killing a running engine process, and its replacement."""

import os
import signal

import pytest
import trio

from mycelia.node.engine.watchdog import DECODE_S, SILENCE_S, Pulse, Watchdog
from tests.node.engine.test_process import answer, chat, done, engine, request


def test_silence_is_counted_from_the_oldest_question() -> None:
    watchdog = Watchdog()
    watchdog.asked(100.0)
    watchdog.asked(100.0 + SILENCE_S - 1)
    assert watchdog.complaint(100.0 + SILENCE_S - 1) is None
    assert "not answered" in str(watchdog.complaint(100.0 + SILENCE_S))
    watchdog.answered(Pulse(is_decoding=False, busy_s=0.0))
    assert watchdog.complaint(200.0) is None


@pytest.mark.parametrize(
    ("pulse", "is_hung"),
    [
        (Pulse(is_decoding=True, busy_s=SILENCE_S), False),
        (Pulse(is_decoding=True, busy_s=DECODE_S), True),
        (Pulse(is_decoding=False, busy_s=SILENCE_S - 1), False),
        (Pulse(is_decoding=False, busy_s=SILENCE_S), True),
    ],
)
def test_a_decode_call_may_take_long_and_nothing_else(pulse: Pulse, is_hung: bool) -> None:
    watchdog = Watchdog()
    watchdog.asked(1.0)
    watchdog.answered(pulse)
    assert (watchdog.complaint(2.0) is not None) == is_hung


async def test_a_stopped_child_is_replaced() -> None:
    async with engine() as running:
        prompt = await chat(running, "Hello.")
        assert running.pid is not None
        os.kill(running.pid, signal.SIGSTOP)
        with trio.fail_after(120):
            change = await running.cache_changes()
            while not change.reset:
                change = await running.cache_changes()
            assert await chat(running, "Hello.") == prompt
            assert done(await answer(running, request(prompt, 2))).usage.cached_tokens == 0
        assert running.num_restarts == 1
