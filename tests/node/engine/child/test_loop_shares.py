"""The step loop with several clients: answers that stop for others and go on, and slow grammars."""

import threading
import time
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from mycelia.node.engine import ipc
from mycelia.node.engine.child.grammar.guidance import TOO_COSTLY
from mycelia.node.engine.child.grammar.pool import (
    ANSWER_BURST_S,
    COMPILE_BURST_S,
    MAX_COMPILING,
    TOKEN_S,
    GrammarEnded,
    GrammarPool,
    GrammarReady,
)
from mycelia.node.engine.child.llama.sampler import Sampler
from mycelia.node.engine.child.loop import MAX_REST_S, StepLoop, rest_s
from mycelia.proto.wire.blocks import pack_tokens
from mycelia.proto.wire.messages import Sampling
from tests.node.engine.child.test_loop import NO_EMBEDDINGS, FakeGrammar, Inbox, ListLlama, ListSampler, Rig

STRANGER, OTHER = b"stranger", b"other"


class SlowGrammar(FakeGrammar):
    """A grammar whose masks after the first one take ``token_s`` of CPU time, and wait for a release of ``let``."""

    let: ClassVar[threading.Semaphore] = threading.Semaphore(0)
    token_s: ClassVar[float] = 0.0
    is_begun = False

    def allowed(self) -> NDArray[np.bool_]:
        if self.is_begun:
            self.let.acquire()
            self.cpu_s += self.token_s
        self.is_begun = True
        return super().allowed()


class SeenSampler(ListSampler):
    """Chooses by the number of its choices, so an answer that lost its sampler's state would differ."""

    def __init__(self, llama: ListLlama) -> None:
        super().__init__(llama)
        self._num_chosen = 0

    def sample(self, output: int) -> int:
        self._num_chosen += 1
        return 1 + self._num_chosen % 40


class SeenLlama(ListLlama):
    def sampler(self, sampling: Sampling, prompt: Sequence[int], resumed: int = 0) -> Sampler:
        return SeenSampler(self)


class Clients(Rig):
    """A rig with clients."""

    def __init__(self, llama: ListLlama | None = None) -> None:
        super().__init__(cells=400)
        limits = self.loop.scheduler.limits
        self.llama, self.replies = llama or ListLlama(), Inbox()
        self.loop = StepLoop(self.llama, limits, self.replies, True, SlowGrammar, NO_EMBEDDINGS)

    def ask(
        self,
        key: int,
        client: bytes,
        max_tokens: int = 3,
        grammar: str = "",
        prompt: Sequence[int] = (),
        house: str = "",
    ) -> None:
        sampling = Sampling(max_tokens=max_tokens, grammar=grammar)
        packed = pack_tokens(prompt or [key])
        self.loop.inbox.put(ipc.Submit(key, packed, sampling, 0, None, client))

    def step_until_told(self, key: int, num_tokens: int) -> None:
        for _ in range(1_000):
            if len(self.tokens(key)) >= num_tokens:
                return
            self.loop.step()
        raise AssertionError(f"{key} has {self.tokens(key)}")


def test_an_answer_that_stops_for_another_client_loses_and_repeats_nothing() -> None:
    rig = Clients(SeenLlama())
    for key in range(4):
        rig.ask(key, STRANGER, 40, prompt=[key + 1] * 20)
    for _ in range(6):
        rig.loop.step()
    rig.ask(9, OTHER, 10)
    assert isinstance(rig.run(9), ipc.Ended)
    assert any(job.num_starts == 1 for job in rig.loop.scheduler.waiting), "one gave way"
    for key in range(4):
        ended = rig.run(key)
        assert isinstance(ended, ipc.Ended) and ended.reason == "length" and ended.usage.completion_tokens == 40
        assert rig.tokens(key) == [1 + number % 40 for number in range(1, 41)]
        assert sum(isinstance(m, ipc.Started) and m.key == key for m in rig.replies.messages) == 1


def test_what_was_stopped_can_be_cancelled() -> None:
    rig = Clients()
    for key in range(5):
        rig.ask(key, STRANGER, 40, prompt=[key + 1] * 20)
    for _ in range(6):
        rig.loop.step()
    rig.ask(9, OTHER, 100)
    rig.step_until_told(9, 1)
    (stopped,) = [job for job in rig.loop.scheduler.waiting if job.num_starts]
    rig.loop.inbox.put(ipc.Cancel(stopped.key))
    ended = rig.run(stopped.key)
    assert isinstance(ended, ipc.Ended) and ended.reason == "cancelled" and ended.usage.completion_tokens > 0
    assert isinstance(rig.run(9), ipc.Ended)


