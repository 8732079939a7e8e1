"""llama.cpp's sampler chain as the engine builds it, on made-up logits, without a model."""

import ctypes

import numpy as np
import pytest
from numpy.typing import NDArray

from mycelia.node.engine.child.llama import sampler as sampler_module
from mycelia.node.engine.child.llama.bindings import Candidates, L
from mycelia.node.engine.child.llama.llama import Llama
from mycelia.node.engine.child.llama.sampler import Sampler, logprobs
from mycelia.proto.wire.messages import MIN_LOGPROB, Sampling

VOCAB = 1000


class Dice(Llama):
    """Random logits by output index, the same every time."""

    def __init__(self, scale: float = 1.0) -> None:
        self.num_vocab = VOCAB
        self.scale = scale

    def logits(self, output: int) -> NDArray[np.float32]:
        return np.random.default_rng(output).normal(0, self.scale, VOCAB).astype(np.float32)

    def piece(self, token: int) -> bytes:
        return b"%d" % token


EVERYTHING = np.ones(VOCAB, np.bool_)


def draw(sampler: Sampler, outputs: range) -> list[int | None]:
    return [sampler.choose(Dice().logits(output), EVERYTHING) for output in outputs]


OPTIONS = [
    Sampling(max_tokens=9),
    Sampling(max_tokens=9, temperature=0.8, seed=5),
    Sampling(max_tokens=9, temperature=0.8, seed=5, top_k=0, top_p=1.0, min_p=0.0),
    Sampling(max_tokens=9, temperature=0.8, seed=5, top_k=1),
    Sampling(max_tokens=9, temperature=2.0, seed=2**32 - 1, top_p=0.5),
    Sampling(max_tokens=9, repeat_penalty=9.0, repeat_last_n=8),
    Sampling(max_tokens=9, temperature=1.0, frequency_penalty=2.0, presence_penalty=-2.0, repeat_last_n=5),
]


@pytest.mark.parametrize("sampling", OPTIONS, ids=range(len(OPTIONS)))
def test_a_resumed_answer_goes_on_with_the_same_choices(sampling: Sampling) -> None:
    prompt = [3, 1, 4, 1, 5]
    whole = draw(Sampler(Dice(), sampling, prompt, 0), range(12))
    for done in range(12):
        resumed = Sampler(Dice(), sampling, [*prompt, *map(int, filter(None, whole[:done]))], done)
        assert draw(resumed, range(done, 12)) == whole[done:]


@pytest.mark.parametrize("sampling", OPTIONS, ids=range(len(OPTIONS)))
def test_looking_for_the_likeliest_of_many_allowed_tokens_changes_nothing(
    sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    for divisor in (1, 2, 50, 500):
        allowed = np.arange(VOCAB) % divisor == 0
        chosen = []
        for block in (4, VOCAB):
            monkeypatch.setattr(sampler_module, "BLOCK", block)
            monkeypatch.setattr(sampler_module, "FEW", 0)
            sampler = Sampler(Dice(), sampling, [1], 0)
            chosen.append([sampler.choose(Dice().logits(output), allowed) for output in range(8)])
        assert chosen[0] == chosen[1]
        assert all(token is not None and token % divisor == 0 for token in chosen[0])
    assert Sampler(Dice(), sampling, [1], 0).choose(Dice().logits(0), np.zeros(VOCAB, np.bool_)) is None


def test_penalties_are_llama_cpps_and_apply_to_greedy_choices_too() -> None:
    dice = Dice(scale=3.0)
    logits = dice.logits(0)
    order = np.argsort(-logits)
    prompt = [int(order[0])] * 3 + [int(order[1])]

    def greedy(**options: float) -> int | None:
        sampler = Sampler(dice, Sampling(max_tokens=1, **options), prompt, 0)  # type: ignore[arg-type]
        return sampler.choose(dice.logits(0), EVERYTHING)

    assert greedy() == order[0] == greedy(repeat_penalty=9.0, repeat_last_n=0)
    assert greedy(repeat_penalty=10.0) == order[2]
    assert greedy(repeat_penalty=10.0, repeat_last_n=1) == order[0], "looks back one token only"
    expected = logits.copy()
    expected[order[0]] -= 3 * 1.5 + 1.0
    expected[order[1]] -= 1.5 + 1.0
    assert greedy(frequency_penalty=1.5, presence_penalty=1.0) == np.argmax(expected)


def test_logprobs_are_the_log_softmax_of_the_raw_logits() -> None:
    dice = Dice()
    logits = dice.logits(7).astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum())
    entry = logprobs(dice.logits(7), 5, 20, dice.piece)
    assert entry.chosen.token == 5 and entry.chosen.text == b"5"
    assert entry.chosen.logprob == pytest.approx(expected[5], abs=1e-5)
    assert [other.token for other in entry.top] == list(np.argsort(-expected)[:20])
    assert [other.logprob for other in entry.top] == pytest.approx(list(np.sort(expected)[::-1][:20]), abs=1e-5)


@pytest.mark.filterwarnings("ignore:invalid value")
def test_logprobs_of_absurd_logits_stay_in_bounds() -> None:
    for odd in (np.nan, -np.inf, -3e38):
        logits = np.zeros(VOCAB, np.float32)
        logits[5] = odd
        assert logprobs(logits, 5, 2, Dice().piece).chosen.logprob == MIN_LOGPROB


def test_draws_are_those_of_the_protocols_document_one_a_choice_even_of_one_candidate() -> None:
    # (section "Sampling, stops, and going on elsewhere" of proto/interoperability.md: another engine can go on)
    seed, size = 12_345, 1 << 16
    generator = np.random.RandomState()
    generator.seed(seed)
    outputs = [int(number) for number in generator.randint(0, 2**32, size=12, dtype=np.uint64)]
    drawn = [(outputs[at] + outputs[at + 1] * 2**32) / 2**64 for at in range(0, 12, 2)]
    dist = L.llama_sampler_init_dist(seed)
    try:
        for number, u in enumerate(drawn):
            num_candidates = 1 if number in (1, 3) else size
            candidates = Candidates(np.arange(num_candidates), np.zeros(num_candidates))
            L.llama_sampler_apply(dist, ctypes.byref(candidates.array))
            assert candidates.array.selected == (int(u * size) if num_candidates > 1 else 0)
    finally:
        L.llama_sampler_free(dist)
