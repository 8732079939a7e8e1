"""The engine process of ``mycelia node --model fake``: letters without a model, as slow as a small GPU, at no cost.

It speaks the same protocol with ``process.py`` as ``child/worker.py``, so that everything around the engine is real. It
serves to try whole swarms on one machine, and to measure the cost of a node without its engine. Without a model there
is no step loop and nothing to abort: a ``Pong`` means that this process is alive.
"""

import os
import signal
import sys
import time
from functools import partial
from typing import assert_never

import trio

from mycelia.node.engine import ipc, pipe
from mycelia.node.engine.engine import (
    COALESCE_S,
    EngineAccepted,
    EngineDone,
    EngineFailed,
    EngineItem,
    EnginePromptLogprobs,
    EngineRequest,
    EngineTokens,
)
from mycelia.node.engine.fake.engine import FakeEngine
from mycelia.node.engine.fake.settings import FakeSettings
from mycelia.node.engine.kinds import EMBEDDING, RERANK, TEXT
from mycelia.node.engine.prompts import TooLongError
from mycelia.proto.wire.blocks import pack_tokens, unpack_tokens
from mycelia.proto.wire.errors import LimitExceeded, LocalError

PREFILL_RATE, DECODE_RATE = 5_000.0, 50.0
"""Tokens/s of one request: about a model of 8 B parameters on a consumer GPU. Measurements depend on these rates only
through the rate of frames, each with five tokens."""


class FakeService:
    def __init__(self, engine: FakeEngine, replies: pipe.Replies, nursery: trio.Nursery) -> None:
        self._engine = engine
        self._replies = replies
        self._nursery = nursery
        self._requests: dict[int, trio.CancelScope] = {}
        self._said = trio.Event()

    def _say(self, message: ipc.FromChild) -> None:
        self._replies.put(message)
        self._said.set()

    async def write(self) -> None:
        """Write until cancelled. Messages of one moment share a write, like those of a step of the real loop."""
        while True:
            await self._said.wait()
            for _ in range(2):  # rounds in which other tasks notice what has just happened
                await trio.lowlevel.checkpoint()
            self._said = trio.Event()
            self._replies.flush()

    def handle(self, message: ipc.ToChild) -> None:
        match message:
            case ipc.Submit():
                scope = self._requests[message.key] = trio.CancelScope()
                self._nursery.start_soon(self._answer, message, scope)
            case ipc.Cancel():
                if message.key in self._requests:
                    self._requests[message.key].cancel()
            case ipc.Render() | ipc.Parse() | ipc.Pair():
                self._nursery.start_soon(self._render, message)
            case ipc.Spell():
                self._nursery.start_soon(self._spell, message)
            case ipc.Embed():
                self._nursery.start_soon(self._embed, message)
            case ipc.Resize():
                pass
            case ipc.Ping():
                self._say(ipc.Pong(is_decoding=False, busy_s=0.0))
            case ipc.Load():
                raise LocalError("a second Load")
            case _:
                assert_never(message)

    async def _answer(self, message: ipc.Submit, scope: trio.CancelScope) -> None:
        request = EngineRequest(
            request_id=b"",
            prompt=unpack_tokens(message.prompt),
            sampling=message.sampling,
            resumed_tokens=message.resumed_tokens,
            deadline_s=None if message.due_s is None else max(0.0, message.due_s - time.monotonic()),
            client=message.client,
            subnet=message.subnet,
            owner=message.owner,
            open_tokens=message.open_tokens,
        )
        try:
            with scope:
                async with self._engine.generate(request) as items:
                    async for item in items:
                        self._say(_reply(message.key, item))
        finally:
            del self._requests[message.key]

    async def _render(self, message: ipc.Render | ipc.Parse | ipc.Pair) -> None:
        try:
            if isinstance(message, ipc.Parse):
                tokens = await self._engine.tokenize_text(message.text)
            elif isinstance(message, ipc.Pair):
                tokens = await self._engine.tokenize_pair(message.query, message.document)
            else:
                tokens = await self._engine.tokenize_chat(message.conversation())
            self._say(ipc.Rendered(message.key, pack_tokens(tokens), ""))
        except (LocalError, LimitExceeded) as exc:
            self._say(ipc.Rendered(message.key, b"", str(exc), is_too_long=isinstance(exc, TooLongError)))

    async def _spell(self, message: ipc.Spell) -> None:
        try:
            texts = await self._engine.detokenize([unpack_tokens(tokens) for tokens in message.sequences])
            self._say(ipc.Spelled(message.key, texts, ""))
        except (ValueError, LimitExceeded) as exc:
            self._say(ipc.Spelled(message.key, [], str(exc)))

    async def _embed(self, message: ipc.Embed) -> None:
        try:
            vectors = await self._engine.embed([unpack_tokens(tokens) for tokens in message.texts], message.client)
            self._say(ipc.Embedded(message.key, [vector.tobytes() for vector in vectors], ""))
        except LocalError as exc:
            self._say(ipc.Embedded(message.key, [], str(exc), is_too_long=isinstance(exc, TooLongError)))

    async def follow_cache(self) -> None:
        while True:
            change = await self._engine.cache_changes()
            stored = [ipc.StoredLeaf.of(leaf, path) for leaf, path in change.stored]
            self._say(ipc.CacheDelta(list(change.evicted), stored, change.reset))

    async def follow_vitals(self) -> None:
        while True:
            self._say(ipc.LoadChanged(await self._engine.vitals_changes()))