def test_others_are_answered_while_a_grammar_thinks() -> None:
    SlowGrammar.token_s = 0.0
    rig = Clients()
    rig.ask(1, STRANGER, 9, grammar="2 3 4 5 6 7 8 9 10")
    while 1 not in rig.loop.jobs.choosing:
        rig.loop.step()
    rig.ask(2, OTHER, 30)
    assert isinstance(rig.run(2), ipc.Ended) and len(rig.tokens(2)) == 30
    assert rig.tokens(1) == [2]
    for _ in range(8):
        SlowGrammar.let.release()
    assert isinstance(rig.run(1), ipc.Ended) and rig.tokens(1) == [2, 3, 4, 5, 6, 7, 8, 9, 10]


def test_a_request_whose_grammar_thinks_can_be_cancelled() -> None:
    rig = Clients()
    rig.ask(1, STRANGER, 9, grammar="2 3")
    while 1 not in rig.loop.jobs.choosing:
        rig.loop.step()
    rig.loop.inbox.put(ipc.Cancel(1))
    ended = rig.run(1)
    assert isinstance(ended, ipc.Ended) and ended.reason == "cancelled"
    SlowGrammar.let.release()
    rig.ask(2, STRANGER, 3)
    assert isinstance(rig.run(2), ipc.Ended) and not rig.loop.jobs.choosing


def test_a_grammar_that_costs_too_much_a_token_ends_its_request() -> None:
    SlowGrammar.token_s = 0.1
    rig = Clients()
    for _ in range(100):
        SlowGrammar.let.release()
    counter = rig.loop.scheduler.waiting.counter
    rig.ask(1, STRANGER, 40, grammar=" ".join(map(str, range(49))))
    refused = rig.run(1)
    assert isinstance(refused, ipc.Refused) and (refused.code, refused.message) == ("bad_request", TOO_COSTLY)
    most = ANSWER_BURST_S / (SlowGrammar.token_s - TOKEN_S)
    assert most - 2 <= len(rig.tokens(1)) <= most + 2
    assert counter(STRANGER) > 100, "and it counts as service"
    while SlowGrammar.let.acquire(blocking=False):
        pass


class Compiling:
    """A pool with grammars that the test ends."""

    def __init__(self) -> None:
        self.events: list[object] = []
        self.opened: list[FakeGrammar] = []
        self.pool = GrammarPool(self.open, 8, 64, self.events.append)
        self.keys = iter(range(10_000))

    def open(self, sampling: Sampling, tokens: Sequence[int]) -> FakeGrammar:
        self.opened.append(FakeGrammar(sampling, tokens))
        return self.opened[-1]

    def add(self, client: bytes, subnet: str = "") -> int:
        key = next(self.keys)
        message = ipc.Submit(key, b"", Sampling(max_tokens=1, grammar="endless"), 0, None, client, subnet)
        self.pool.add(message, 0.0)
        return key

    def compiled(self, key: int, cpu_s: float, now: float) -> None:
        """Behave as if the process had compiled the grammar, and drop the request."""
        self.pool.ready(GrammarReady(key, "nonsense", cpu_s), now)
        self.pool.drop(key)
        self.pool.ended(GrammarEnded(key), now)


def test_few_grammars_are_compiled_at_once_and_one_of_a_subnet() -> None:
    rig = Compiling()
    keys = [rig.add(b"%d" % number, "203.0.113.0/24") for number in range(24)]
    assert len(rig.opened) == 1
    other = rig.add(OTHER)
    assert len(rig.opened) == MAX_COMPILING == 2, "that of another subnet does not wait for them"
    rig.compiled(other, 0.1, 1.0)
    assert len(rig.opened) == 2
    rig.compiled(keys[0], 0.1, 2.0)
    assert len(rig.opened) == 3


def test_a_subnet_that_spent_its_time_for_compiling_waits_for_more() -> None:
    rig = Compiling()
    keys = [rig.add(STRANGER) for _ in range(4)]
    rig.compiled(keys[0], COMPILE_BURST_S, 0.0)
    assert len(rig.opened) == 1
    rig.add(OTHER)
    assert len(rig.opened) == 2
    rig.pool.look(5.0)
    assert len(rig.opened) == 2
    rig.pool.look(15.0)
    assert len(rig.opened) == 3


def test_only_steps_with_prompts_of_others_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    rested: list[float] = []
    monkeypatch.setattr(time, "sleep", rested.append)
    rig = Clients()
    limits = rig.loop.scheduler.limits
    rig.loop = StepLoop(rig.llama, limits, rig.replies, True, SlowGrammar, NO_EMBEDDINGS, share=0.5)
    rig.ask(1, b"", 3)
    rig.run(1)
    assert rested == []
    rig.ask(2, STRANGER, 3)
    rig.run(2)
    assert len(rested) >= 3
    assert (rest_s(1.0, 0.25), rest_s(1.0, 1.0), rest_s(9.0, 0.05)) == (3.0, 0.0, MAX_REST_S)
