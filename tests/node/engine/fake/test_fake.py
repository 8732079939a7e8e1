"""The fake engine behaves like the real one in all that tests rely on."""

from collections.abc import Sequence

import pytest
import trio
from trio.testing import MockClock

from mycelia.node.engine.engine import (
    COALESCE_S,
    Engine,
    EngineAccepted,
    EngineDone,
    EngineFailed,
    EngineItem,
    EngineRequest,
    EngineTokens,
)
from mycelia.node.engine.fake.engine import FakeEngine
from mycelia.node.engine.fake.settings import FakeSettings
from mycelia.node.engine.process import ProcessEngine
from mycelia.proto.cache.sharing import plain
from mycelia.proto.wire.errors import LocalError
from mycelia.proto.wire.messages import ChatMessage, Conversation, Sampling


def request(prompt: Sequence[int], max_tokens: int = 8) -> EngineRequest:
    return EngineRequest(b"r" * 16, prompt, Sampling(max_tokens=max_tokens))


async def answer(engine: FakeEngine, prompt: Sequence[int], max_tokens: int = 8) -> list[EngineItem]:
    async with engine.generate(request(prompt, max_tokens)) as items:
        return [item async for item in items]


def tokens_of(items: Sequence[EngineItem]) -> list[int]:
    return [token for item in items if isinstance(item, EngineTokens) for token in item.tokens]


def both_are_engines(real: ProcessEngine, fake: FakeEngine) -> tuple[Engine, Engine]:
    """Only for the type checker."""
    return real, fake


async def test_answers_are_deterministic_and_cached() -> None:
    engine = FakeEngine()
    prompt = await engine.tokenize_chat(Conversation((ChatMessage(role="user", content="hello"),)))
    first, second = await answer(engine, prompt), await answer(engine, prompt)
    assert tokens_of(first) == tokens_of(second) != []
    assert first[0] == EngineAccepted(0) and second[0] == EngineAccepted(len(prompt) - 1)
    done = second[-1]
    assert isinstance(done, EngineDone)
    assert done.usage.prompt_tokens == len(prompt) and done.usage.cached_tokens == len(prompt) - 1
    change = await engine.cache_changes()
    assert [plain(path) for _, path in change.stored] == [[*prompt, *tokens_of(first)]]


async def test_an_answer_goes_on_elsewhere_as_it_would_have_here() -> None:
    whole = tokens_of(await answer(FakeEngine(), [1, 2, 4], 10))
    broken = FakeEngine()
    broken.fail_next(after_tokens=4)
    items = await answer(broken, [1, 2, 4], 10)
    assert items[-1] == EngineFailed("engine_lost", "the engine process died", True)
    got = tokens_of(items)
    assert got == whole[:4]
    assert got + tokens_of(await run(FakeEngine(), [1, 2, 4, *got], Sampling(max_tokens=6), 4)) == whole


async def test_a_crash_ends_what_is_in_flight_and_empties_the_cache() -> None:
    engine = FakeEngine()
    await answer(engine, [1, 2, 4])
    async with engine.generate(request([4, 5, 6])) as items:
        assert isinstance(await anext(items), EngineAccepted)
        engine.crash()
        rest = [item async for item in items]
    assert isinstance(rest[-1], EngineFailed) and rest[-1].retryable
    assert (await engine.cache_changes()).reset
    assert (await answer(engine, [1, 2, 4]))[0] == EngineAccepted(0)


async def test_slots_make_requests_wait(autojump_clock: MockClock) -> None:
    engine = FakeEngine(FakeSettings(slots=1, prefill_rate=100.0, decode_rate=10.0))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer, engine, [1] * 200, 1)
        nursery.start_soon(answer, engine, [2] * 100, 1)
        await trio.sleep(1.0)
        vitals = engine.vitals()
        assert (vitals.active_requests, vitals.waiting_requests, vitals.slots) == (1, 1, 1)
    assert trio.current_time() == pytest.approx(2 + 0.1 + 1 + 0.1, abs=0.2)
    assert engine.vitals().active_requests == 0