def _reply(key: int, item: EngineItem) -> ipc.FromChild:
    match item:
        case EngineAccepted():
            return ipc.Started(key, item.cached_tokens)
        case EnginePromptLogprobs():
            return ipc.PromptReported(key, item.position, item.logprobs)
        case EngineTokens():
            return ipc.Generated(key, pack_tokens(item.tokens), item.text, item.logprobs)
        case EngineDone():
            return ipc.Ended(key, item.reason, item.usage)
        case EngineFailed():
            return ipc.Refused(key, item.code, item.message, item.retryable, item.retry_after_s)
        case _:
            assert_never(item)


async def _serve(wanted: ipc.Load, replies: pipe.Replies) -> None:
    defaults = FakeSettings()
    settings = FakeSettings(
        model_name=wanted.model_path,
        cells=wanted.cells or defaults.cells,
        slots=wanted.slots,
        max_waiting=wanted.max_waiting,
        prefill_rate=PREFILL_RATE,
        decode_rate=DECODE_RATE,
        coalesce_s=COALESCE_S,
        kind=next((kind for kind in (EMBEDDING, RERANK) if wanted.model_path.startswith(f"fake-{kind}")), TEXT),
    )
    engine = FakeEngine(settings)
    info = engine.info
    piece_ends, pieces = engine.vocabulary.packed()
    async with trio.open_nursery() as nursery:
        service = FakeService(engine, replies, nursery)
        nursery.start_soon(service.write)
        nursery.start_soon(service.follow_cache)
        nursery.start_soon(service.follow_vitals)
        replies.send(
            ipc.Loaded(
                info.model_digest,
                info.context_tokens,
                info.num_vocab,
                info.reuse,
                cells=info.context_tokens,
                cache_tokens=info.context_tokens,
                piece_ends=piece_ends,
                pieces=pieces,
                token_bytes=info.token_bytes,
                kv_settings=info.kv_settings,
                kind=info.kind,
            )
        )
        read = partial(pipe.read_message, sys.stdin.buffer)
        while (message := await trio.to_thread.run_sync(read)) is not None:
            service.handle(message)
        os._exit(0)  # The parent closed stdin or died.


def main() -> None:
    """Serve the parent until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides.
    replies = pipe.Replies(os.dup(1))
    os.dup2(2, 1)  # A stray print must not land in the protocol.
    wanted = pipe.read_message(sys.stdin.buffer)
    if not isinstance(wanted, ipc.Load):
        sys.exit("this is a part of mycelia and not to be started by hand")
    trio.run(_serve, wanted, replies)


if __name__ == "__main__":
    main()
