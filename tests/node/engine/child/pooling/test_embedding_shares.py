"""Embeddings beside answers: they are charged in the same unit, and wait for clients that received less service."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mycelia.node.engine import ipc
from mycelia.node.engine.child.accounts import REFUSAL_SERVICE
from mycelia.node.engine.child.job import Limits
from mycelia.node.engine.child.llama.batch import BatchRow
from mycelia.node.engine.child.llama.sampler import Sampler
from mycelia.node.engine.child.loop import StepLoop
from mycelia.node.engine.child.pooling.embedding_queue import EmbeddingQueue
from mycelia.proto.wire.blocks import pack_tokens
from mycelia.proto.wire.messages import Sampling
from tests.node.engine.child.test_loop import VOCAB, FakeGrammar, Inbox, ListLlama, ListSampler

STRANGER, OTHER, OWNER = b"stranger", b"other", b""
STEP_TOKENS = 64
TEXT = [7] * 1_600
RATE = 280.0


class EndlessSampler(ListSampler):
    """Never chooses the end."""

    def sample(self, output: int) -> int:
        return 1


class Clock:
    """A clock that only the model's work advances."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class EndlessLlama(ListLlama):
    """Computes ``RATE`` tokens a second."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def decode(self, rows: Sequence[BatchRow]) -> tuple[int, list[int]]:
        self._clock.now += sum(len(row.tokens) for row in rows) / RATE
        return super().decode(rows)

    def sampler(self, sampling: Sampling, prompt: Sequence[int], resumed: int = 0) -> Sampler:
        return EndlessSampler(self)


class StepEmbedder:
    """Computes as many tokens a step as the real embedder."""

    max_tokens, step_tokens = 8_192, STEP_TOKENS

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.num_steps = 0
        self._left = 0

    def begin(self, tokens: list[int]) -> None:
        self._left = len(tokens)

    def step(self) -> NDArray[np.float32] | None:
        self.num_steps += 1
        self._clock.now += STEP_TOKENS / RATE
        self._left -= STEP_TOKENS
        return None if self._left > 0 else np.ones(2, np.float32)

    def close(self) -> None: ...


class Rig:
    """The real loop with a model made of lists."""

    def __init__(self, clock: Clock, llama: ListLlama | None = None) -> None:
        limits = Limits(num_cells=8_000, context_tokens=8_000, num_vocab=VOCAB, num_sequences=32, slots=8)
        self.embedder, self.llama, self.replies = StepEmbedder(clock), llama or EndlessLlama(clock), Inbox()
        embeddings = EmbeddingQueue(self.embedder, 64, VOCAB)
        self.loop = StepLoop(self.llama, limits, self.replies, True, FakeGrammar, embeddings)

    def embed(self, key: int, client: bytes, *texts: list[int], subnet: str = "") -> None:
        self.loop.inbox.put(ipc.Embed(key, [pack_tokens(text) for text in texts], client, subnet))

    def ask(
        self, key: int, client: bytes, num_prompt: int = 60, max_tokens: int = 40, house: str = "", grammar: str = ""
    ) -> None:
        sampling = Sampling(max_tokens=max_tokens, grammar=grammar)
        prompt = pack_tokens([key % (VOCAB - 2) + 1] * num_prompt)
        self.loop.inbox.put(ipc.Submit(key, prompt, sampling, 0, None, client, house))

    def steps(self, number: int) -> None:
        for _ in range(number):
            self.loop.step()

    def until(self, kind: type[Any], key: int) -> int:
        """Number of text steps until a message of this kind for ``key``."""
        before = self.embedder.num_steps
        for _ in range(2_000):
            if any(isinstance(message, kind) and message.key == key for message in self.replies.messages):
                return self.embedder.num_steps - before
            self.loop.step()
        raise AssertionError(f"no {kind.__name__} for {key}")


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return Rig(clock)


def test_an_answer_beside_many_texts_of_another_client_is_delayed_by_its_fair_share_of_them(rig: Rig) -> None:
    for key in (1, 2):
        rig.embed(key, STRANGER, *[TEXT] * 8)
    rig.steps(30)
    assert rig.embedder.num_steps == 30, "nothing else is to be done"
    rig.ask(3, OTHER)
    assert rig.until(ipc.Generated, 3) <= 1
    assert rig.until(ipc.Ended, 3) <= (60 + 2 * 40) // STEP_TOKENS
    before = rig.embedder.num_steps
    rig.steps(10)
    assert rig.embedder.num_steps == before + 10


def test_texts_of_a_client_that_wants_much_take_little_of_the_time_of_one_that_wants_little(rig: Rig) -> None:
    rig.embed(1, STRANGER, *[TEXT] * 16)
    rig.steps(30)
    rig.ask(2, OTHER, 60, 400)
    assert rig.until(ipc.Ended, 2) <= 2


def test_texts_are_served_beside_answers_that_never_end(rig: Rig) -> None:
    rig.ask(1, OTHER, 60, 7_000)
    rig.steps(20)
    rig.embed(2, STRANGER, TEXT)
    num_before = len(rig.llama.calls)
    rig.until(ipc.Embedded, 2)
    num_tokens = len(rig.llama.calls) - num_before
    assert 0.8 * len(TEXT) <= 2 * num_tokens <= 1.2 * len(TEXT), "both receive as much"


def test_a_client_that_embedded_alone_is_not_behind_those_that_come_later(rig: Rig) -> None:
    """Nor are the others behind it: each client begins at the level of the others."""
    rig.embed(1, STRANGER, *[TEXT] * 8)
    rig.steps(150)
    rig.ask(2, OTHER, 60, 5_000)
    rig.steps(10)
    before = rig.embedder.num_steps
    rig.steps(200)
    assert 200 * 2 / STEP_TOKENS * 0.7 <= rig.embedder.num_steps - before <= 200 * 2 / STEP_TOKENS * 1.3


def test_a_client_that_asked_nothing_for_long_has_saved_nothing_up(rig: Rig) -> None:
    rig.embed(1, STRANGER, [7])
    rig.until(ipc.Embedded, 1)
    rig.ask(2, OTHER, 3_000, 1_000)
    rig.until(ipc.Ended, 2)
    rig.ask(3, OTHER, 60, 200)
    rig.steps(3)
    rig.embed(4, STRANGER, *[TEXT] * 8)
    assert rig.until(ipc.Ended, 3) <= 2 * 200 / STEP_TOKENS + 2


def test_sixty_keys_of_one_subnet_embed_in_one_share(rig: Rig) -> None:
    for key in range(30):
        rig.embed(key, b"%d" % key, TEXT, subnet="203.0.113.0/24")
    rig.steps(20)
    rig.ask(100, OTHER, house="198.51.100.0/24")
    assert rig.until(ipc.Ended, 100) <= (60 + 2 * 40) // STEP_TOKENS


def test_the_owners_answers_and_texts_come_first(rig: Rig) -> None:
    rig.embed(1, STRANGER, *[TEXT] * 8)
    rig.steps(20)
    rig.ask(2, OWNER, 60, 300)
    assert rig.until(ipc.Ended, 2) <= 1
    rig.ask(3, OTHER, 60, 300)
    rig.steps(3)
    rig.embed(4, OWNER, [7] * STEP_TOKENS * 4)
    rig.until(ipc.Embedded, 4)
    assert not any(isinstance(m, ipc.Ended) and m.key == 3 for m in rig.replies.messages)


def test_a_text_under_way_does_not_hold_up_another_client_that_is_behind(rig: Rig) -> None:
    rig.embed(1, STRANGER, TEXT, TEXT)
    rig.steps(3)
    rig.ask(2, OTHER, 60, 3_000)
    rig.steps(3)
    rig.embed(3, b"third", [7])
    rig.embed(4, OTHER, [7])
    assert rig.until(ipc.Embedded, 3) <= len(TEXT) // STEP_TOKENS + 2
    assert not any(isinstance(m, ipc.Ended) and m.key == 2 for m in rig.replies.messages)


def test_prompts_of_its_own_that_are_not_computed_yet_gain_a_client_no_texts(rig: Rig) -> None:
    for key in (1, 2):
        rig.ask(key, STRANGER, 2_000, 1)
    rig.steps(2)
    rig.embed(3, STRANGER, *[TEXT] * 8)
    rig.ask(4, OTHER)
    assert rig.until(ipc.Ended, 4) <= 1 + (60 + 2 * 40) // STEP_TOKENS


@pytest.mark.parametrize("texts", [[], [[VOCAB]]])
def test_what_is_wrong_with_texts_costs_their_client_too(rig: Rig, texts: list[list[int]]) -> None:
    counter = rig.loop.scheduler.waiting.counter
    before = counter(STRANGER)
    rig.embed(1, STRANGER, *texts)
    rig.steps(1)
    assert counter(STRANGER) == before + REFUSAL_SERVICE


def test_texts_wait_while_the_grammar_of_another_client_is_asked(rig: Rig) -> None:
    """An answer has no row while its grammar is asked, but texts do not delay it."""
    rig.embed(1, STRANGER, *[TEXT] * 8)
    rig.steps(5)
    rig.ask(2, OTHER, 60, 10, grammar=" ".join(map(str, range(VOCAB))))
    assert rig.until(ipc.Ended, 2) <= 1 + (60 + 1_000 + 2 * 10) // STEP_TOKENS
