"""The second tier with the real model: cells are restored bit for bit, and a restarted engine has a warm cache."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trio

from mycelia.node.engine.child.llama.batch import BatchRow
from mycelia.node.engine.child.llama.bindings import L
from mycelia.node.engine.child.llama.llama import OK, REFUSED, RESTORED, Llama
from mycelia.node.engine.process import open_engine
from mycelia.node.engine.settings import EngineSettings
from mycelia.proto.cache.sharing import Owner
from mycelia.proto.wire.errors import LocalError
from tests.node.engine.gguf_files import quick_model
from tests.node.engine.test_process import STORY, answer, chat, done, request, tokens_of, until_idle

CELLS = 256


@pytest.fixture(scope="module")
def llama() -> Llama:
    return Llama(quick_model(), num_cells=CELLS, num_sequences=6, num_threads=1, batch_tokens=512)


def greedy(llama: Llama, seq_id: int, start: int, token: int, count: int = 32) -> tuple[list[int], list[bytes]]:
    """The next ``count`` tokens and the bytes of their logits, one decode call each."""
    chosen, seen = [], []
    for position in range(start, start + count):
        result, (output,) = llama.decode([BatchRow(seq_id, position, [token], True)])
        assert result == OK
        logits = np.ctypeslib.as_array(L.llama_get_logits_ith(llama.context, output), (llama.num_vocab,))
        token = int(logits.argmax())
        chosen.append(token)
        seen.append(logits.tobytes())
    return chosen, seen


def test_restored_cells_are_the_saved_ones(llama: Llama) -> None:
    """Bit for bit, also in the tokens computed after them: the same text from the same logits. This holds for the same
    placement of the cells. A blob that is restored in part leaves a hole, the cells after it move, and attention adds
    in another order: then the last bits of the logits differ, as with any reused prefix."""
    llama.clear_all()
    tokens = llama.tokenize(STORY * 8, False)[:150]
    assert llama.decode([BatchRow(0, 0, tokens, False)])[0] == OK
    assert llama.copy_prefix(0, 1, 149)
    expected = greedy(llama, 1, 149, tokens[149])
    llama.clear(1)
    assert greedy_again(llama, 0, tokens) == expected
    head, tail = llama.save_range(0, 0, 60), llama.save_range(0, 60, 149)
    assert head is not None and tail is not None
    assert llama.end(0) == 150 and llama.end(llama.spare) == 0
    assert llama.save_range(0, 100, 151) is None, "cells that are not there"
    assert llama.save_range(3, 0, 1) is None

    llama.clear_all()
    assert llama.restore_range(head, (0, 60), 2, 0, 60) == RESTORED
    assert llama.restore_range(tail, (60, 149), 2, 60, 149) == RESTORED
    assert llama.end(2) == 149 and llama.end(llama.spare) == 0
    assert llama.save_range(2, 0, 60) == head and llama.save_range(2, 60, 149) == tail
    assert greedy(llama, 2, 149, tokens[149]) == expected


def greedy_again(llama: Llama, source: int, tokens: list[int]) -> tuple[list[int], list[bytes]]:
    assert llama.copy_prefix(source, 1, 149)
    again = greedy(llama, 1, 149, tokens[149])
    llama.clear(1)
    return again


def test_what_is_no_blob_leaves_everything_as_it_was(llama: Llama) -> None:
    llama.clear_all()
    assert llama.decode([BatchRow(0, 0, list(range(100, 160)), False)])[0] == OK
    blob = llama.save_range(0, 20, 60)
    assert blob is not None and llama.copy_prefix(0, 1, 20)
    cases = [
        (blob[:-1], (20, 60), 20, 60),
        (blob[:50], (20, 60), 20, 60),
        (memoryview(b""), (20, 60), 20, 60),
        (memoryview(bytes(len(blob))), (20, 60), 20, 60),
        (blob, (10, 50), 20, 50),  # (other positions than in the key)
        (blob, (20, 60), 30, 70),
    ]
    for data, held, start, end in cases:
        assert llama.restore_range(data, held, 1, start, end) == REFUSED
        assert llama.end(1) == 20 and llama.end(llama.spare) == 0
    # No room for the whole blob, but enough for the wanted part.
    assert llama.decode([BatchRow(2, 0, [7] * (CELLS - 60 - 39), False)])[0] == OK
    assert llama.restore_range(blob, (20, 60), 1, 20, 30) == REFUSED
    llama.clear(2)
    assert llama.restore_range(blob, (20, 60), 1, 20, 30) == RESTORED and llama.end(1) == 30


async def test_a_node_that_comes_back_is_warm(tmp_path: Path) -> None:
    """From memory while the node runs, from disk after a clean end and after a kill."""
    settings = EngineSettings(
        quick_model(), threads=1, cells=512, slots=2, sequences=9, check=True, ram_tier_mib=64, cache_dir=tmp_path / "c"
    )
    with trio.fail_after(180):
        async with open_engine(settings) as running:
            prompt = await chat(running, STORY * 8 + "Who counted?")
            done(await answer(running, request(prompt, 4)))
            warm = await answer(running, request(prompt, 32))
            assert done(warm).usage.cached_tokens == len(prompt) - 1
            done(await answer(running, request([9] * 400, 4)))
            restored = await answer(running, request(prompt, 32))
            assert done(restored).usage.cached_tokens == len(prompt) - 1
            # Later tokens may differ in near-ties, because the cells have other places after the eviction.
            assert tokens_of(restored)[0] == tokens_of(warm)[0]
            assert running.num_restarts == 0
        async with open_engine(settings) as running:
            again = await answer(running, request(prompt, 32))
            assert done(again).usage.cached_tokens == len(prompt) - 1
            # The prefill below is interrupted by the end of the engine, which still writes the cache.
            assert done(await answer(running, request([3] * 60, 1))).usage.cached_tokens == 0
            async with running.generate(request([8] * 490, 5)) as items:
                await anext(items)
                running_pid = running.pid
        async with open_engine(settings) as running:
            assert running.pid != running_pid
            assert done(await answer(running, request([3] * 60, 1))).usage.cached_tokens == 59
            assert running.pid is not None
            os.kill(running.pid, signal.SIGKILL)
            # Tokenizing waits for the new child.
            await chat(running, "x")
            assert done(await answer(running, request(prompt, 4))).usage.cached_tokens == len(prompt) - 1
            await until_idle(running)
            # Cells of another swarm are not this swarm's.
            for number, cached in enumerate((0, len(prompt) - 1)):
                asked = replace(request(prompt, 1), owner=Owner(b"o" * 16, "", b"s" * 16))
                assert done(await answer(running, asked)).usage.cached_tokens == cached, number


async def test_a_cache_directory_that_cannot_be_used_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(LocalError, match="cannot use the cache directory"):
        async with open_engine(EngineSettings(quick_model(), cache_dir=tmp_path / "file")):
            pass


def test_sizes_that_are_slips_of_the_pen_are_refused() -> None:
    for sizes in ({"ram_tier_mib": -1}, {"ram_tier_mib": 2**31}, {"disk_tier_gib": -0.5}, {"disk_tier_gib": 2.0**21}):
        with pytest.raises(LocalError, match="second tier"):
            EngineSettings(Path("model.gguf"), **sizes)
    assert EngineSettings(Path("model.gguf"), ram_tier_mib=3).ram_tier_bytes == 3 * 2**20
    assert 0 <= EngineSettings(Path("model.gguf")).ram_tier_bytes <= 2**32
