"""A model with sliding-window attention: in most layers Gemma 3 attends to the last 512 tokens, in others to all.

llama.cpp silently drops the cells that left the window unless an option keeps them, and a reused prefix without all
cells gives wrong answers, not errors. So the prompts here are longer than the window and contain random passages. After
the beginning of a passage the model repeats the rest, if it has the cells of that passage.
"""

import random
from collections.abc import Sequence

import numpy as np
import pytest
import trio

from mycelia.node.engine.child.llama.batch import BatchRow
from mycelia.node.engine.child.llama.bindings import L
from mycelia.node.engine.child.llama.llama import OK, RESTORED, Llama
from mycelia.node.engine.models import resolve_model
from mycelia.node.engine.process import open_engine
from mycelia.node.engine.settings import EngineSettings
from mycelia.proto.cache.edges import runs
from mycelia.proto.wire.errors import LocalError
from tests.node.engine.test_process import answer, chat, done, request, tokens_of

try:
    GEMMA = resolve_model("gemma3")
except LocalError as exc:
    pytest.skip(f"{exc} (make test does)", allow_module_level=True)

WINDOW = 512
BEGIN_TOKEN = 2
PREFIX_TOKENS = 620
CUE, RECALLED = 20, 8
"""Tokens of a passage that are given, and tokens that are then expected."""
FAR, NEAR = 70, 400
"""The beginnings of two passages, one outside of the window at the prefix's end, one inside."""


def random_prefix() -> list[int]:
    rng = random.Random(1)
    return [BEGIN_TOKEN, *(rng.randrange(2_000, 20_000) for _ in range(PREFIX_TOKENS - 1))]


@pytest.fixture(scope="module")
def llama() -> Llama:
    return Llama(GEMMA, num_cells=2048, num_sequences=6, num_threads=1, batch_tokens=2048)


def test_cells_outside_the_window_are_not_given_to_others(llama: Llama) -> None:
    """llama.cpp would reuse such cells after a hole before them; a prefix without its beginning can never be reused."""
    rng = random.Random(2)
    for seq_id, length in ((0, 100), (1, WINDOW + 300), (2, 300), (3, WINDOW + 200)):
        tokens = [rng.randrange(2_000, 20_000) for _ in range(length)]
        assert llama.decode([BatchRow(seq_id, 0, tokens, False)])[0] == OK
        if seq_id == 1:
            assert llama.copy_prefix(1, 4, WINDOW)
            llama.clear(1)
            assert llama.copy_prefix(4, 1, WINDOW)
            llama.clear(4)
            llama.clear(0)
    assert [llama.end(seq_id) for seq_id in range(5)] == [0, WINDOW, 300, WINDOW + 200, 0]
    llama.clear_all()


def recall(llama: Llama, prefix: Sequence[int], passage: int, seq_id: int, held: int) -> float:
    """Log-probability of the rest of the passage at ``passage``, after the whole prefix and the passage's beginning.
    Computes everything except the first ``held`` tokens, for which ``seq_id`` has cells."""
    middle = passage + CUE
    expected = random_prefix()[middle : middle + RECALLED]
    tokens = [*prefix, *random_prefix()[passage:middle]][held:]
    start, total = held, 0.0
    for token in expected:
        result, (output,) = llama.decode([BatchRow(seq_id, start, tokens, True)])
        assert result == OK
        logits = llama.logits(output).astype(np.float64)
        total += float(logits[token] - logits.max() - np.log(np.exp(logits - logits.max()).sum()))
        start, tokens = start + len(tokens), [token]
    return total


def test_a_reused_prefix_longer_than_the_window_is_all_there(llama: Llama) -> None:
    assert L.llama_model_n_swa(llama.model) == WINDOW < PREFIX_TOKENS
    assert llama.reuse and llama.can_save
    prefix = random_prefix()
    held, far_fresh = PREFIX_TOKENS - 50, 0.0
    for passage in (NEAR, FAR):
        llama.clear_all()
        fresh = far_fresh = recall(llama, prefix, passage, 0, 0)
        # A part of a longer sequence, as after a match that ends inside a leaf.
        assert llama.copy_prefix(0, 1, held)
        reused = recall(llama, prefix, passage, 1, held)
        blobs = [(start, end, llama.save_range(0, start, end)) for start, end in runs(0, held)]
        llama.clear_all()
        for start, end, blob in blobs:
            assert blob is not None and llama.restore_range(blob, (start, end), 2, start, end) == RESTORED
        restored = recall(llama, prefix, passage, 2, held)
        assert reused == pytest.approx(fresh, abs=2.0) and restored == pytest.approx(fresh, abs=2.0)

    # The value without the passage's cells.
    llama.clear_all()
    middle = FAR + CUE
    without = [*prefix[:middle], *prefix[middle : middle + RECALLED][::-1], *prefix[middle + RECALLED :]]
    assert recall(llama, without, FAR, 0, 0) < far_fresh - 10


async def test_the_engine_reuses_restores_and_renders() -> None:
    settings = EngineSettings(GEMMA, threads=1, cells=1024, slots=2, sequences=9, check=True, ram_tier_mib=64)
    with trio.fail_after(60):
        async with open_engine(settings) as running:
            assert running.info.reuse == "prefix" and running.info.name == GEMMA.stem
            prompt = [*random_prefix(), *random_prefix()[NEAR : NEAR + CUE]]
            cold = await answer(running, request(prompt, 4))
            assert tokens_of(cold)[0] == random_prefix()[NEAR + CUE] and done(cold).usage.cached_tokens == 0
            warm = await answer(running, request(prompt, 4))
            assert done(warm).usage.cached_tokens == len(prompt) - 1
            assert tokens_of(warm)[0] == tokens_of(cold)[0]

            done(await answer(running, request([BEGIN_TOKEN, *[9] * 450], 1)))  # Evicts the prefix.
            other = [*random_prefix(), *random_prefix()[FAR : FAR + CUE]]
            restored = await answer(running, request(other, 4))
            assert done(restored).usage.cached_tokens == PREFIX_TOKENS
            assert tokens_of(restored)[0] == random_prefix()[FAR + CUE]

            # The model has no chat template: ChatML, after the token with which all its prompts begin.
            conversation = await chat(running, "Hello")
            assert conversation[0] == BEGIN_TOKEN
            assert "<|im_start|>user\nHello<|im_end|>" in (await running.detokenize([conversation]))[0]
            assert running.num_restarts == 0
