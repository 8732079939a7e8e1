"""The engine on a GPU. Skipped if llama.cpp has no GPU."""

from collections.abc import Sequence

import pytest
import trio

from mycelia.node.engine.child.llama.batch import BatchRow
from mycelia.node.engine.child.llama.llama import OK, Llama
from mycelia.node.engine.child.llama.models import find_gpus
from mycelia.node.engine.engine import EngineDone, EngineRequest, EngineTokens
from mycelia.node.engine.models import resolve_model
from mycelia.node.engine.process import open_engine
from mycelia.node.engine.settings import EngineSettings
from mycelia.node.engine.sizing import DEFAULT_CELLS, MAX_GPU_CELLS, Offload
from mycelia.proto.wire.messages import ChatMessage, Sampling

GPUS = find_gpus(Offload())

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not GPUS, reason="llama.cpp is not built for a GPU, or sees none"),
]

FIRST_TOKENS = 8
"""Tokens that are compared. Kernels differ in the last bits, so greedy texts may differ later, at near-ties."""
LONG_TOKENS = 7000


def llama(offload: Offload, cells: int = 1024) -> Llama:
    path = resolve_model("smollm2")
    return Llama(path, num_cells=cells, num_sequences=5, num_threads=1, batch_tokens=512, offload=offload)


def greedy(model: Llama, text: str, count: int) -> list[int]:
    """The first ``count`` tokens after ``text``."""
    tokens, chosen = model.tokenize(text, False), list[int]()
    position, rows = 0, tokens
    sampler = model.sampler(Sampling(max_tokens=count, temperature=0.0), tokens)
    while len(chosen) < count:
        result, outputs = model.decode([BatchRow(0, position, rows, True)])
        assert result == OK
        position += len(rows)
        rows = [sampler.sample(outputs[0])]
        chosen += rows
    sampler.close()
    return chosen


def test_a_gpu_answers_as_the_processor_does() -> None:
    text = "The first ten prime numbers are 2, 3, 5,"
    expected = greedy(llama(Offload(layers=0)), text, FIRST_TOKENS)
    for offload in (Offload(), Offload(layers=10), Offload(main_gpu=len(GPUS) - 1), Offload(split=(1.0,) * len(GPUS))):
        model = llama(offload)
        assert model.placement.offloaded and not model.can_abort
        assert model.reuse and model.can_save, "prefixes can be shared and saved"
        assert greedy(model, text, FIRST_TOKENS) == expected


async def first_tokens(prompt: Sequence[int], gpu_layers: int | None) -> list[int]:
    settings = EngineSettings(resolve_model("smollm2"), "smollm2", gpu_layers=gpu_layers, cells=2048, check=True)
    async with open_engine(settings) as engine:
        for _ in range(2):  # The second time from the cache.
            async with engine.generate(EngineRequest(b"r" * 16, prompt, Sampling(max_tokens=FIRST_TOKENS))) as items:
                tokens = [token async for item in items if isinstance(item, EngineTokens) for token in item.tokens]
    return tokens


async def test_the_engine_shares_prefixes_on_a_gpu() -> None:
    with trio.fail_after(120):
        settings = EngineSettings(resolve_model("smollm2"), "smollm2", gpu_layers=0)
        async with open_engine(settings) as engine:
            prompt = await engine.tokenize_chat([ChatMessage(role="user", content="Name three rivers.")])
        assert await first_tokens(prompt, None) == await first_tokens(prompt, 0)


async def test_cells_fill_the_gpu_and_a_long_prefill_is_cancelled_between_chunks() -> None:
    with trio.fail_after(120):
        async with open_engine(EngineSettings(resolve_model("smollm2"), "smollm2", check=True)) as engine:
            # 65,536 cells of this model take 1.5 GB; all 8 slots can use as many.
            assert engine.num_cells is not None
            assert DEFAULT_CELLS <= engine.num_cells <= MAX_GPU_CELLS
            request = EngineRequest(b"r" * 16, [7] * LONG_TOKENS, Sampling(max_tokens=9))
            async with engine.generate(request) as items:
                await anext(items)  # (the answer has begun)
            # The next request is answered at once: when the first one was cancelled, only one chunk was running.
            began = trio.current_time()
            async with engine.generate(EngineRequest(b"s" * 16, [9] * 20, Sampling(max_tokens=1))) as items:
                answer = [item async for item in items]
            assert isinstance(answer[-1], EngineDone)
            assert trio.current_time() - began < 2.0
