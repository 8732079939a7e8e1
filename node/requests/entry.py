"""Requests that enter at this node: from text to tokens, through the overlay, and back to text.

``Entry.ask`` serves the command line, the local API and light clients alike. The overlay decides where a request goes
and when it moves. This module holds the streams to the serving nodes and the frames to the client.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from typing import assert_never

import msgspec
import structlog
import trio

from mycelia.node.engine.engine import DEADLINE, TOO_LATE
from mycelia.node.errors import first_error
from mycelia.node.formats.families import format_named
from mycelia.node.network.exchange import cancelled_at_end, receive_opening
from mycelia.node.network.network import MessageStream, Network, NetworkError
from mycelia.node.requests.answer_frames import MAX_WAITING_BYTES, AnswerFrames
from mycelia.node.requests.asked_prompts import AskedPrompts, network_of
from mycelia.node.requests.failures import failed_of
from mycelia.node.requests.own_models import OwnModels
from mycelia.node.requests.prompt_logprobs import Owner, PromptReports
from mycelia.node.requests.running import RunningAnswer
from mycelia.node.requests.salts import Salts
from mycelia.node.requests.serving import BegunAnswer, SendFrame, begun_answer, send_answer
from mycelia.node.requests.spelled_text import SpelledText
from mycelia.node.requests.told import answered_frame, route_frame
from mycelia.node.telemetry.requests import RequestLog
from mycelia.proto.admission.byte_shares import ByteShares
from mycelia.proto.cache.sharing import owner_of
from mycelia.proto.effects import Abandon, Begin, Deliver, DeliverPromptLogprobs, Dispatch, Fail, Finish, RequestEffect
from mycelia.proto.events import Event, FrameReceived, RequestCancelled, RequestSubmitted, StreamLost
from mycelia.proto.wire.blocks import unpack_tokens
from mycelia.proto.wire.errors import LocalError, MyceliaError, RemoteError
from mycelia.proto.wire.messages import (
    KEEP_ALIVE,
    Accepted,
    Ask,
    Begun,
    Bounced,
    EntryFrame,
    Failed,
    Final,
    PromptLogprobs,
    Sampling,
    ServingFrame,
    Tokens,
)

log = structlog.get_logger()

GENERATE = "/mycelia/generate/1"
ASK = "/mycelia/ask/1"

KEEP_ALIVE_S = 15.0
"""Interval in which each client that got no frame since the last check gets a keep-alive: a long prompt takes minutes
on a laptop, and clients take a longer silence for the loss of this node."""

TOO_SLOW = "the client read the answer too slowly, and too much of it was waiting"

SilenceS = Callable[[bytes, int], float]
"""``Overlay.silence_s``."""


class Entry:
    """The requests that enter at a node. ``run`` must be running while ``ask`` is used."""

    def __init__(
        self,
        models: OwnModels,
        network: Network,
        handle: Callable[[Event], None],
        silence_s: SilenceS,
        requests: RequestLog,
        salts: Salts,
        subnet: Callable[[bytes], str],
    ) -> None:
        """subnet: ``Overlay.subnet``."""
        self._models = models
        self._salts = salts
        self._subnet = subnet
        self._requests = requests
        self._network = network
        self._handle = handle
        self._silence_s = silence_s
        self._running: dict[bytes, RunningAnswer] = {}
        self._reports = PromptReports()
        self._waiting = ByteShares(MAX_WAITING_BYTES)
        self._nursery: trio.Nursery | None = None

    @property
    def num_running(self) -> int:
        return len(self._running)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Runs the tasks of all attempts, and sends keep-alive messages, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            while True:
                await trio.sleep(KEEP_ALIVE_S)
                for running in self._running.values():
                    if not running.was_told and not running.frames:
                        running.tell(KEEP_ALIVE)
                    running.was_told = False

    def ask(
        self, ask: Ask, deadline_s: float | None = None, client: bytes = b""
    ) -> AbstractAsyncContextManager[AsyncIterator[EntryFrame]]:
        """The frames of one answer: Route, Text*, then Answered or Failed. Leaving early cancels the request.

        deadline_s: seconds from now after which the request is cancelled, wherever it is served, and fails with code
        ``deadline``. client: the client whose share of this node the request takes; empty for any client on this
        machine, because the local API has no keys that could tell them apart.
        """
        return _Asked(partial(self._enter, ask, deadline_s, client), partial(self._submit, ask, client), self._leave)

    def _enter(self, ask: Ask, deadline_s: float | None, client: bytes) -> tuple[bytes, RunningAnswer]:
        request_id = self._requests.new_id(ask.request_id)
        engine = self._models.named(ask.model) or self._models.first  # (which refuses what it does not serve)
        self._requests.entered(request_id, ask.model or engine.info.name, client)
        subnet, now = self._subnet(client), trio.current_time()
        frames = AnswerFrames(self._waiting, subnet)
        running = self._running[request_id] = RunningAnswer(engine, frames, now, deadline_s, client, subnet)
        running.num_tokens = len(ask.answered) // 4
        if deadline_s is not None:
            assert self._nursery is not None
            running.expiry = trio.CancelScope()
            self._nursery.start_soon(self._expire, request_id, running, running.expiry)
        return request_id, running

    def _leave(self, request_id: bytes, running: RunningAnswer) -> None:
        running.frames.leave()
        if running.expiry is not None:
            running.expiry.cancel()
        if running.report is not None:
            self._reports.end(running.report)
        if request_id in self._running:
            self._handle(RequestCancelled(request_id))  # (abandons the attempt, so it must still be known)
            del self._running[request_id]
            self._requests.cancelled(request_id, running.num_tokens)

    async def _expire(self, request_id: bytes, running: RunningAnswer, expiry: trio.CancelScope) -> None:
        """Cancels a request at its deadline. A task of its own, because the client may not be reading."""
        with expiry:
            await trio.sleep(max(0.0, running.left_s() or 0.0))
            self._give_up(request_id, TOO_LATE)

    async def _give_up_on_reader(self, request_id: bytes) -> None:
        """A task of its own: the same event may have further effects, which still add frames."""
        self._give_up(request_id, TOO_SLOW)

    def _give_up(self, request_id: bytes, why: str) -> None:
        if request_id in self._running:
            self._handle(RequestCancelled(request_id))
            self._end(request_id, Failed(code=DEADLINE, message=why, retryable=False))

    async def _submit(self, ask: Ask, client: bytes, request_id: bytes, running: RunningAnswer) -> None:
        namespace, prompts = running.engine.info.namespace, AskedPrompts(running.engine, self._network)
        try:
            prompt, sampling = await prompts.prepare(ask, client)
            open_tokens = await prompts.open_tokens(ask, prompt, client)
            salt = self._salts.of(ask.cache_salt, client)
            if sampling.prompt_logprobs and request_id in self._running:
                owner = Owner(namespace, salt, sampling.prompt_logprobs)
                first = prompts.first_logprobs(prompt)
                running.report = await self._reports.begin(owner, prompt, first, sampling.logprobs_from)
                sampling = msgspec.structs.replace(sampling, logprobs_from=running.report.num_reported)
        except LocalError as exc:
            if request_id in self._running:
                self._end(request_id, failed_of(exc))
        else:
            if request_id in self._running:
                self._requests.tokenized(request_id, len(prompt))
                sampling = self._read_format(running, ask, prompt, sampling)
                answered = unpack_tokens(ask.answered)
                self._handle(
                    RequestSubmitted(request_id, namespace, prompt, sampling, client, answered, salt, open_tokens)
                )

    def _read_format(self, running: RunningAnswer, ask: Ask, prompt: Sequence[int], sampling: Sampling) -> Sampling:
        """The sampling for a client that reads the model's format: a grammar leaves the model's thought free."""
        info, vocabulary = running.engine.info, running.engine.vocabulary
        if not (ask.reads_format and ask.messages and info.format and vocabulary is not None):
            return sampling
        running.spelled = SpelledText(info.format, vocabulary, info.spellings)
        format_ = format_named(info.format)
        running.opened = running.spelled.opened_by(prompt)
        if ask.continues_final and not running.opened:
            running.opened = format_.left_open(ask.messages[-1].content)
        if not sampling.grammar:
            return sampling
        opening, closing = format_.thought_before_grammar(running.opened)
        return msgspec.structs.replace(sampling, thought_opening=opening, thought_closing=closing)

    # --- the overlay's effects -------------------------------------------------------------------------------------

    def perform(self, effect: RequestEffect) -> None:
        running = self._running.get(effect.request_id)
        if running is None:
            return
        match effect:
            case Dispatch():
                assert self._nursery is not None
                # (created here and not in the task: the client may leave before the task first runs)
                scope, begun = trio.CancelScope(), None
                running.attempts[effect.attempt] = scope
                if effect.peer == self._network.peer_id:
                    with suppress(Exception):  # (the attempt tries it again, and reports the error)
                        begun = self._begun_here(effect, running)
                self._nursery.start_soon(self._attempt, effect, running, scope, begun)
            case Begin():
                self._requests.begun(effect)
                running.tell(Begun(served_by=effect.served_by, cached_tokens=effect.cached_tokens))
                running.tell_known_logprobs()
            case DeliverPromptLogprobs():
                assert running.report is not None
                running.report_prompt(PromptLogprobs(position=effect.position, logprobs=effect.logprobs))
                if running.report.num_reported == len(running.report.tokens):
                    self._reports.end(running.report)
                self._check_reader(effect.request_id, running)
            case Deliver():
                running.tell_known_logprobs()
                running.deliver(effect.text, effect.tokens, effect.logprobs)
                if effect.tokens and running.first_token_at is None:
                    running.first_token_at = trio.current_time()
                    self._requests.first_token(effect.request_id)
                self._check_reader(effect.request_id, running)
            case Finish():
                running.tell_known_logprobs()
                running.deliver(b"", is_last=True)
                ttft_s = (running.first_token_at or trio.current_time()) - running.started_at
                answered = answered_frame(effect, ttft_s)
                self._requests.answered(effect.request_id, answered)
                self._end(effect.request_id, answered)
            case Fail():
                failed = Failed(
                    code=effect.code,
                    message=effect.message,
                    retryable=effect.retryable,
                    retry_after_ms=effect.retry_after_ms,
                )
                self._end(effect.request_id, failed)
            case Abandon():
                if effect.attempt in running.attempts:
                    running.attempts[effect.attempt].cancel()
            case _:
                assert_never(effect)

    def _check_reader(self, request_id: bytes, running: RunningAnswer) -> None:
        if running.is_read_too_slowly:
            assert self._nursery is not None
            self._nursery.start_soon(self._give_up_on_reader, request_id)

    def _end(self, request_id: bytes, frame: EntryFrame) -> None:
        running = self._running.pop(request_id)
        if isinstance(frame, Failed):
            self._requests.failed(request_id, frame.code, frame.message, running.num_tokens)
        running.tell(frame)
        running.frames.close()

    # --- attempts --------------------------------------------------------------------------------------------------

    def _begun_here(self, effect: Dispatch, running: RunningAnswer) -> BegunAnswer:
        """An attempt at this node: the engine has the request before a task of its own runs."""
        generate, client = effect.generate, running.client
        owner = owner_of(generate.tag, generate.scope, self._network.peer_id, running.subnet)
        subnet = network_of(client, self._network)
        return begun_answer(running.engine, generate, client, subnet, owner, running.left_s())

    async def _attempt(
        self, effect: Dispatch, running: RunningAnswer, scope: trio.CancelScope, begun: BegunAnswer | None
    ) -> None:
        """One attempt at one node. A supervisor's edge: any error becomes an event and ends the attempt, never the
        node. begun: it is at this node, and has begun."""
        request_id, attempt = effect.request_id, effect.attempt

        async def on_frame(frame: ServingFrame) -> None:
            self._handle(FrameReceived(request_id, attempt, frame))

        def tell_route() -> None:
            if request_id in self._running and not scope.cancel_called:  # (it may have ended before this task ran)
                self._requests.routed(effect)
                format_ = running.spelled.format_name if running.spelled is not None else ""
                running.tell(route_frame(effect.decision, effect.generate.namespace, format_, running.opened))

        try:
            with scope:
                if effect.peer == self._network.peer_id:
                    begun = begun or self._begun_here(effect, running)
                    serving = self._requests.serving(effect.generate, running.client)
                    # (the client gets the route while the engine works)
                    await send_answer(begun, running.engine, on_frame, serving, on_begun=tell_route)
                else:
                    tell_route()
                    await self._attempt_at_peer(effect, on_frame)
        except Exception as exc:
            reason = _reason(exc)
            if reason is None:
                log.exception("attempt_broke", request=request_id.hex(), attempt=attempt)
            self._handle(StreamLost(request_id, attempt, reason or "an error inside this node"))
        finally:
            running.attempts.pop(attempt, None)

    async def _attempt_at_peer(self, effect: Dispatch, on_frame: SendFrame) -> None:
        stream = await self._network.open(effect.peer, GENERATE, waits=False)  # (each node of a model speaks it)
        is_over = False
        try:
            await stream.send(effect.generate)
            while not is_over:
                patience_s = self._silence_s(effect.request_id, effect.attempt)
                with trio.move_on_after(patience_s) as silence:
                    frame = await stream.receive()
                if silence.cancelled_caught:
                    raise RemoteError(f"silent for {patience_s:.0f} s")
                if not isinstance(frame, Accepted | PromptLogprobs | Tokens | Final | Failed | Bounced):
                    raise RemoteError(f"a {type(frame).__name__} in an answer")
                is_over = isinstance(frame, Final | Failed | Bounced)
                await on_frame(frame)
        finally:
            with trio.CancelScope(shield=True):
                await (stream.aclose() if is_over else stream.reset())


class _Asked(AbstractAsyncContextManager[AsyncIterator[EntryFrame]]):
    """See ``Entry.ask``. Written out, because contextlib's generators take longer than all that is done here."""

    def __init__(
        self,
        enter: Callable[[], tuple[bytes, RunningAnswer]],
        submit: Callable[[bytes, RunningAnswer], Awaitable[None]],
        leave: Callable[[bytes, RunningAnswer], None],
    ) -> None:
        self._enter = enter
        self._submit = submit
        self._leave = leave

    async def __aenter__(self) -> AsyncIterator[EntryFrame]:
        request_id, running = self._request = self._enter()
        try:
            if running.deadline_s is None:
                await self._submit(request_id, running)
            else:
                with trio.move_on_after(max(0.0, running.deadline_s)):  # (a prompt may wait before it is tokenized)
                    await self._submit(request_id, running)
        except BaseException:
            self._leave(request_id, running)
            raise
        return running.frames

    async def __aexit__(self, *_: object) -> None:
        self._leave(*self._request)


async def serve_ask_stream(
    ask_of: Callable[[Ask, bytes], AbstractAsyncContextManager[AsyncIterator[EntryFrame]]], stream: MessageStream
) -> None:
    """Serves one inbound Ask of a light client or a node of another model, which cancels by ending the stream. The
    stream has to be a forgiving one."""
    try:
        ask = await receive_opening(stream)
        if not isinstance(ask, Ask):
            raise RemoteError(f"a {type(ask).__name__} where an Ask belongs")
    except RemoteError as exc:  # (clients are also written by hand, and have to learn what is wrong)
        await stream.send(failed_of(exc))
        return
    async with cancelled_at_end(stream), ask_of(ask, stream.peer) as frames:
        async for frame in frames:
            await stream.send(frame)


def _reason(exc: Exception) -> str | None:
    """Why an attempt failed; None if the error is unexpected."""
    cause = first_error(exc)
    return str(cause) if isinstance(cause, NetworkError | MyceliaError) else None
