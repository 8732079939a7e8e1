"""The node's engine: a supervised child process that runs ``child/worker.py``.

llama.cpp ends its process on some errors, which Python cannot catch, so it runs in a child. When the child dies, the
requests in flight end with ``engine_lost``, the prefix cache is reported lost, and a new child starts after a pause
that doubles while children keep dying.

Back-pressure: the child never waits for a slow reader of one answer. Tokens that are not read yet are joined into few
items, bounded by ``max_tokens``.
"""

import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from functools import partial

import msgspec
import structlog
import trio

from mycelia.node.engine import ipc, pipe
from mycelia.node.engine.asked_texts import NO_TOKENS, AskedTexts
from mycelia.node.engine.changes import ChangeLog
from mycelia.node.engine.child_process import (
    LastWords,
    end_process,
    idle_vitals,
    load_message,
    log_loaded,
    start_process,
)
from mycelia.node.engine.engine import (
    CacheChange,
    EngineAccepted,
    EngineDone,
    EngineFailed,
    EngineItem,
    EnginePromptLogprobs,
    EngineRequest,
    EngineTokens,
    Residence,
)
from mycelia.node.engine.gguf import check_parts
from mycelia.node.engine.kinds import TEXT, cannot
from mycelia.node.engine.outbox import Outbox
from mycelia.node.engine.settings import EngineSettings
from mycelia.node.engine.stream import AnswerStream
from mycelia.node.engine.watchdog import PING_INTERVAL_S, Pulse, Watchdog
from mycelia.node.signals import Signal
from mycelia.node.sockets import receive_some
from mycelia.node.telemetry.crashes import write_report
from mycelia.proto.cache.tier import GIB
from mycelia.proto.wire.blocks import pack_tokens, unpack_tokens
from mycelia.proto.wire.codec import check_sampling
from mycelia.proto.wire.errors import LimitExceeded, LocalError, RemoteError
from mycelia.proto.wire.messages import MAX_TOKENS_PER_REQUEST, Vitals

log = structlog.get_logger()

