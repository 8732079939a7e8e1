"""Options with which the choice of a token takes long: their client pays, and others keep most of their pace."""

import time
from collections.abc import Sequence

import pytest

from mycelia.node.engine import ipc
from mycelia.node.engine.child.llama.sampler import Sampler
from mycelia.proto.admission.fair_queue import ANSWER_WEIGHT
from mycelia.proto.wire.blocks import pack_tokens
from mycelia.proto.wire.messages import Sampling
from tests.node.engine.child.pooling.test_embedding_shares import RATE, Clock, EndlessLlama
from tests.node.engine.child.pooling.test_embedding_shares import Rig as EmbeddingRig
from tests.node.engine.child.test_loop import ListSampler

STRANGER, OTHER = b"stranger", b"other"
CHOICE_S = 0.005
HEAVY = Sampling(max_tokens=900, temperature=100.0, top_k=0, top_p=0.9999)
LIGHT = Sampling(max_tokens=200)


class TimedSampler(ListSampler):
    """Takes ``CHOICE_S`` per choice unless top-k cuts the vocabulary."""

    def __init__(self, llama: "TimedLlama", is_heavy: bool) -> None:
        super().__init__(llama)
        self._clock, self._is_heavy = llama.clock, is_heavy

    def sample(self, output: int) -> int:
        if self._is_heavy:
            self._clock.now += CHOICE_S
        return 1


class TimedLlama(EndlessLlama):
    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.clock = clock

    def sampler(self, sampling: Sampling, prompt: Sequence[int], resumed: int = 0) -> Sampler:
        self.clock.now += resumed * CHOICE_S
        return TimedSampler(self, not sampling.top_k)


class Rig(EmbeddingRig):
    """The real loop with a model whose choices take time."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock, TimedLlama(clock))
        self.clock = clock

    def submit(self, key: int, client: bytes, sampling: Sampling, resumed: int = 0) -> None:
        self.loop.inbox.put(ipc.Submit(key, pack_tokens([key + 1] * 20), sampling, resumed, None, client))

    def until_ended(self, key: int) -> float:
        """Step until ``key`` has ended; returns the seconds."""
        began = self.clock.now
        self.until(ipc.Ended, key)
        return self.clock.now - began


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    monkeypatch.setattr(time, "thread_time", clock)
    return Rig(clock)


def test_choosing_a_token_is_charged_by_its_time(rig: Rig) -> None:
    rig.submit(1, STRANGER, HEAVY)
    rig.steps(1)
    counter = rig.loop.scheduler.waiting.counter
    before, now = counter(STRANGER), rig.clock.now
    rig.steps(100)
    charged = counter(STRANGER) - before
    assert rig.clock.now - now > 100 * CHOICE_S
    assert charged == pytest.approx(100 * (ANSWER_WEIGHT + CHOICE_S * RATE), rel=0.1)


def test_a_draw_for_each_resumed_token_is_charged(rig: Rig) -> None:
    rig.submit(1, STRANGER, LIGHT, resumed=10)
    rig.submit(2, OTHER, LIGHT)
    rig.steps(1)
    counter = rig.loop.scheduler.waiting.counter
    assert counter(STRANGER) - counter(OTHER) > 10 * CHOICE_S * RATE * 0.9


def test_an_answer_beside_seven_that_choose_slowly_keeps_most_of_its_pace(rig: Rig) -> None:
    rig.submit(0, OTHER, LIGHT)
    alone_s = rig.until_ended(0)
    for key in range(1, 8):
        rig.submit(key, STRANGER, HEAVY)
    rig.steps(30)
    rig.submit(8, OTHER, LIGHT)
    assert rig.until_ended(8) <= alone_s / 0.7
