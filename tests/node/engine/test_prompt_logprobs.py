"""Logprobs of prompts, logit biases and answers without a token, with the real engine and the real model."""

from collections.abc import Sequence

import llama_cpp
import numpy as np
import pytest
import trio

from mycelia.node.engine.child.job import REPORT_ROWS
from mycelia.node.engine.engine import EngineAccepted, EngineItem, EnginePromptLogprobs
from mycelia.node.engine.process import ProcessEngine
from mycelia.proto.wire.biases import pack_biases
from mycelia.proto.wire.messages import Sampling, TokenLogprobs
from tests.node.engine.gguf_files import quick_model
from tests.node.engine.test_sampling import ask, done, engine, logprobs_of, tokens_of

STORY = "The ship left the harbour at dawn, and nobody on the quay knew when it would return. " * 12
CLOSE = 0.5
"""Largest difference of a logprob from llama.cpp alone: its kernels depend on the number of rows."""


def reported(items: Sequence[EngineItem]) -> list[TokenLogprobs]:
    entries: list[TokenLogprobs] = []
    start = None
    for item in items:
        if isinstance(item, EnginePromptLogprobs):
            start = item.position if start is None else start
            assert item.position == start + len(entries)
            entries += item.logprobs
    return entries


def cached(items: Sequence[EngineItem]) -> int:
    return next(item.cached_tokens for item in items if isinstance(item, EngineAccepted))


@pytest.fixture(scope="module")
def alone() -> llama_cpp.Llama:
    path = str(quick_model())
    return llama_cpp.Llama(path, n_ctx=1024, logits_all=True, verbose=False, n_threads=1)


def by_llama_cpp(alone: llama_cpp.Llama, tokens: Sequence[int]) -> list[float]:
    alone.reset()  # type: ignore[no-untyped-call]
    alone.eval(list(tokens))
    rows = alone.scores[: len(tokens)].astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
    return [float(rows[place, token]) for place, token in enumerate(tokens[1:])]


async def test_every_token_of_a_prompt_is_reported(alone: llama_cpp.Llama) -> None:
    async with engine() as running:
        tokens = list(await running.tokenize_text(STORY))
        assert len(tokens) > 150, "more than one part"
        sampling = Sampling(max_tokens=1, prompt_logprobs=3)
        cold = await ask(running, tokens, sampling)
        entries = reported(cold)
        assert [entry.chosen.token for entry in entries] == tokens[1:] and {len(entry.top) for entry in entries} == {3}
        expected = by_llama_cpp(alone, tokens)
        differences = [abs(entry.chosen.logprob - value) for entry, value in zip(entries, expected, strict=True)]
        assert max(differences) < CLOSE and sum(differences) / len(differences) < 0.05
        assert cached(cold) == 0 and len(tokens_of(cold)) == 1

        again = await ask(running, tokens, sampling)
        assert cached(again) == 0, "the cells of a prefix have no logits"
        start = len(tokens) - 20
        ended = await ask(running, tokens, Sampling(max_tokens=1, prompt_logprobs=3, logprobs_from=start))
        assert cached(ended) == len(tokens) - REPORT_ROWS
        assert [entry.chosen.token for entry in reported(ended)] == tokens[start:]
        for one, other in zip(reported(ended), entries[start - 1 :], strict=True):
            assert abs(one.chosen.logprob - other.chosen.logprob) < CLOSE
        none = await ask(running, tokens, Sampling(max_tokens=1, prompt_logprobs=3, logprobs_from=len(tokens)))
        assert reported(none) == [] and cached(none) == len(tokens) - 1
        resumed = await ask(running, tokens, Sampling(max_tokens=1, prompt_logprobs=1), resumed=5)
        assert len(reported(resumed)) == len(tokens) - 6


async def test_an_end_token_is_part_of_such_an_answer(alone: llama_cpp.Llama) -> None:
    async with engine() as running:
        tokens = await running.tokenize_text("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!")
        plain = await ask(running, tokens, Sampling(max_tokens=8, logit_bias=pack_biases({2: 100.0})))
        assert tokens_of(plain) == [] and done(plain).reason == "stop"
        sampling = Sampling(max_tokens=8, prompt_logprobs=1, logprobs=1, logit_bias=pack_biases({2: 100.0}))
        scored = await ask(running, tokens, sampling)
        assert tokens_of(scored) == [2] and done(scored).reason == "stop"
        assert logprobs_of(scored)[0].chosen.logprob < -0.0, "of the model, without the bias"
        rest = await ask(running, [*tokens, 2], sampling, resumed=1)
        assert tokens_of(rest) == [] and done(rest).reason == "stop"


async def test_no_token_computes_the_prompt(alone: llama_cpp.Llama) -> None:
    async with engine() as running:
        tokens = list(await running.tokenize_text(STORY))
        warm = await ask(running, tokens, Sampling(max_tokens=0))
        assert tokens_of(warm) == [] and done(warm).reason == "length" and cached(warm) == 0
        after = await ask(running, tokens, Sampling(max_tokens=1))
        assert cached(after) == len(tokens) - 1 and len(tokens_of(after)) == 1
        scored = await ask(running, tokens, Sampling(max_tokens=0, prompt_logprobs=1))
        assert len(reported(scored)) == len(tokens) - 1 and tokens_of(scored) == []


async def test_biases() -> None:
    async with engine() as running:
        tokens = await running.tokenize_text("Once upon a time")
        (first,) = tokens_of(await ask(running, tokens, Sampling(max_tokens=1)))

        async def chosen(running: ProcessEngine, biases: dict[int, float], **options: float) -> int:
            sampling = Sampling(max_tokens=1, logit_bias=pack_biases(biases), **options)  # type: ignore[arg-type]
            return tokens_of(await ask(running, tokens, sampling))[0]

        assert await chosen(running, {first: -100.0}) != first
        assert await chosen(running, {1_000: 100.0}) == 1_000
        assert await chosen(running, {1_000: 100.0}, temperature=2.0, top_k=0, repeat_penalty=1.3) == 1_000
        assert await chosen(running, {2**32 - 1: 100.0}) == first, "no token of this model"


async def test_prompts_at_once_in_a_cache_too_small_for_all_of_them() -> None:
    """Stops, evictions, shared prefixes and a cancel; the engine checks its invariants after every request."""
    async with engine(cells=512) as running:
        tokens = list(await running.tokenize_text(STORY))[:200]
        prompts = [[*tokens[: 200 - 30 * number], 1_000 + number, 2_000, 3_000] for number in range(5)]
        told: dict[int, list[int]] = {}

        async def score(number: int) -> None:
            start = 1 if number < 3 else len(prompts[number]) - 2
            sampling = Sampling(max_tokens=20, prompt_logprobs=1, logprobs_from=start)
            told[number] = [entry.chosen.token for entry in reported(await ask(running, prompts[number], sampling))]

        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(score, number)
            nursery.start_soon(ask, running, tokens, Sampling(max_tokens=200))
            with trio.move_on_after(1.0):
                await ask(running, [5, *tokens], Sampling(max_tokens=50, prompt_logprobs=20))
        for number, prompt in enumerate(prompts):
            assert told[number] == prompt[1 if number < 3 else len(prompt) - 2 :]