MAX_IN_FLIGHT = 1024
"""Maximum number of requests at the child at once: far above the bound of its queue, it only bounds the pipe."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 30.0
"""Pause before a new child starts; it doubles with each death until a request succeeds."""
CLOSE_GRACE_S = 2.0
SAVE_GRACE_S = 10.0
"""Grace with a disk tier: more than the child takes to write its cache."""
LOAD_DEADLINE_S = 1_800.0
"""Maximum time to load and hash a model: 100 GB from a slow disk. It distinguishes a stuck child from a slow one."""
MAX_READ_BYTES = 65_536
WORKER_COMMAND = (sys.executable, "-P", "-m", "mycelia.node.engine.child.worker")
FAKE_WORKER_COMMAND = (sys.executable, "-P", "-m", "mycelia.node.engine.fake.worker")


class ProcessEngine(AskedTexts):
    """An ``Engine`` in a child process, opened by ``open_engine``."""

    def __init__(self, settings: EngineSettings) -> None:
        super().__init__(settings)
        self._streams: dict[int, AnswerStream] = {}
        self._text_is_suspect = False
        """Whether a text may be the reason for which the child was killed."""
        self._outbox: Outbox | None = None
        self._running = trio.Event()
        self._watchdog = Watchdog()
        self._load_error = ""
        self._vitals = idle_vitals(slots=0)
        self._vitals_told = self._vitals
        self._vitals_changed = Signal()
        self._changes = ChangeLog()
        self._changed = Signal()
        self._pause_s = FIRST_PAUSE_S
        self._last_words = LastWords()
        self._returncode: int | None = None
        self.pid: int | None = None
        self.num_restarts = 0
        self.start_error = ""
        self.saves_at_end = True
        """Whether a child may write its cache before its end, if it has a disk tier."""

    def resize(self, disk_tier_bytes: int) -> None:
        """Let the disk tier have this many bytes, of this child and of later ones."""
        self.settings = replace(self.settings, disk_tier_gib=disk_tier_bytes / GIB)
        if self._outbox is not None:
            self._send(ipc.Resize(disk_tier_bytes))

    # --- the Engine interface -------------------------------------------------------------------------------------

    @property
    def residence(self) -> Residence:
        return Residence()

    def vitals(self) -> Vitals:
        """See ``Engine.vitals``; no slots while there is no child."""
        return self._vitals

    def generate(self, request: EngineRequest) -> AbstractAsyncContextManager[AsyncIterator[EngineItem]]:
        key, stream = next(self._keys), AnswerStream()
        failure = self._submit(key, request)
        if failure is not None:
            stream.put(failure)
        else:
            self._streams[key] = stream
        return _Generation(stream, partial(self._end, key, stream))

    def _end(self, key: int, stream: AnswerStream) -> None:
        self._streams.pop(key, None)
        if not stream.ended and self._outbox is not None:
            self._send(ipc.Cancel(key))

    async def vitals_changes(self) -> Vitals:
        while self._vitals == self._vitals_told:
            await self._vitals_changed.wait()
        await trio.lowlevel.checkpoint()  # (answers that came with the change go on first)
        self._vitals_told = self._vitals
        return self._vitals

    def _set_vitals(self, vitals: Vitals) -> None:
        self._vitals = vitals
        self._vitals_changed.notify()

    async def cache_changes(self) -> CacheChange:
        await trio.lowlevel.checkpoint()
        while not self._changes:
            await self._changed.wait()
        return self._changes.take()

    def _submit(self, key: int, request: EngineRequest) -> EngineFailed | None:
        if self.is_known and self.info.kind != TEXT:
            return EngineFailed("bad_request", cannot(self.info.name, self.info.kind, TEXT), False)
        if self._outbox is None:
            return EngineFailed("overloaded", "the engine is restarting", True)
        if len(self._streams) >= MAX_IN_FLIGHT:
            return EngineFailed("overloaded", f"{MAX_IN_FLIGHT} requests are in flight", True)
        submission = _submission(key, request)
        if isinstance(submission, EngineFailed):
            return submission
        try:
            self._send(submission)
        except LimitExceeded:
            return EngineFailed("too_long", f"{len(request.prompt)} tokens are more than any context holds", False)
        return None

    def _send(self, message: ipc.ToChild) -> None:
        assert self._outbox is not None
        self._outbox.put(pipe.encode(message))

    # --- the child ------------------------------------------------------------------------------------------------

    async def supervise(self, first_start: trio.Event) -> None:
        """Keep a child running until cancelled. Sets ``first_start`` when the first child has loaded or failed. In the
        latter case ``start_error`` is the reason, and the method returns. May be called again after its end."""
        self.start_error = ""
        await self._run_child(first_start.set)
        if not first_start.is_set():
            self.start_error = self._load_error or self._death(
                f"cannot load the model {self.settings.model_path}: the engine process died over it"
            )
            first_start.set()
            return
        while True:
            reason = self._death("the engine process died")
            report = await self._report(reason)
            log.warning("engine_lost", reason=reason, restart_in_s=self._pause_s, **report)
            await trio.sleep(self._pause_s)
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
            self.num_restarts += 1
            await self._run_child(lambda: None)

    def _death(self, what: str) -> str:
        """One line on the child's death, with the last line of its stderr."""
        words = self._load_error or self._last_words.last
        return f"{what} ({words})" if words else what

    async def _report(self, reason: str) -> dict[str, str]:
        """Writes a report of the child's death; what the log says of it."""
        folder = self.settings.reports_dir
        if folder is None:
            return {}
        how = f"exit code {self._returncode} (a negative one is the number of a signal)"
        lines = [how, f"model     {self.settings.model_path}", "", "What it said last:", *self._last_words.lines]
        path = await trio.to_thread.run_sync(write_report, folder, "engine", reason, lines)
        return {"report": str(path)} if path else {}

    async def _run_child(self, on_loaded: Callable[[], None]) -> None:
        self._load_error, self._text_is_suspect = "", False
        self._last_words.clear()
        try:
            child = await start_process(FAKE_WORKER_COMMAND if self.settings.fake else WORKER_COMMAND)
        except OSError as exc:  # Out of memory or processes, maybe for a short time.
            self._load_error = f"cannot start the engine process: {exc}"
            return
        assert isinstance(child.stdin, trio.lowlevel.FdStream), "POSIX"
        assert isinstance(child.stdout, trio.lowlevel.FdStream), "POSIX"
        assert child.stderr is not None
        self.pid = child.pid
        outbox = Outbox(child.stdin)
        try:
            async with trio.open_nursery() as nursery:
                words_end = trio.Event()
                nursery.start_soon(self._last_words.read, child.stderr, words_end)
                nursery.start_soon(outbox.run)
                outbox.put(pipe.encode(load_message(self.settings, self.num_cells)))
                nursery.start_soon(self._watch_load, child)
                nursery.start_soon(self._watch_pulse, child)
                if not await self._read(child.stdout, outbox, on_loaded):
                    self._text_is_suspect = True
                    child.kill()
                with trio.move_on_after(CLOSE_GRACE_S):
                    await words_end.wait()  # A dead child's stderr ends, too; its last line is the reason.
                nursery.cancel_scope.cancel()
        finally:
            self._lose_child()
            with trio.CancelScope(shield=True):
                await end_process(child, self._grace_s())
            self._returncode = child.returncode
            # A kill from outside has nothing to do with the text that the child reads.
            self._calls.lost(self._text_is_suspect or child.returncode not in (-signal.SIGKILL, -signal.SIGTERM))

    def _grace_s(self) -> float:
        if self.settings.cache_dir is None:
            return CLOSE_GRACE_S
        return SAVE_GRACE_S if self.saves_at_end else 0.0

    async def _read(self, stdout: trio.lowlevel.FdStream, outbox: Outbox, on_loaded: Callable[[], None]) -> bool:
        """Handle the child's messages until it ends. False: a message is invalid."""
        frames = pipe.FrameBuffer()
        try:
            while data := await receive_some(stdout, MAX_READ_BYTES):
                for message in frames.feed(data):
                    if isinstance(message, ipc.Loaded):
                        self._loaded(message, outbox)
                        on_loaded()
                    else:
                        self._handle(message)
        except LocalError as exc:
            self._load_error = str(exc)
            return False
        except RemoteError as exc:  # (a valid frame with invalid contents)
            self._load_error = f"the engine process sent nonsense: {exc}"
            return False
        return True

    async def _watch_load(self, child: trio.Process) -> None:
        with trio.move_on_after(LOAD_DEADLINE_S):
            await self._running.wait()
            return
        self._load_error = f"the engine process did not load {self.settings.model_path} in {LOAD_DEADLINE_S:.0f} s"
        child.kill()

    async def _watch_pulse(self, child: trio.Process) -> None:
        """Kill a child that is stopped, deadlocked or hangs: its answers are lost anyway."""
        await self._running.wait()
        self._watchdog = Watchdog()
        while True:
            self._send(ipc.Ping())
            self._watchdog.asked(trio.current_time())
            await trio.sleep(PING_INTERVAL_S)
            complaint = self._watchdog.complaint(trio.current_time())
            if complaint is not None:
                self._load_error, self._text_is_suspect = complaint, self._watchdog.hangs_on_a_text
                child.kill()
                return

    def _loaded(self, message: ipc.Loaded, outbox: Outbox) -> None:
        self.learn(message)
        self._outbox = outbox
        self._set_vitals(idle_vitals(self.settings.slots))  # (the child reports only when it has work)
        self._running.set()
        self._calls.start(outbox.put)
        log_loaded(message, self.info, self.pid, self.settings.num_threads)

    def _handle(self, message: ipc.FromChild) -> None:
        match message:
            case ipc.LoadFailed():
                self._load_error = message.message
            case ipc.Pong():
                self._watchdog.answered(Pulse(message.is_decoding, message.busy_s, message.reading_s))
            case ipc.LoadChanged():
                self._set_vitals(message.vitals)
            case ipc.CacheDelta():
                stored = [(leaf.leaf, leaf.path) for leaf in message.stored]
                self._add_change(CacheChange(stored=stored, evicted=message.evicted, reset=message.reset))
            case ipc.Rendered() | ipc.Spelled() | ipc.Embedded():
                self._calls.answered(message)
            case ipc.Started():
                self._deliver(message.key, EngineAccepted(message.cached_tokens))
            case ipc.PromptReported():
                self._deliver(message.key, EnginePromptLogprobs(message.position, message.logprobs))
            case ipc.Generated():
                self._deliver(message.key, EngineTokens(unpack_tokens(message.tokens), message.text, message.logprobs))
            case ipc.Refused():
                failed = EngineFailed(message.code, message.message, message.retryable, message.retry_after_s)
                self._deliver(message.key, failed)
            case ipc.Ended():
                self._pause_s = FIRST_PAUSE_S
                self._deliver(message.key, EngineDone(message.reason, message.usage))

    def _deliver(self, key: int, item: EngineItem) -> None:
        stream = self._streams.get(key)
        if stream is not None and not stream.put(item):  # (None: its reader has left and sent a cancel)
            del self._streams[key]
            self._send(ipc.Cancel(key))

    def _add_change(self, change: CacheChange) -> None:
        self._changes.add(change)
        self._changed.notify()

    def _lose_child(self) -> None:
        """End the requests in flight and report the cache lost."""
        was_loaded = self._outbox is not None
        self._outbox, self.pid = None, None
        self._calls.stop()
        self._running = trio.Event()
        self._set_vitals(idle_vitals(slots=0))
        for stream in self._streams.values():
            stream.put(EngineFailed("engine_lost", "the engine process died", True))
        self._streams.clear()
        if was_loaded:
            self._add_change(CacheChange(stored=(), evicted=(), reset=True))


