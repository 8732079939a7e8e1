"""Several engines in real processes, without a model; one test has real models."""

from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from mycelia.node.engine.engine import Engine, EngineAccepted, EngineDone, EngineFailed, EngineItem, EngineRequest
from mycelia.node.engine.models import resolve_model
from mycelia.node.engine.pool import pooled
from mycelia.node.engine.pool.pool import EnginePool, PoolModel, open_pool
from mycelia.node.engine.settings import EngineSettings
from mycelia.node.errors import BusyError
from mycelia.proto.cache.tier import MIB
from mycelia.proto.loading.events import Declared
from mycelia.proto.loading.loader import Loader
from mycelia.proto.loading.plan import KEPT_SHARE
from mycelia.proto.wire.errors import LocalError
from mycelia.proto.wire.messages import Sampling

DEADLINE_S = 60.0
AMPLE = 4_096 * MIB
TALKATIVE = [169]
"""The fake model answers it with 322 tokens, which takes 6 s."""


def fake(name: str, stays: bool = True) -> PoolModel:
    return PoolModel(EngineSettings(Path(name), name, slots=2, fake=True), stays)


def request(prompt: list[int], max_tokens: int = 4) -> EngineRequest:
    return EngineRequest(bytes(16), prompt, Sampling(max_tokens=max_tokens))


async def answer(engine: Engine, prompt: list[int], max_tokens: int = 4) -> EngineItem:
    """The last item."""
    async with engine.generate(request(prompt, max_tokens)) as items:
        return [item async for item in items][-1]


def states(*engines: Engine) -> list[str]:
    return [engine.residence.state for engine in engines]


async def engines_of(pool: EnginePool) -> list[Engine]:
    return [await pool.first(), *[engine async for engine in pool.later()]]


async def test_models_that_do_not_fit_together_take_turns_and_come_back_known(tmp_path: Path) -> None:
    with trio.fail_after(DEADLINE_S):
        async with open_pool([fake("fake-a"), fake("fake-b")], tmp_path, AMPLE) as pool:
            one, other = await engines_of(pool)
            assert one.info.namespace != other.info.namespace
            assert states(one, other) == ["loaded", "loaded"]
            need = max(one.residence.memory_bytes, other.residence.memory_bytes)
            assert need > 64 * MIB
        # A second run knows the models without loading them, and has memory for one of them.
        async with open_pool(
            [fake("fake-a"), fake("fake-b", False)], tmp_path, int(1.5 * need / (1 - KEPT_SHARE))
        ) as pool:
            one, other = await engines_of(pool)
            assert states(one, other) == ["loaded", "unloaded"]
            vitals = other.vitals()
            assert vitals.slots == 2 and vitals.queued_tokens > 0
            assert isinstance(await answer(one, [1, 2, 3]), EngineDone)
            assert isinstance(await answer(other, [1, 2, 3]), EngineDone)
            assert states(one, other) == ["unloaded", "loaded"]
            async with trio.open_nursery() as nursery:  # (all of them wait for one load)
                ended = list[EngineItem]()

                async def ask() -> None:
                    ended.append(await answer(one, [1, 2, 3]))

                for _ in range(3):
                    nursery.start_soon(ask)
            assert [type(item) for item in ended] == [EngineDone] * 3
            assert states(one, other) == ["loaded", "unloaded"]


async def test_an_answer_for_a_peer_without_an_end_does_not_keep_the_owners_other_model_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pooled, "PEERS_END_S", 0.0)
    with trio.fail_after(DEADLINE_S):
        async with open_pool([fake("fake-a"), fake("fake-b")], tmp_path, AMPLE) as pool:
            need = max(engine.residence.memory_bytes for engine in await engines_of(pool))
        budget = int(1.5 * need / (1 - KEPT_SHARE))
        async with open_pool([fake("fake-a", False), fake("fake-b", False)], tmp_path, budget) as pool:
            one, other = await engines_of(pool)
            endless = replace(request(TALKATIVE, 131_072), client=b"peer", subnet="203.0.113.0/24")
            async with one.generate(endless) as items, trio.open_nursery() as nursery:
                assert isinstance(await anext(items), EngineAccepted)
                ended = list[EngineItem]()

                async def read() -> None:
                    ended.extend([item async for item in items][-1:])

                nursery.start_soon(read)
                assert isinstance(await answer(other, [1, 2, 3]), EngineDone)
            assert ended == [EngineFailed("engine_lost", "the engine process died", True)], "it goes on elsewhere"


