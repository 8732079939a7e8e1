"""Recurrent and hybrid models of random weights in the step loop: prompts begin at saved states, answers stay right."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import trio

from mycelia.node.engine import ipc
from mycelia.node.engine.child.job import Limits
from mycelia.node.engine.child.llama.batch import BatchRow
from mycelia.node.engine.child.llama.exact import ExactStateLlama
from mycelia.node.engine.child.llama.llama import ABORTED, OK, Llama
from mycelia.node.engine.child.llama.sampler import Sampler
from mycelia.node.engine.child.llama.states import StateLlama
from mycelia.node.engine.child.loop import StepLoop
from mycelia.node.engine.child.tier.tier_store import TierStore
from mycelia.node.engine.engine import FIRST_EDGE_ID, EngineRequest
from mycelia.node.engine.process import open_engine
from mycelia.node.engine.settings import EngineSettings
from mycelia.proto.cache.checkpoints import EVERY_TOKENS
from mycelia.proto.cache.sharing import Owner
from mycelia.proto.cache.tier import MIB, Tier
from mycelia.proto.wire.blocks import STRIDE, pack_tokens, unpack_tokens
from mycelia.proto.wire.messages import Sampling
from tests.node.engine.child.llama.test_exact import GreedySampler, Logits, Prompt, no_grammar
from tests.node.engine.child.test_loop import NO_EMBEDDINGS, Inbox
from tests.node.engine.child.tiny_models import KINDS, NUM_VOCAB, write_model
from tests.node.engine.test_process import answer, done

CELLS, SLOTS, SEQUENCES, ANSWER = 2048, 4, 14, 3
ME = Owner(b"me")
CLOSE = 0.05
"""Part of the largest logit by which logits may differ: from other kernels, not from other tokens before them."""


class Recorder(StateLlama):
    """A mixin for the ``StateLlama`` under test."""

    def __init__(self, path: Path, num_cells: int = CELLS) -> None:
        self.seen: dict[Prompt, Logits] = {}
        super().__init__(path, num_cells=num_cells, num_sequences=SEQUENCES, num_threads=1, batch_tokens=1024)

    def sampler(self, sampling: Sampling, prompt: Sequence[int], resumed: int = 0) -> Sampler:
        seen = self.seen[tuple(prompt)] = []
        return GreedySampler(self, seen)

    def ends_generation(self, token: int) -> bool:
        return False


class RecordedStateLlama(Recorder, StateLlama):
    pass


class RecordedExactLlama(Recorder, ExactStateLlama):
    pass


def prompt_of(rng: random.Random, count: int) -> Prompt:
    return tuple(rng.randrange(3, NUM_VOCAB) for _ in range(count))


@dataclass
class Engine:
    """The step loop over one model."""

    llama: Recorder
    ram_bytes: int = 64 * MIB
    slots: int = SLOTS
    num_cells: int = CELLS
    replies: Inbox = field(default_factory=Inbox)
    cached: dict[int, int] = field(default_factory=dict)
    """Key -> cached tokens of finished requests."""
    reported: dict[int, Prompt] = field(default_factory=dict)
    """Id -> tokens of what others may know to be restorable."""

    def __post_init__(self) -> None:
        self.llama.clear_all()
        limits = Limits(
            num_cells=self.num_cells,
            context_tokens=min(self.llama.context_tokens, self.num_cells),
            num_vocab=self.llama.num_vocab,
            num_sequences=self.llama.spare,
            slots=self.slots,
            batch_tokens=512,
            state_grid=self.llama.state_grid,
            has_cells=self.llama.has_cells,
            reuse=self.llama.reuse and self.ram_bytes > 0,
        )
        self.tiers = TierStore(Tier(self.ram_bytes, 0, True)) if self.ram_bytes else None
        self.loop = StepLoop(self.llama, limits, self.replies, True, no_grammar, NO_EMBEDDINGS, self.tiers)
        self.num_asked = 0

    def ask(self, prompt: Prompt, max_tokens: int = ANSWER, owner: Owner = ME) -> int:
        self.num_asked += 1
        submit = ipc.Submit(
            self.num_asked,
            pack_tokens(prompt),
            Sampling(max_tokens=max_tokens),
            0,
            tag=owner.tag,
            owner_subnet=owner.subnet,
        )
        self.loop.inbox.put(submit)
        return self.num_asked

    def step(self) -> None:
        self.loop.step()
        self._take()

    def _take(self) -> None:
        for message in self.replies.messages:
            assert not isinstance(message, ipc.Refused), message
            if isinstance(message, ipc.Ended):
                self.cached[message.key] = message.usage.cached_tokens
            if isinstance(message, ipc.CacheDelta):
                self._note(message)
        self.replies.messages.clear()

    def look(self) -> None:
        """Let the second tier check what it reports."""
        assert self.tiers is not None
        for _ in range(100):
            self.tiers.poll()
        self.loop.jobs.reports.cache()
        self._take()

    def _note(self, change: ipc.CacheDelta) -> None:
        for leaf in change.evicted:
            self.reported.pop(leaf, None)
        for stored in change.stored:
            if stored.leaf >= FIRST_EDGE_ID:
                self.reported[stored.leaf] = tuple(unpack_tokens(stored.tokens))

    def answer(self, *prompts: Prompt, owner: Owner = ME) -> list[int]:
        """Answer all prompts at once; returns their cached tokens."""
        keys = [self.ask(prompt, owner=owner) for prompt in prompts]
        while not self.cached.keys() >= set(keys):
            self.step()
        return [self.cached[key] for key in keys]

    def check(self, *prompts: Prompt) -> None:
        """Raise AssertionError if a prompt's answer differs from the answer in an empty cache."""
        seen = {prompt: list(self.llama.seen[prompt]) for prompt in prompts}
        for prompt in prompts:
            expected = alone(self.llama, prompt, len(seen[prompt]))
            for logits, wanted in zip(seen[prompt], expected, strict=True):
                got, right = np.frombuffer(logits, np.float32), np.frombuffer(wanted, np.float32)
                assert np.abs(got - right).max() < CLOSE * np.abs(right).max()
                if got.argmax() != right.argmax():
                    break  # (a tie: from there on the answers differ)