class _Generation(AbstractAsyncContextManager[AsyncIterator[EngineItem]]):
    """See ``Engine.generate``."""

    def __init__(self, stream: AnswerStream, end: Callable[[], None]) -> None:
        self._stream = stream
        self._end = end

    async def __aenter__(self) -> AnswerStream:
        return self._stream

    async def __aexit__(self, *_: object) -> None:
        self._end()


def _submission(key: int, request: EngineRequest) -> ipc.Submit | EngineFailed:
    """The message for the child, or the refusal of a request that it cannot run."""
    sampling = request.sampling
    if sampling.max_tokens > MAX_TOKENS_PER_REQUEST:
        sampling = msgspec.structs.replace(sampling, max_tokens=MAX_TOKENS_PER_REQUEST)
    try:
        check_sampling(sampling)
        prompt = pack_tokens(request.prompt)
    except LocalError as exc:
        return EngineFailed("bad_request", str(exc), False)
    except (OverflowError, TypeError):
        return EngineFailed("bad_request", NO_TOKENS, False)
    resumed = max(0, min(request.resumed_tokens, len(request.prompt)))
    due_s = None if request.deadline_s is None else time.monotonic() + request.deadline_s
    asked_by = request.client, request.subnet, *request.owner
    return ipc.Submit(key, prompt, sampling, resumed, due_s, *asked_by, request.open_tokens)


@asynccontextmanager
async def open_engine(settings: EngineSettings) -> AsyncIterator[ProcessEngine]:
    """A loaded engine for the duration of the block; leaving the block ends the child. Raises LocalError, in one line,
    when the first child cannot load the model."""
    if not settings.fake:
        check_parts(settings.model_path)
    engine, first_start = ProcessEngine(settings), trio.Event()
    body_error: BaseException | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.supervise, first_start)
        await first_start.wait()
        if not engine.start_error:
            # The block's own exception must not be wrapped in the nursery's exception group.
            try:
                yield engine
            except BaseException as exc:  # noqa: BLE001 - raised again below
                body_error = exc
            nursery.cancel_scope.cancel()
    if engine.start_error:
        raise LocalError(engine.start_error)
    if body_error is not None:
        raise body_error
