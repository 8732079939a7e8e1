"""A context of llama.cpp on a GPU: what it computes, where its cells are, and what can be done with them. Skipped if
llama.cpp has no GPU. `make gpu-test` runs it on a Vulkan device that is a program; see ``gpus.py``."""

from collections.abc import Iterator, Sequence

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
"""Tokens that are compared: the best one is ahead by 1.7 or more, which no kernel's noise turns."""
TEXT = "The first ten prime numbers are 2, 3, 5,"
LOGS: list[object] = []
"""Callbacks that llama.cpp may still call: it holds bare pointers to them."""
NOISE = 0.25
"""Bound for the standard deviation between the logits of one token that kernels for other numbers of rows computed:
Vulkan adds up in 32 bits for up to 8 rows and in 16 for more, which made 0.11 over 36 tokens. A token left out, or two
that changed places, make 0.4 or more."""


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
    """The same up to noise. The best tokens are not compared: some text has two that are equally good."""
    assert float((some - others).std()) < NOISE


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
    few = expected[:3]
    for offload in (Offload(layers=10), Offload(main_gpu=len(GPUS) - 1), Offload(split=(1.0,) * len(GPUS))):
        model = open_llama(offload)
        assert model.placement.offloaded == (offload.layers or LAYERS) and not model.can_abort
        assert greedy(model, TEXT, len(few)) == few, offload


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