def alone(llama: Llama, prompt: Prompt, count: int) -> Logits:
    """The logits of the answer's tokens, in an empty cache."""
    llama.clear_all()
    seen: Logits = []
    choose, start, tokens = GreedySampler(llama, seen), 0, list(prompt)
    if llama.state_grid > 1 and len(tokens) % llama.state_grid == 1 < len(tokens):
        assert llama.decode([BatchRow(0, 0, tokens[:-1], False)])[0] == OK
        start, tokens = len(tokens) - 1, tokens[-1:]
    for _ in range(count):
        result, outputs = llama.decode([BatchRow(0, start, tokens, True)])
        assert result == OK
        start, tokens = start + len(tokens), [choose.sample(outputs[0])]
    return seen


@pytest.fixture(scope="module", params=KINDS)
def llama(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RecordedStateLlama:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    return RecordedStateLlama(write_model(path, request.param))


def test_the_same_prompt_again_begins_at_its_end(llama: RecordedStateLlama) -> None:
    rng, engine = random.Random(1), Engine(llama)
    prompt = prompt_of(rng, 150)
    assert engine.answer(prompt) == [0]
    assert engine.answer(prompt) == [149]
    engine.check(prompt)


def test_prompts_begin_where_two_others_were_seen_to_branch(llama: RecordedStateLlama) -> None:
    rng, engine = random.Random(2), Engine(llama)
    shared = prompt_of(rng, 100)
    prompts = [shared + prompt_of(rng, 30) for _ in range(4)]
    assert engine.answer(prompts[0]) == [0]
    assert engine.answer(prompts[1]) == [0], "nobody knew the place before"
    assert engine.answer(prompts[2], prompts[3]) == [100, 100]
    engine.check(*prompts)


def test_saved_states_have_half_the_size(llama: RecordedStateLlama) -> None:
    assert 0.49 < llama.saved_state_bytes / llama.state_bytes < 0.55, "half, and what is no number"
    llama.clear_all()
    assert llama.decode([BatchRow(0, 0, list(prompt_of(random.Random(3), 20)), True)])[0] == OK
    state = llama.save_state(0)
    assert state is not None and len(state) == llama.saved_state_bytes
    assert llama.copy_prefix(0, 1, 20) and llama.restore_state(state, 1, 20)
    again = llama.save_state(1)
    assert again is not None and again[8:] == state[8:], "except the sequence's id; saved again, it loses nothing more"
    llama.clear_all()


@pytest.fixture(scope="module", params=KINDS)
def exact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RecordedExactLlama:
    path = tmp_path_factory.mktemp("exact") / "tiny.gguf"
    return RecordedExactLlama(write_model(path, request.param), num_cells=512)


@pytest.mark.parametrize("exact", [False, True])
async def test_an_engine_begins_at_states_also_after_a_restart(exact: bool, tmp_path: Path) -> None:
    model = write_model(tmp_path / "tiny.gguf", "qwen35")
    settings = EngineSettings(
        model, threads=1, cells=512, slots=2, sequences=9, check=True, cache_dir=tmp_path / "cache", exact=exact
    )
    rng = random.Random(6)
    first = prompt_of(rng, 140)
    second = first[:120] + prompt_of(rng, 20)
    cached = []
    with trio.fail_after(60):
        for _ in range(2):
            async with open_engine(settings) as running:
                assert running.info.reuse == "checkpoints"
                for prompt in (first, second, second):
                    items = await answer(running, EngineRequest(b"r" * 16, prompt, Sampling(max_tokens=6)))
                    cached.append(done(items).usage.cached_tokens)
    assert cached == ([0, 0, 128, 128, 128, 128] if exact else [0, 0, 139, 139, 139, 139])


def test_reuse_never_changes_a_bit_in_exact_mode(exact: RecordedExactLlama) -> None:
    """Prompts share prefixes or continue answers, at once, in a cache that holds a part of them: they wait for each
    other, stop for each other and begin at states."""
    rng = random.Random(5)
    assert exact.saved_state_bytes == exact.state_bytes
    prompts: list[Prompt] = []
    for _ in range(24):
        base = rng.choice(prompts)[: rng.randint(1, 200)] if prompts and rng.random() < 0.8 else ()
        prompts.append(base + prompt_of(rng, rng.randint(1, 100)))
    engine = Engine(exact, ram_bytes=MIB, num_cells=exact.num_cells)
    cached = [length for first in range(0, 24, 6) for length in engine.answer(*prompts[first : first + 6])]
    assert sum(length > 0 for length in cached) >= 8
    assert all(length % 32 == 0 for length in cached)
    for prompt in prompts:
        assert exact.seen[prompt] == alone(exact, prompt, len(exact.seen[prompt]))


def test_what_is_reported_can_be_restored(llama: RecordedStateLlama) -> None:
    """In a cache that holds a part of the prompts."""
    rng = random.Random(8)
    llama.seen.clear()
    engine = Engine(llama, ram_bytes=20 * (llama.saved_state_bytes + 150 * llama.cell_bytes), num_cells=400)
    num_reused = 0
    for _ in range(60):
        base = rng.choice(list(llama.seen))[: rng.randint(1, 150)] if llama.seen and rng.random() < 0.7 else ()
        engine.answer(base + prompt_of(rng, rng.randint(1, 60)))
        engine.look()
        if engine.reported:
            known = rng.choice(list(engine.reported.values()))
            (cached,) = engine.answer(known + prompt_of(rng, 1))
            assert cached >= len(known)
            num_reused += 1
    assert num_reused > 30


def test_prompts_wait_for_a_state_that_another_computes(llama: RecordedStateLlama) -> None:
    rng, engine = random.Random(9), Engine(llama)
    shared = prompt_of(rng, 300)
    prompts = [shared + prompt_of(rng, 20) for _ in range(SLOTS)]
    assert sorted(engine.answer(*prompts)) == [0, *[300] * (SLOTS - 1)]
    engine.check(*prompts)


def test_a_long_prompt_is_reused_in_steps(llama: RecordedStateLlama) -> None:
    rng, engine = random.Random(10), Engine(llama)
    shared = prompt_of(rng, EVERY_TOKENS + 200)
    first, second = shared + prompt_of(rng, 10), shared[:-100] + prompt_of(rng, 10)
    assert engine.answer(first) == [0] and engine.answer(second) == [EVERY_TOKENS]
    engine.check(first, second)


def test_a_conversation_goes_on_at_the_end_of_the_answer(llama: RecordedStateLlama) -> None:
    rng, engine = random.Random(11), Engine(llama)
    prompt = prompt_of(rng, 60)
    key = engine.ask(prompt, max_tokens=24)
    while key not in engine.cached:
        engine.step()
    answer = tuple(int(np.frombuffer(logits, np.float32).argmax()) for logits in llama.seen[prompt])
    more = (*prompt, *answer, *prompt_of(rng, 20))
    assert engine.answer(more) == [60 + 24 - 1], "all but the last token, which was never computed"
    engine.check(more)


def test_states_are_shared_as_cells_are(llama: RecordedStateLlama) -> None:
    """A prefix opens when two subnets continue it differently; until then other owners find nothing."""
    rng, engine = random.Random(12), Engine(llama)
    shared = prompt_of(rng, 3 * STRIDE)
    owners = [Owner(bytes([i]) * 16, f"subnet {i}") for i in range(4)]
    prompts = [shared + prompt_of(rng, STRIDE + 10) for _ in owners]
    found = [engine.answer(prompt, owner=owner) for prompt, owner in zip(prompts, owners, strict=True)]
    # Two compute it; the third one leaves it where it is open, so there the fourth one begins.
    assert found == [[0], [0], [0], [3 * STRIDE]]
    assert engine.answer(prompts[0], owner=owners[1]) == [3 * STRIDE], "the rest is the first one's"
    assert engine.answer(prompts[0], owner=owners[0]) == [len(prompts[0]) - 1]
    engine.check(*prompts)


def test_a_cancelled_prefill_leaves_a_state_that_is_right(llama: RecordedStateLlama) -> None:
    rng, engine = random.Random(13), Engine(llama)
    prompt = prompt_of(rng, 700)
    key = engine.ask(prompt)
    for _ in range(3):
        engine.step()
    (job,) = engine.loop.scheduler.running
    computed = job.num_computed
    assert 0 < computed < 700
    engine.loop.inbox.put(ipc.Cancel(key))
    engine.step()
    assert engine.answer(prompt) == [computed]
    engine.check(prompt)


def test_an_aborted_step_loses_all_states(llama: RecordedStateLlama, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing aborts steps of such models; if one was, no answer goes on from a state that is half new."""
    rng, engine = random.Random(14), Engine(llama)
    prompt = prompt_of(rng, 100)
    with monkeypatch.context() as patch:
        patch.setattr(llama, "decode", lambda rows: (ABORTED, [-1] * len(rows)))
        engine.ask(prompt)
        engine.loop.step()
        (refused,) = [message for message in engine.replies.messages if isinstance(message, ipc.Refused)]
        assert refused.code == "internal" and refused.retryable
    engine.replies.messages.clear()
    assert engine.answer(prompt) == [0]
    engine.check(prompt)


def test_stopped_answers_go_on(llama: RecordedStateLlama) -> None:
    """Cells for one and a half answers: requests stop for each other and begin again at their states."""
    rng = random.Random(15)
    engine = Engine(llama, num_cells=400)
    prompts = [prompt_of(rng, 40) for _ in range(3)]
    keys = [engine.ask(prompt, max_tokens=200) for prompt in prompts]
    starts = 0
    while not engine.cached.keys() >= set(keys):
        engine.step()
        starts = max([starts, *(job.num_starts for job in engine.loop.scheduler.running)])
    assert starts > 1
    engine.check(*prompts)


def test_stopped_answers_go_on_bit_for_bit_in_exact_mode(exact: RecordedExactLlama) -> None:
    """Their tokens are computed again one by one, as they were."""
    rng, engine = random.Random(16), Engine(exact, num_cells=400)
    prompts = [prompt_of(rng, 70) for _ in range(3)]
    keys = [engine.ask(prompt, max_tokens=200) for prompt in prompts]
    starts = 0
    while not engine.cached.keys() >= set(keys):
        engine.step()
        starts = max([starts, *(job.num_starts for job in engine.loop.scheduler.running)])
    assert starts > 1
    for prompt in prompts:
        assert exact.seen[prompt] == alone(exact, prompt, len(exact.seen[prompt]))
