"""The real engine with the real model. Checks are grouped, because every engine is a process that loads 98 MB."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio

from mycelia.node.engine import ipc, pipe, process
from mycelia.node.engine.engine import (
    FIRST_EDGE_ID,
    EngineAccepted,
    EngineDone,
    EngineFailed,
    EngineItem,
    EngineRequest,
    EngineTokens,
)
from mycelia.node.engine.models import resolve_model
from mycelia.node.engine.process import ProcessEngine, open_engine
from mycelia.node.engine.prompts import TooLongError
from mycelia.node.engine.settings import EngineSettings
from mycelia.proto.cache.radix import RadixTree
from mycelia.proto.cache.sharing import plain
from mycelia.proto.wire.errors import LocalError
from mycelia.proto.wire.messages import ChatMessage, Conversation, Sampling
from tests.node.engine.gguf_files import quick_model

LIMIT_S = 180
"""Time limit of a test: beside other work a minute was too short."""
STORY = "The river ran past the old mill, and every morning the miller counted his sacks. "


@asynccontextmanager
async def engine(cells: int = 1024, slots: int = 8, model: Path | None = None) -> AsyncIterator[ProcessEngine]:
    """A small engine, checked after every request, with a time limit for the whole test."""
    path = model or quick_model()
    settings = EngineSettings(path, "smollm2", threads=1, cells=cells, slots=slots, check=True)
    with trio.fail_after(LIMIT_S):
        async with open_engine(settings) as running:
            yield running


def request(prompt: Sequence[int], max_tokens: int = 8, temperature: float = 0.0) -> EngineRequest:
    return EngineRequest(b"r" * 16, prompt, Sampling(max_tokens=max_tokens, temperature=temperature, seed=11))


async def answer(running: ProcessEngine, wanted: EngineRequest) -> list[EngineItem]:
    async with running.generate(wanted) as items:
        return [item async for item in items]


def text_of(items: Sequence[EngineItem]) -> bytes:
    return b"".join(item.text for item in items if isinstance(item, EngineTokens))


def tokens_of(items: Sequence[EngineItem]) -> list[int]:
    return [token for item in items if isinstance(item, EngineTokens) for token in item.tokens]


def done(items: Sequence[EngineItem]) -> EngineDone:
    last = items[-1]
    assert isinstance(last, EngineDone), last
    return last


def failed(items: Sequence[EngineItem]) -> EngineFailed:
    assert len(items) == 1
    last = items[-1]
    assert isinstance(last, EngineFailed), last
    return last


async def chat(running: ProcessEngine, text: str) -> list[int]:
    return list(await running.tokenize_chat(Conversation((ChatMessage(role="user", content=text),))))


async def until_idle(running: ProcessEngine) -> None:
    """Send a short request through the same loop: after its answer, earlier cancels are handled."""
    done(await answer(running, request([5], 1)))


async def test_answers_reuse_and_refusals() -> None:
    async with engine() as running:
        assert running.info.reuse == "prefix" and running.info.context_tokens == 1024
        prompt = await chat(running, STORY * 6 + "What is the capital of France?")
        first, second = [await answer(running, request(prompt)) for _ in range(2)]
        assert isinstance(first[0], EngineAccepted) and first[0].cached_tokens == 0
        assert done(second).usage.cached_tokens == len(prompt) - 1 == done(first).usage.prompt_tokens - 1
        assert text_of(first) == text_of(second) != b""

        # The next turn contains the prompt and the answer of the first one.
        turn = [*prompt, *tokens_of(first), *await chat(running, "And of Italy?")]
        assert done(await answer(running, request(turn))).usage.cached_tokens >= len(prompt)

        # A resumed answer: prompt and half of an answer, as after the loss of another node. Same seed, same stream.
        whole = tokens_of(await answer(running, request(prompt, 8, temperature=0.8)))
        resumed = EngineRequest(b"r" * 16, [*prompt, *whole[:4]], Sampling(max_tokens=4, temperature=0.8, seed=11), 4)
        assert len(tokens_of(await answer(running, resumed))) <= 4

        bad = [([], "bad_request"), ([10**9], "bad_request"), ([-1], "bad_request"), ([1] * 1024, "too_long")]
        for tokens, code in bad:
            assert failed(await answer(running, request(tokens))).code == code
        long = done(await answer(running, request([5, 6, 7], 3)))
        assert long.reason in ("length", "stop") and long.usage.completion_tokens <= 3
        with pytest.raises(LocalError, match="at least one message"):
            await running.tokenize_chat(Conversation(()))

        # Control tokens spelled by a user stay text.
        attack = await chat(running, "<|im_end|>" * 20)
        assert attack.count(2) == (await chat(running, "x")).count(2)
        assert running.vitals().prefill_rate > 0 and running.vitals().active_requests == 0

        # Tokens are spelled as they are, control tokens too.
        (spelled,) = await running.detokenize([await chat(running, "x")])
        assert spelled.endswith("<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n")

        # A question that the child's threads cannot answer must not end the child.
        for sequence in ([10**6], [-1], [2**40]):
            with pytest.raises(LocalError):
                await running.detokenize([[5, 6], sequence])
        with pytest.raises(TooLongError, match="maximum context length is 1024 tokens"):
            await chat(running, "7" * (pipe.MAX_FRAME_BYTES // 4 + 1))
        for text in ("\ud800", "7" * (5 * pipe.MAX_FRAME_BYTES // 4)):
            with pytest.raises(LocalError):
                await chat(running, text)
        # The largest seed is valid.
        last_seed = EngineRequest(b"r" * 16, prompt, Sampling(max_tokens=8, temperature=5.0, seed=2**32 - 1))
        assert len({tuple(tokens_of(await answer(running, last_seed))) for _ in range(4)}) == 1
        assert running.num_restarts == 0


async def test_many_at_once_cancels_and_the_mirror() -> None:
    async with engine() as running:
        tree = RadixTree()
        prompts = [await chat(running, STORY * 5 + f"Question {i}: who counted?") for i in range(4)]
        results: dict[int, list[EngineItem]] = {}

        async def ask(i: int) -> None:
            results[i] = await answer(running, request(prompts[i], 6))

        async with trio.open_nursery() as nursery:
            for i in range(4):
                nursery.start_soon(ask, i)
        # The shared beginning was computed once: three of the four requests found it.
        cached = sorted(done(items).usage.cached_tokens for items in results.values())
        assert cached[0] == 0 and cached[1] > 80

        # Cancel in the middle of a decode, then of a long prefill, then in the queue.
        async with running.generate(request(prompts[0], 300)) as items:
            async for item in items:
                if isinstance(item, EngineTokens):
                    break
        long = list(range(100, 1000))
        async with running.generate(request(long, 5)) as items:
            assert await anext(items) == EngineAccepted(0)
            async with running.generate(request([9] * 400, 5)):
                pass
        await until_idle(running)
        assert running.vitals().active_requests == running.vitals().waiting_requests == 0
        # The prefill stopped in the middle: when asked again, only a part of it is cached.
        async with running.generate(request(long, 5)) as items:
            accepted = await anext(items)
            assert isinstance(accepted, EngineAccepted) and accepted.cached_tokens < len(long) - 1

        # A reader that never reads delays no other request, and gets everything in the end.
        async with running.generate(request(prompts[1], 20)) as slow:
            done(await answer(running, request(prompts[2], 20)))
            late = [item async for item in slow]
        assert done(late).usage.completion_tokens == len(tokens_of(late))

        # More than the cache holds: old leaves are evicted, and the parent's mirror follows.
        for first in range(3):
            filler = await answer(running, request([200 + first] * 400, 2))
            assert done(filler).usage.prompt_tokens == 400
        change = await running.cache_changes()
        assert not change.reset
        for seq_id in change.evicted:
            tree.remove(seq_id)
        cells = [(seq_id, path) for seq_id, path in change.stored if seq_id < FIRST_EDGE_ID]
        # Prefixes that left the cells are still reported, from memory.
        saved = [plain(path) for seq_id, path in change.stored if seq_id >= FIRST_EDGE_ID]
        assert any(tokens[: len(prompts[0])] == prompts[0] for tokens in saved)
        for seq_id, path in cells:
            assert tree.insert(plain(path), seq_id, 0.0) == []
        assert tree.match([202] * 400)[0] == 400 and tree.match(prompts[0])[0] < len(prompts[0])
        assert tree.num_tokens <= 1024
        assert running.num_restarts == 0


async def test_more_than_a_thousand_requests_at_once_are_answered_or_refused() -> None:
    count = process.MAX_IN_FLIGHT + 50
    async with engine() as running:
        last: list[EngineItem] = []

        async def ask(i: int) -> None:
            shared = [300] * 40 if i % 2 else []
            last.append((await answer(running, request([*shared, 400 + i, 7], 1)))[-1])

        async with trio.open_nursery() as nursery:
            for i in range(count):
                nursery.start_soon(ask, i)
        assert len(last) == count
        refusals = [item for item in last if isinstance(item, EngineFailed)]
        assert all(item.code == "overloaded" and item.retryable for item in refusals)
        assert sum("in flight" in item.message for item in refusals) == 50
        answered = [item for item in last if isinstance(item, EngineDone)]
        # The queue holds 64 requests, and half of that of one client; no request is refused before.
        assert len(answered) >= 32 and len(answered) + len(refusals) == count
        await until_idle(running)
        assert running.vitals().waiting_requests == running.vitals().active_requests == 0
        assert running.num_restarts == 0


async def test_a_child_that_is_killed_again_and_again_is_replaced_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "FIRST_PAUSE_S", 0.01)
    async with engine(slots=2) as running:
        prompt = await chat(running, "Tell me a long story.")
        tree = RadixTree()
        for kill in range(1, 6):
            # One request decodes, one prefills, one waits.
            wanted = [request(prompt, 400), request([100 + kill] * 400, 9), request([7] * 50, 9)]
            async with AsyncExitStack() as stack:
                answers = [await stack.enter_async_context(running.generate(one)) for one in wanted]
                while not isinstance(await anext(answers[0]), EngineTokens):
                    pass
                await follow(running, tree, until=lambda: tree.num_tokens > 0)
                assert running.pid is not None
                os.kill(running.pid, signal.SIGKILL)
                for items in answers:
                    assert [item async for item in items][-1] == LOST
            await follow(running, tree, until=lambda: tree.num_tokens == 0)
            assert failed(await answer(running, request(prompt))) == RESTARTING
            # Tokenizing waits for the new child.
            assert await chat(running, "Tell me a long story.") == prompt
            assert done(await answer(running, request(prompt, 4))).usage.cached_tokens == 0
            assert running.num_restarts == kill


LOST = EngineFailed("engine_lost", "the engine process died", True)
RESTARTING = EngineFailed("overloaded", "the engine is restarting", True)


async def follow(running: ProcessEngine, tree: RadixTree, until: Callable[[], bool]) -> None:
    """Apply the engine's cache changes to ``tree``, as a node does."""
    while not until():
        change = await running.cache_changes()
        if change.reset:
            tree.clear()
        for seq_id in change.evicted:
            if seq_id in tree:
                tree.remove(seq_id)
        for seq_id, tokens in change.stored:
            if seq_id < FIRST_EDGE_ID:
                tree.insert(tokens, seq_id, 0.0)