async def test_leaving_early_cancels(autojump_clock: MockClock) -> None:
    engine = FakeEngine(FakeSettings(decode_rate=1.0))
    async with engine.generate(request([7, 7, 7])) as items:
        assert isinstance(await anext(items), EngineAccepted)
        assert isinstance(await anext(items), EngineTokens)
    assert engine.num_cancelled == 1 and engine.vitals().active_requests == 0


async def test_bad_requests_fail_politely() -> None:
    engine = FakeEngine(FakeSettings(cells=16))
    for prompt, code in (([], "bad_request"), ([999], "bad_request"), ([1] * 16, "too_long")):
        (item,) = await answer(engine, prompt)
        assert isinstance(item, EngineFailed) and item.code == code
    with pytest.raises(LocalError):
        await engine.tokenize_chat(Conversation(()))


async def test_old_leaves_are_evicted() -> None:
    engine = FakeEngine(FakeSettings(cells=40))
    await answer(engine, [1] * 20, 1)
    await answer(engine, [2] * 20, 1)
    change = await engine.cache_changes()
    assert [plain(path)[0] for _, path in change.stored] == [2]


async def run(engine: FakeEngine, prompt: Sequence[int], sampling: Sampling, resumed: int = 0) -> list[EngineItem]:
    async with engine.generate(EngineRequest(b"r" * 16, prompt, sampling, resumed)) as items:
        return [item async for item in items]


def text_of(items: Sequence[EngineItem]) -> bytes:
    return b"".join(item.text for item in items if isinstance(item, EngineTokens))


async def test_every_answer_begins_with_a_letter() -> None:
    for seed in range(300):
        items = await run(FakeEngine(), [1, 2, 4], Sampling(max_tokens=4, temperature=1.0, seed=seed))
        assert text_of(items)[:1].isalpha()


async def test_stop_strings_cut_the_text_and_survive_a_move() -> None:
    whole = text_of(await answer(FakeEngine(), [1, 2, 4], 30))
    stop = whole[5:8].decode()
    sampling = Sampling(max_tokens=30, stop=(stop,))
    items = await run(FakeEngine(), [1, 2, 4], sampling)
    done = items[-1]
    assert text_of(items) == whole[: whole.index(stop.encode())] and isinstance(done, EngineDone)
    assert done.reason == "stop" and done.usage.completion_tokens == len(tokens_of(items))
    for lost_after in range(1, len(tokens_of(items)) + 1):
        broken = FakeEngine()
        broken.fail_next(lost_after)
        first = await run(broken, [1, 2, 4], sampling)
        got = tokens_of(first)
        rest = await run(FakeEngine(), [1, 2, 4, *got], sampling, len(got))
        assert text_of(first) + text_of(rest) == text_of(items)
    all_but_the_end = await run(FakeEngine(), [1, 2, 4, *tokens_of(items)], sampling, len(tokens_of(items)))
    assert tokens_of(all_but_the_end) == [] and isinstance(all_but_the_end[-1], EngineDone)


async def test_options_that_no_peer_would_accept_are_refused() -> None:
    for sampling in (
        Sampling(max_tokens=4, stop=("x" * 10_000,)),
        Sampling(max_tokens=-1),
        Sampling(max_tokens=4, logit_bias=b"1234"),
        Sampling(max_tokens=4, grammar="root"),
    ):
        (item,) = await run(FakeEngine(), [1], sampling)
        assert isinstance(item, EngineFailed) and item.code == "bad_request"


async def test_tokens_share_items_as_the_real_loop_sends_them(autojump_clock: MockClock) -> None:
    single = await answer(FakeEngine(FakeSettings(decode_rate=50.0)), [1, 2, 4], 20)
    shared = await answer(FakeEngine(FakeSettings(decode_rate=50.0, coalesce_s=COALESCE_S)), [1, 2, 4], 20)
    assert tokens_of(shared) == tokens_of(single)
    sizes = [len(item.tokens) for item in shared if isinstance(item, EngineTokens)]
    assert sizes[0] == 1 and max(sizes) > 1 and sum(sizes) == 20