async def test_one_network_cannot_take_all_places_of_a_model_that_is_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pooled, "MAX_WAITING", 10)
    loader = Loader([Declared("a", 1, 1.0)], AMPLE)
    engine = pooled.PooledEngine("a", EngineSettings(Path("a"), "a", fake=True), None, loader, lambda event: None)
    refused = list[str]()

    async def ask(client: str, subnet: str) -> None:
        try:
            await engine.tokenize_text("x", client.encode(), subnet)
        except BusyError as exc:
            refused.append(f"{client}: {exc}")

    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(ask, f"key {number}", "203.0.113.0/24")
        await trio.testing.wait_all_tasks_blocked()
        assert engine.vitals().waiting_requests == 2 and len(refused) == 8
        for client, subnet in (("other", "198.51.100.0/24"), ("", "")):
            nursery.start_soon(ask, client, subnet)
        await trio.testing.wait_all_tasks_blocked()
        assert engine.vitals().waiting_requests == 4 and len(refused) == 8
        nursery.cancel_scope.cancel()
    assert engine.vitals().waiting_requests == 0


async def test_a_model_that_does_not_fit_is_refused_with_the_sizes(tmp_path: Path) -> None:
    with trio.fail_after(DEADLINE_S):
        async with open_pool([fake("fake-a")], tmp_path, 16 * MIB) as pool:
            with pytest.raises(LocalError, match="--memory"):
                await pool.first()


async def test_a_model_that_cannot_be_loaded_leaves_the_others_alone(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(resolve_model("smollm2").read_bytes()[:100_000])
    models = [fake("fake-a"), PoolModel(EngineSettings(broken, "broken"))]
    with trio.fail_after(DEADLINE_S):
        async with open_pool(models, tmp_path, AMPLE) as pool:
            (one,) = await engines_of(pool)
            assert isinstance(await answer(one, [1]), EngineDone)


async def test_a_cancelled_wait_leaves_nothing_behind(tmp_path: Path) -> None:
    with trio.fail_after(DEADLINE_S):
        async with open_pool([fake("fake-a", False)], tmp_path, AMPLE) as pool:
            async with AsyncExitStack() as stack:
                scope = stack.enter_context(trio.CancelScope())
                scope.cancel()
                await pool.first()
            engine = await pool.first()
            assert isinstance(await answer(engine, [1]), EngineDone)
            assert engine.vitals().waiting_requests == 0


async def test_prefixes_survive_the_unload(tmp_path: Path) -> None:
    """SmolLM2 makes room for another model, comes back, and finds its prompts."""
    real = PoolModel(EngineSettings(resolve_model("smollm2"), "smollm2", threads=1, cells=1024, slots=2))
    prompt = [5 + number % 900 for number in range(400)]
    with trio.fail_after(3 * DEADLINE_S):
        async with open_pool([real, fake("fake-b", False)], tmp_path, AMPLE) as pool:
            engines = await engines_of(pool)
            need = engines[0].residence.memory_bytes
        async with open_pool([real, fake("fake-b", False)], tmp_path, int(1.1 * need / (1 - KEPT_SHARE))) as pool:
            one, other = await engines_of(pool)
            first = await answer(one, prompt)
            assert isinstance(first, EngineDone) and first.usage.cached_tokens == 0
            assert isinstance(await answer(other, [1, 2, 3]), EngineDone)
            assert not one.residence.is_loaded
            again = await answer(one, prompt)
            assert isinstance(again, EngineDone) and again.usage.cached_tokens >= 0.9 * len(prompt)
            assert not isinstance(again, EngineFailed)


async def test_models_come_and_go_while_the_pool_runs(tmp_path: Path) -> None:
    with trio.fail_after(DEADLINE_S):
        async with open_pool([fake("fake-a", False)], tmp_path, AMPLE) as pool:
            await pool.first()
            other = await pool.add(fake("fake-b"))
            assert pool.names == {"fake-a", "fake-b"} and 0 < pool.room_beside("") < pool.room_beside("fake-b")
            with pytest.raises(LocalError, match="already"):
                await pool.add(fake("fake-b"))
            async with trio.open_nursery() as nursery, other.generate(request([1, 2, 3], max_tokens=64)) as items:
                first = await anext(items)
                nursery.start_soon(pool.remove, "fake-b")
                rest = [item async for item in items]
            assert not isinstance(first, EngineFailed) and isinstance(rest[-1], EngineDone), "what has begun ends"
            assert pool.names == {"fake-a"}
            refused = await answer(other, [1])
            assert isinstance(refused, EngineFailed) and refused.retryable
            again = await pool.add(fake("fake-b"))
            assert isinstance(await answer(again, [1]), EngineDone) and pool.asked_per_hour("fake-b") > 0


async def test_a_model_that_cannot_be_loaded_does_not_come(tmp_path: Path) -> None:
    with trio.fail_after(DEADLINE_S):
        async with open_pool([fake("fake-a", False)], tmp_path, 200 * MIB) as pool:
            await pool.first()
            large = tmp_path / "large.gguf"
            large.write_bytes(b"")
            with large.open("r+b") as file:
                file.truncate(10**9)
            with pytest.raises(LocalError, match="--memory"):
                await pool.add(PoolModel(EngineSettings(large, "large")))
            assert pool.names == {"fake-a"}