async def test_a_request_ends_at_its_deadline_and_what_it_computed_is_kept() -> None:
    async with engine() as running:
        prompt = await chat(running, "Tell me a long story.")
        late = EngineRequest(b"r" * 16, prompt, Sampling(max_tokens=900), deadline_s=0.5)
        *before, last = await answer(running, late)
        assert last == EngineFailed("deadline", "the answer was not finished in the time it was given", False)
        assert tokens_of(before), "a slow machine: it got no token in time"
        again = EngineRequest(b"r" * 16, prompt, Sampling(max_tokens=1), deadline_s=50.0)
        assert done(await answer(running, again)).usage.cached_tokens == len(prompt) - 1
        no_time = EngineRequest(b"r" * 16, prompt, Sampling(max_tokens=1), deadline_s=-1.0)
        assert failed(await answer(running, no_time)).code == "deadline"
        assert running.vitals().active_requests == 0 and running.num_restarts == 0


async def test_no_child_outlives_its_parent(tmp_path: Path) -> None:
    script = """
        import sys, trio
        from mycelia.node.engine.engine import EngineRequest
        from mycelia.node.engine.models import resolve_model
        from mycelia.node.engine.process import open_engine
        from mycelia.node.engine.settings import EngineSettings
        from mycelia.node.log import configure
        from mycelia.proto.wire.messages import Sampling

        configure()  # The log goes to stderr: stdout is read below.

        async def main():
            async with open_engine(EngineSettings(resolve_model("smollm2"), cells=2048)) as engine:
                async with engine.generate(EngineRequest(b"r" * 16, [7] * 2000, Sampling(max_tokens=9))) as items:
                    await anext(items)  # A long prefill runs now.
                    print(engine.pid, flush=True)
                    await trio.sleep_forever()

        trio.run(main)
    """
    root = Path(__file__).parents[3]
    with trio.fail_after(LIMIT_S):
        parent = await trio.lowlevel.open_process(
            [sys.executable, "-c", textwrap.dedent(script)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(root)},
        )
        assert parent.stdout is not None
        try:
            child = int(await parent.stdout.receive_some())
            # The pidfd reports the end of the process, independent of its present parent.
            watch = os.pidfd_open(child)
            try:
                parent.kill()
                await trio.lowlevel.wait_readable(watch)
            finally:
                os.close(watch)
        finally:
            parent.kill()
            await parent.wait()
            await parent.stdout.aclose()


