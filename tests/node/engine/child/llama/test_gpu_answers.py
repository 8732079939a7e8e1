"""Greedy answers of a GPU and the errors of its logits, beside exact ones.

The processor's own kernels are no measure with quantised weights: they round the numbers that are multiplied with them
to 8 bits, and by that alone 10 of 20 answers of 24 tokens differ from those of the same weights as F32. With weights as
F16 the processor is exact: then all 20 are equal.
"""

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mycelia.node.engine.child.llama.batch import BatchRow
from mycelia.node.engine.child.llama.bindings import L
from mycelia.node.engine.child.llama.llama import OK, Llama
from mycelia.node.engine.models import resolve_model
from mycelia.node.engine.sizing import Offload
from tests.node.engine.gpus import on_a_gpu

pytestmark = on_a_gpu

PATH = resolve_model("smollm2")
PROMPTS = (
    "The capital of France is",
    "Water boils at a temperature of",
    "def fibonacci(n):\n",
    "Once upon a time there was a",
    "The opposite of hot is",
    "import numpy as np\n\n",
    "My favourite season is autumn, because",
    "The sun rises in the east and",
    "A healthy breakfast could be",
    "SELECT name FROM users WHERE",
    "To bake bread you need flour,",
    "The three states of matter are",
    "Dear Sir or Madam,\n",
    "In 1969, the first human",
    "The largest planet of the solar system",
    "If it rains tomorrow, we will",
    "Photosynthesis is the process by which",
    "Ladies and gentlemen, today",
    "The quick brown fox",
    "Two plus two is four, and three",
)
ANSWER_TOKENS = 24
AT_ONCE = 4
"""Answers that are decoded together. Vulkan's kernels for up to 8 rows add up in 32 bits; those for more in 16, which
turns the order of some tokens."""
NEAR_TIE = 0.5
"""Two tokens whose logits differ by less may change places: three times what the processor's rounding to 8 bits makes
of such a difference, as some GPUs round, too."""
NO_WORSE = 1.5
"""Bound for the errors of a GPU, as a multiple of the processor's, both with quantised weights."""


def open_llama(path: Path, offload: Offload) -> Llama:
    sequences = len(PROMPTS) + 2
    return Llama(path, num_cells=1024, num_sequences=sequences, num_threads=2, batch_tokens=512, offload=offload)


@pytest.fixture(scope="module")
def gpu() -> Llama:
    return open_llama(PATH, Offload())


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Llama:
    """The same weights as F16, on the processor."""
    path = tmp_path_factory.mktemp("weights") / "f16.gguf"
    params = L.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize, params.nthread = L.LLAMA_FTYPE_MOSTLY_F16, True, 2
    assert L.llama_model_quantize(os.fsencode(PATH), os.fsencode(path), ctypes.byref(params)) == 0
    model = open_llama(path, Offload(layers=0))
    path.unlink()  # (270 MB)
    return model


def decode(model: Llama, rows: Sequence[BatchRow]) -> list[NDArray[np.float32]]:
    """The logits of each of ``rows``."""
    result, outputs = model.decode(rows)
    assert result == OK
    return [model.logits(output).copy() for output in outputs]


def answers(model: Llama, prompts: Sequence[str]) -> list[list[int]]:
    """The greedy answers to all prompts at once. Prompts are computed token by token, too, so that all calls have as
    many rows: for each number of rows kernels are compiled."""
    model.clear_all()
    texts = [model.tokenize(prompt, False) for prompt in prompts]
    lengths = [len(text) for text in texts]
    for position in range(max(lengths) + ANSWER_TOKENS - 1):
        rows = [BatchRow(seq_id, position, [text[position]], 1) for seq_id, text in enumerate(texts)]
        for text, logits in zip(texts, decode(model, rows), strict=True):
            if len(text) == position + 1:
                text.append(int(logits.argmax()))
    return [text[length : length + ANSWER_TOKENS] for text, length in zip(texts, lengths, strict=True)]


def behind(model: Llama, prompt: str, answer: Sequence[int]) -> list[float]:
    """How far the logit of each token of the answer is behind the best one's there: 0 where it is the best."""
    model.clear_all()
    tokens = [*model.tokenize(prompt, False), *answer]
    result, (last,) = model.decode([BatchRow(0, 0, tokens, len(answer) + 1)])
    assert result == OK
    each = [model.logits(last - len(answer) + i) for i in range(len(answer))]
    return [float(logits.max() - logits[token]) for logits, token in zip(each, answer, strict=True)]


def test_nine_of_ten_answers_are_the_exact_ones_token_by_token(gpu: Llama, exact: Llama) -> None:
    same = 0
    for first in range(0, len(PROMPTS), AT_ONCE):
        prompts = PROMPTS[first : first + AT_ONCE]
        for prompt, answer in zip(prompts, answers(gpu, prompts), strict=True):
            distances = behind(exact, prompt, answer)
            assert max(distances) < NEAR_TIE, (prompt, answer, distances)
            same += not any(distances)
    assert same >= 0.9 * len(PROMPTS)


def test_logits_of_a_large_batch_are_no_worse_than_the_processors(gpu: Llama, exact: Llama) -> None:
    processor = open_llama(PATH, Offload(layers=0))
    expected, *others = (first_logits(model) for model in (exact, processor, gpu))
    processors, ours = (float((logits - expected).std(axis=-1).mean()) for logits in others)
    assert ours < NO_WORSE * processors


def first_logits(model: Llama) -> NDArray[np.float32]:
    """The logits after each prompt, all computed in one call."""
    model.clear_all()
    return np.array(
        decode(model, [BatchRow(i, 0, model.tokenize(prompt, False), 1) for i, prompt in enumerate(PROMPTS)])
    )
