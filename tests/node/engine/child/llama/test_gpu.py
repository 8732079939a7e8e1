"""A context of llama.cpp on a GPU: what it computes, where its cells are, and what can be done with them. Skipped if
llama.cpp has no GPU. `make gpu-test` runs it on a Vulkan device that is a program; see ``gpus.py``."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from mycelia.node.engine.child.llama.batch import BatchRow
from mycelia.node.engine.child.llama.bindings import L
from mycelia.node.engine.child.llama.llama import ABORTED, OK, REFUSED, RESTORED, Llama
from mycelia.node.engine.child.llama.models import open_model
from mycelia.node.engine.models import resolve_model
from mycelia.node.engine.sizing import CellBudget, Offload
from mycelia.proto.wire.messages import Sampling
from tests.node.engine.gpus import GPUS, on_a_gpu

pytestmark = on_a_gpu

PATH = resolve_model("smollm2")
LAYERS = 31
"""The layers of the model, with the output."""
FIRST_TOKENS = 8
"""Tokens that are compared. Kernels differ in the last bits, so greedy texts may differ later, at near-ties."""
TEXT = "The first ten prime numbers are 2, 3, 5,"
LOGS: list[object] = []
"""Callbacks that llama.cpp may still call: it holds bare pointers to them."""
SAME_LOGITS = 0.5
"""Maximum difference of logits that another kernel makes: 0.25 was seen."""


def open_llama(offload: Offload, cells: int | CellBudget = 1024, sequences: int = 6) -> Llama:
    return Llama(PATH, num_cells=cells, num_sequences=sequences, num_threads=2, batch_tokens=512, offload=offload)


@pytest.fixture(scope="module")
def gpu() -> Llama:
    """All layers on GPUs."""
    return open_llama(Offload())


@pytest.fixture
def llama(gpu: Llama) -> Iterator[Llama]:
    """The same with an empty cache."""
    gpu.clear_all()
    yield gpu
    gpu.abort.clear()


@pytest.fixture(scope="module")
def processor() -> Llama:
    return open_llama(Offload(layers=0))


def greedy(model: Llama, text: str, count: int) -> list[int]:
    """The first ``count`` tokens after ``text``."""
    tokens, chosen = model.tokenize(text, False), list[int]()
    position, rows = 0, tokens
    sampler = model.sampler(Sampling(max_tokens=count, temperature=0.0), tokens)
    while len(chosen) < count:
        result, outputs = model.decode([BatchRow(0, position, rows, 1)])
        assert result == OK
        position += len(rows)
        rows = [sampler.sample(outputs[0])]
        chosen += rows
    sampler.close()
    return chosen


def logits_of(model: Llama, seq_id: int, start: int, tokens: Sequence[int]) -> NDArray[np.float32]:
    """The logits after ``tokens``, which are computed in one call."""
    result, (output,) = model.decode([BatchRow(seq_id, start, tokens, 1)])
    assert result == OK
    return model.logits(output).copy()


def assert_same(some: NDArray[np.float32], others: NDArray[np.float32]) -> None:
    assert int(some.argmax()) == int(others.argmax())
    assert float(np.abs(some - others).max()) < SAME_LOGITS


# --- where layers and cells are --------------------------------------------------------------------------------------


def test_everything_is_on_the_gpu_and_the_probes_find_what_it_can(gpu: Llama) -> None:
    assert gpu.placement.offloaded == LAYERS and gpu.placement.host_layers == 0
    assert gpu.placement.describe().startswith(f"all {LAYERS} layers on {GPUS[0].name}")
    assert gpu.offloaded and not gpu.can_abort, "a running decode cannot be stopped there"
    assert gpu.reuse and gpu.can_save, "prefixes can be shared and saved"
    assert gpu.cell_bytes > 0


def test_weights_and_cells_are_in_the_gpus_memory() -> None:
    """As llama.cpp's log says."""
    loaded, lines = open_model(PATH, Offload()), list[str]()
    LOGS.append(L.llama_log_callback(lambda _level, text, _data: lines.append(text.decode("utf-8", "replace"))))
    L.llama_log_set(LOGS[-1], None)
    model = Llama(PATH, num_cells=512, num_sequences=4, num_threads=1, batch_tokens=64, loaded=loaded)
    buffers = [line for line in lines if "KV buffer size" in line]
    assert model.offloaded and buffers and all(GPUS[0].name in line for line in buffers), lines


def test_a_gpu_answers_as_the_processor_does_however_layers_are_split(gpu: Llama, processor: Llama) -> None:
    expected = greedy(processor, TEXT, FIRST_TOKENS)
    processor.clear_all()
    gpu.clear_all()
    assert greedy(gpu, TEXT, FIRST_TOKENS) == expected
    for offload in (Offload(layers=10), Offload(main_gpu=len(GPUS) - 1), Offload(split=(1.0,) * len(GPUS))):
        model = open_llama(offload)
        assert model.placement.offloaded == (offload.layers or LAYERS) and not model.can_abort
        assert greedy(model, TEXT, FIRST_TOKENS) == expected, offload


def test_cells_are_as_many_as_fit(gpu: Llama) -> None:
    least = open_llama(Offload(), CellBudget(slots=1, host_bytes=0))
    assert least.num_cells >= 8192 and not least.cells_note, "host memory does not count when all is on GPUs"
    assert least.context_tokens == 8192, "the length that the model was trained on"


# --- what is done with cells ------------------------------------------------------------------------------------------


