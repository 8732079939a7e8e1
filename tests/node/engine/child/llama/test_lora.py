"""LoRA adapters: a model with one is another model, with prefixes of its own."""

from dataclasses import replace
from pathlib import Path

import pytest
import trio

from mycelia.node.engine.engine import EngineDone, EngineRequest, EngineTokens
from mycelia.node.engine.process import ProcessEngine, open_engine
from mycelia.node.engine.settings import EngineSettings
from mycelia.proto.wire.errors import LocalError
from mycelia.proto.wire.messages import Sampling
from tests.node.engine.child.tiny_models import write_adapter, write_model

PROMPT = [5 + number % 90 for number in range(100)]


async def answer(engine: ProcessEngine) -> tuple[list[int], int]:
    """The tokens, and how many tokens of the prompt were cached."""
    request = EngineRequest(bytes(16), PROMPT, Sampling(max_tokens=12))
    async with engine.generate(request) as items:
        got = [item async for item in items]
    assert isinstance(got[-1], EngineDone)
    return [token for item in got if isinstance(item, EngineTokens) for token in item.tokens], got[
        -1
    ].usage.cached_tokens


async def test_an_adapter_changes_answers_and_the_namespace_and_shares_no_prefix(tmp_path: Path) -> None:
    model = write_model(tmp_path / "tiny.gguf", "falcon-h1")
    adapter = write_adapter(tmp_path / "adapter.gguf", "falcon-h1")
    plain = EngineSettings(
        model, threads=1, cells=1024, slots=2, sequences=9, ram_tier_mib=64, cache_dir=tmp_path / "c"
    )
    namespaces, tokens = [], []
    with trio.fail_after(120):
        for settings in (plain, replace(plain, lora_path=adapter, model_name="adapted"), plain):
            async with open_engine(settings) as engine:
                namespaces.append(engine.info.namespace)
                got, cached = await answer(engine)
                tokens.append(got)
                assert bool(cached) == (len(tokens) == 3), "only the same model finds its own files again"
    assert namespaces[0] == namespaces[2] != namespaces[1]
    assert tokens[0] == tokens[2] != tokens[1]


async def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    model = write_model(tmp_path / "tiny.gguf", "falcon-h1")
    adapter = write_adapter(tmp_path / "adapter.gguf", "lfm2")
    with trio.fail_after(60), pytest.raises(LocalError, match="cannot use the adapter"):
        async with open_engine(EngineSettings(model, threads=1, cells=1024, lora_path=adapter)):
            raise AssertionError("it was loaded")