async def test_files_that_cannot_be_loaded_are_one_clear_line(tmp_path: Path) -> None:
    whole = quick_model().read_bytes()
    layers = whole.index(b"block_count") + len("block_count") + 4
    cases = {
        "cut.gguf": whole[: len(whole) // 2],
        "head.gguf": whole[:5000],
        "junk.gguf": b"GGUF" + b"\xff" * 999,
        "layers.gguf": whole[:layers] + b"\xff" * 4 + whole[layers + 4 :],  # llama.cpp abort()s
    }
    with trio.fail_after(LIMIT_S):
        for name, data in cases.items():
            path = tmp_path / name
            path.write_bytes(data)
            with pytest.raises(LocalError, match="cannot load the model") as caught:
                async with open_engine(EngineSettings(path)):
                    pass
            assert "\n" not in str(caught.value) and name in str(caught.value)
            assert "vendor/" not in str(caught.value), "a path of the machine that compiled llama.cpp"
        with pytest.raises(LocalError, match="No such file"):
            async with open_engine(EngineSettings(tmp_path / "none.gguf")):
                pass


STUB = """
import sys
pipe, out = sys.stdin.buffer, sys.stdout.buffer
pipe.read(int.from_bytes(pipe.read(4), "little"))  # what to load
for said in {said!r}:
    out.write(said), out.flush()
    pipe.read(4)
pipe.read()
"""


def stub_worker(monkeypatch: pytest.MonkeyPatch, *said: bytes) -> None:
    """Replace the child by one that sends ``said``, one entry for each message it gets."""
    monkeypatch.setattr(process, "WORKER_COMMAND", (sys.executable, "-c", STUB.format(said=said)))


NONSENSE = {
    "a length beyond all bounds": b"\xff\xff\xff\xff",
    "no message": b"\x03\0\0\0abc",
    "tokens that are none": pipe.encode(ipc.Generated(1, b"odd", b"")),
}


@pytest.mark.parametrize("garbage", NONSENSE.values(), ids=NONSENSE)
async def test_a_child_that_talks_nonsense_is_ended(monkeypatch: pytest.MonkeyPatch, garbage: bytes) -> None:
    settings = EngineSettings(resolve_model("smollm2"))
    with trio.fail_after(LIMIT_S):
        stub_worker(monkeypatch, garbage)
        with pytest.raises(LocalError, match=r"nonsense|claims"):
            async with open_engine(settings):
                pass
        stub_worker(monkeypatch, pipe.encode(ipc.Loaded(bytes(16), 100, 100, "prefix")), garbage)
        async with open_engine(settings) as running:
            with pytest.raises(LocalError, match="the engine process died"):
                await chat(running, "x")
            assert (await running.cache_changes()).reset


async def test_every_child_takes_as_many_cells_as_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    with trio.fail_after(LIMIT_S):
        stub_worker(monkeypatch, pipe.encode(ipc.Loaded(bytes(16), 100, 100, "prefix", cells=4096)))
        async with open_engine(EngineSettings(resolve_model("smollm2"))) as running:
            assert running.num_cells == 4096


async def test_a_child_that_has_loaded_has_slots_before_it_says_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that reports no slots gets no requests."""
    with trio.fail_after(LIMIT_S):
        stub_worker(monkeypatch, pipe.encode(ipc.Loaded(bytes(16), 100, 100, "prefix")))
        async with open_engine(EngineSettings(resolve_model("smollm2"), slots=3)) as running:
            assert running.vitals().slots == 3


async def test_a_child_that_is_stuck_at_loading_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    stub_worker(monkeypatch)
    monkeypatch.setattr(process, "LOAD_DEADLINE_S", 0.01, raising=False)
    with trio.fail_after(LIMIT_S), pytest.raises(LocalError, match="did not load"):
        async with open_engine(EngineSettings(resolve_model("smollm2"))):
            pass


async def test_the_blocks_own_errors_come_out_bare() -> None:
    with pytest.raises(ZeroDivisionError):
        async with engine():
            raise ZeroDivisionError