def test_prefixes_are_copied_cut_and_continued(llama: Llama) -> None:
    tokens = llama.tokenize(TEXT * 3, False)
    half, length = len(tokens) // 2, len(tokens)
    alone = logits_of(llama, 0, 0, tokens)
    assert llama.copy_prefix(0, 1, half) and llama.end(1) == half
    assert_same(logits_of(llama, 1, half, tokens[half:]), alone)
    # A tail is removed and computed again; the other sequence keeps its cells.
    assert llama.truncate(1, half) and (llama.end(0), llama.end(1)) == (length, half)
    assert_same(logits_of(llama, 1, half, tokens[half:]), alone)
    # A sequence takes over cells of another one that holds the same tokens.
    assert llama.replace_prefix(0, 1, half) and llama.end(1) == length
    assert llama.truncate(1, length - 1) and llama.truncate(0, length - 1)
    assert_same(logits_of(llama, 1, length - 1, tokens[-1:]), alone)
    llama.clear(0)
    assert llama.end(0) == 0 and llama.end(1) == length


def test_saved_cells_are_restored(llama: Llama) -> None:
    tokens = llama.tokenize(TEXT * 2, False)
    last = len(tokens) - 1
    alone = logits_of(llama, 0, 0, tokens)
    head, tail = llama.save_range(0, 0, 10), llama.save_range(0, 10, last)
    assert head is not None and tail is not None and llama.end(0) == len(tokens)
    llama.clear_all()
    assert llama.restore_range(head[:-1], (0, 10), 2, 0, 10) == REFUSED and llama.end(2) == 0
    assert llama.restore_range(head, (0, 10), 2, 0, 10) == RESTORED
    assert llama.restore_range(tail, (10, last), 2, 10, last) == RESTORED
    assert llama.save_range(2, 0, 10) == head, "the same bytes"
    assert_same(logits_of(llama, 2, last, tokens[last:]), alone)


def test_the_whole_cache_is_moved_together(llama: Llama) -> None:
    tokens = llama.tokenize(TEXT * 2, False)
    alone = logits_of(llama, 1, 0, tokens)
    assert llama.copy_prefix(1, 0, 5)
    assert llama.compact() and (llama.end(0), llama.end(1)) == (5, len(tokens))
    assert llama.truncate(1, len(tokens) - 1)
    assert_same(logits_of(llama, 1, len(tokens) - 1, tokens[-1:]), alone)


def test_two_sequences_in_one_batch_are_as_each_alone(llama: Llama) -> None:
    texts = [llama.tokenize(text, False) for text in (TEXT, "Rivers flow to the")]
    alone = []
    for tokens in texts:
        alone.append(logits_of(llama, 0, 0, tokens))
        llama.clear_all()
    result, outputs = llama.decode([BatchRow(seq_id, 0, tokens, 1) for seq_id, tokens in enumerate(texts)])
    assert result == OK
    for output, expected in zip(outputs, alone, strict=True):
        assert_same(llama.logits(output), expected)


def test_a_running_decode_is_not_stopped(llama: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the engine must keep steps short. A flag that is raised before the call refuses the whole call."""
    tokens = llama.tokenize(TEXT * 2, False)
    alone = logits_of(llama, 0, 0, tokens)
    llama.clear_all()
    monkeypatch.setattr(llama, "can_abort", True)  # Then ``decode`` returns while the GPU still computes.
    result, (output,) = llama.decode([BatchRow(0, 0, tokens, 1)])
    llama.abort.raise_it()
    assert result == OK and llama.end(0) == len(tokens)
    assert_same(llama.logits(output), alone)
    assert llama.decode([BatchRow(1, 0, tokens, 1)])[0] == ABORTED and llama.end(1) == 0


# --- answers ----------------------------------------------------------------------------------------------------------

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
"""Sequences that are decoded in one call."""
NEAR_TIE = 0.5
"""Two tokens whose logits differ by less may change places when other kernels compute them."""


def answers(model: Llama, prompts: Sequence[str], expected: Sequence[Sequence[int]] = ()) -> list[list[int]]:
    """The greedy answers to all prompts at once. With ``expected`` answers: where one differs first, the logits of both
    tokens must be a near-tie, and this answer ends there."""
    model.clear_all()
    rows = [BatchRow(i, 0, model.tokenize(prompt, False), 1) for i, prompt in enumerate(prompts)]
    chosen: list[list[int]] = [[] for _ in prompts]
    while rows:
        result, outputs = model.decode(rows)
        assert result == OK
        following = []
        for row, output in zip(rows, outputs, strict=True):
            logits, answer = model.logits(output), chosen[row.seq_id]
            answer.append(int(logits.argmax()))
            other = expected[row.seq_id][len(answer) - 1] if expected else answer[-1]
            if other != answer[-1]:
                assert logits[answer[-1]] - logits[other] < NEAR_TIE, (prompts[row.seq_id], answer, other)
            elif len(answer) < ANSWER_TOKENS:
                following.append(BatchRow(row.seq_id, row.start + len(row.tokens), [answer[-1]], 1))
        rows = following
    return chosen


def test_nine_of_ten_answers_are_the_processors_token_by_token(
    gpu: Llama, processor: Llama, record_property: Callable[[str, object], None]
) -> None:
    same = 0
    for first in range(0, len(PROMPTS), AT_ONCE):
        prompts = PROMPTS[first : first + AT_ONCE]
        ours = answers(gpu, prompts)
        same += sum(len(answer) == ANSWER_TOKENS for answer in answers(processor, prompts, ours))
    record_property("answers equal to the processor's", f"{same} of {len(PROMPTS)}")
    assert same >= 0.9 * len(PROMPTS)
