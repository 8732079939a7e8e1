"""Turns the frames of answers into OpenAI's responses, whole or as a stream of server-sent events."""

import re
from collections.abc import Sequence
from dataclasses import replace

import msgspec
import trio
from starlette.types import Receive, Scope, Send

from mycelia.node.peer_id import peer_text
from mycelia.node.requests.prompt_logprobs import MAX_PROMPT_RECORDS
from mycelia.node.serve.api import Api
from mycelia.node.serve.http.bodies import STREAM_HEADERS
from mycelia.node.serve.http.disconnect import cancel_at_disconnect
from mycelia.node.serve.openai.errors import status_of
from mycelia.node.serve.openai.logprobs import mean_logprob, prompt_text
from mycelia.node.serve.openai.reading import AnswerPart, ReadAnswer
from mycelia.node.serve.openai.requests import Wanted
from mycelia.node.serve.openai.response_types import PromptDetails, Usage
from mycelia.node.serve.openai.shapes import Choice, Shape
from mycelia.node.views.frames import is_keep_alive
from mycelia.proto.admission.retry_times import MAX_HELD_S
from mycelia.proto.wire.messages import Answered, Ask, Begun, EntryFrame, Failed, PromptLogprobs, Route, Text

HOLD_S = 5.0
"""How long the status line of a stream waits for the first text. Its headers can only name a serving node that is known
by then, and a refusal can only be a status before it. While the request is held at the entry node, which may end with a
refusal, the status line waits longer, up to ``MAX_HELD_S``."""
KEEP_ALIVE_S = 10.0
"""Interval of comments in a stream before its first text: proxies and clients take silence for a lost connection."""
TOO_MANY_LOGPROBS = Failed(
    code="bad_request", message="the logprobs of these prompts are too many for one response", retryable=False
)
MAX_READ_CHARS = 4_096
"""Characters of a frame that are read in one piece: text that is all beginnings of calls takes 4 us a character, and an
entry node of another model may send 64 KiB of it at once."""
_MAX_HEADER_CHARS = 256
_UNPRINTABLE = re.compile("[^ -~]")
_COMMENT = b": waiting for the next token\n\n"


class OpenAiAnswer:
    """An ASGI application that asks the node and responds. A client that disconnects cancels all its asks."""

    def __init__(self, api: Api, wanted: Wanted, shape: Shape, client: bytes) -> None:
        self._api = api
        self._wanted = wanted
        self._shape = shape
        self._client = client
        has_logprobs = any(ask.sampling.logprobs for ask in wanted.asks)
        self._choices = [
            Choice(index, ReadAnswer(wanted.functions, has_logprobs, ask.reads_format, wanted.max_calls))
            for index, ask in enumerate(wanted.asks)
        ]
        self._began_s = trio.current_time()
        self._failed: Failed | None = None
        self._facts: list[tuple[bytes, bytes]] = []
        """The headers of the first choice, made while its first token is awaited; empty: not made since its route."""
        self._num_records = 0
        """Logprobs of prompts that came, alternatives included."""
        self._all_routed = trio.Event()
        """Set when every choice was sent to a node."""

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        out: _Whole | _Stream = _Stream(self, send) if self._wanted.is_stream else _Whole(self, send)
        is_over = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_watch, receive, nursery, out)
            await self._follow_all(out)
            is_over = True
            nursery.cancel_scope.cancel()
        if is_over:  # (otherwise the client is gone)
            await out.end(self._failed)

    async def _follow_all(self, out: "_Whole | _Stream") -> None:
        """Runs until all choices have ended or one has failed."""
        if len(self._choices) == 1:  # (most requests have one, which needs no other task)
            await self._follow(self._choices[0], self._wanted.asks[0], out)
            return
        async with trio.open_nursery() as asking:

            async def follow(choice: Choice, ask: Ask) -> None:
                if not await self._follow(choice, ask, out):
                    asking.cancel_scope.cancel()

            for choice, ask in zip(self._choices, self._wanted.asks, strict=True):
                asking.start_soon(follow, choice, ask)

    async def _follow(self, choice: Choice, ask: Ask, out: "_Whole | _Stream") -> bool:
        """False: the choice failed."""
        async with self._api.ask(ask, self._wanted.timeout_s, self._client) as frames:
            async for frame in frames:
                if isinstance(frame, PromptLogprobs):
                    self._num_records += sum(1 + len(entry.top) for entry in frame.logprobs)
                    if self._num_records > MAX_PROMPT_RECORDS:
                        frame = TOO_MANY_LOGPROBS
                if isinstance(frame, Failed):
                    self._failed = self._failed or frame
                    return False
                await self._on_frame(choice, ask, frame, out)
        return True

    async def _on_frame(self, choice: Choice, ask: Ask, frame: EntryFrame, out: "_Whole | _Stream") -> None:
        match frame:
            case Route():
                choice.route = frame
                if not choice.index:
                    self._facts = []
                choice.reading.begin(frame)
                if all(one.route is not None for one in self._choices):
                    self._all_routed.set()
            case Begun():
                choice.begun = frame
                out.expect(choice)
            case PromptLogprobs():
                choice.prompt += frame.logprobs
            case Text() if not is_keep_alive(frame):
                await self._echo(choice, ask, out)
                choice.first_s = choice.first_s or trio.current_time()
                for at in range(0, max(len(frame.text), 1), MAX_READ_CHARS):
                    if at:
                        await trio.lowlevel.checkpoint()
                    part, logprobs = frame.text[at : at + MAX_READ_CHARS], () if at else frame.logprobs
                    for said in choice.reading.feed(part, logprobs):
                        await out.piece(choice, said)
            case Text():
                await out.still_there()
            case Answered():
                choice.end = frame
                await self._echo(choice, ask, out)
                for said in choice.reading.end():
                    await out.piece(choice, said)
                await out.ending(choice)

    async def _echo(self, choice: Choice, ask: Ask, out: "_Whole | _Stream") -> None:
        """Begins the choice with its prompt, if that is wanted and did not happen yet."""
        if self._wanted.echoes and not choice.has_echo:
            choice.has_echo = True
            choice.echo = ask.text or prompt_text(choice.prompt)
            await out.piece(choice, AnswerPart(choice.echo, logprobs=choice.prompt), is_prompt=True)

    @property
    def shape(self) -> Shape:
        return self._shape

    @property
    def has_all_ends(self) -> bool:
        """Whether every choice has ended."""
        return all(choice.end is not None for choice in self._choices)

    @property
    def all_routed(self) -> trio.Event:
        return self._all_routed

    def closing(self) -> bytes:
        return self._shape.closing(self._choices, self.usage())

    def whole(self) -> msgspec.Struct:
        return self._shape.whole(self._kept(), self.usage())

    def _kept(self) -> list[Choice]:
        """The choices that the client gets, counted anew."""
        num_made, num_kept = self._wanted.choices_a_prompt, self._wanted.kept_a_prompt
        if num_made == num_kept:
            return self._choices
        kept: list[Choice] = []
        for start in range(0, len(self._choices), num_made):
            made = self._choices[start : start + num_made]
            kept += sorted(made, key=lambda choice: -mean_logprob(choice.reading.logprobs))[:num_kept]
        return [replace(choice, index=index) for index, choice in enumerate(kept)]

    def usage(self) -> Usage:
        """The usage of all choices that have ended. Choices of one prompt compute it once, so it counts once."""
        ends = [choice.end for choice in self._choices]
        prompts = [end.usage for end in ends[:: self._wanted.choices_a_prompt] if end is not None]
        prompt_tokens = sum(usage.prompt_tokens for usage in prompts)
        cached_tokens = sum(usage.cached_tokens for usage in prompts)
        completion_tokens = sum(end.usage.completion_tokens for end in ends if end is not None)
        resumed = sum(end.resumed for end in ends if end is not None)
        details = PromptDetails(cached_tokens)
        return Usage(prompt_tokens, completion_tokens, prompt_tokens + completion_tokens, details, resumed)

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The facts known by now about the first choice."""
        choice = self._choices[0]
        ttft_ms = None if choice.first_s is None else round((choice.first_s - self._began_s) * 1000)
        ttft_ms = choice.end.ttft_ms if choice.end is not None else ttft_ms
        facts = self._facts or self._known_facts()
        return facts if ttft_ms is None else [*facts, (b"x-mycelia-ttft-ms", b"%d" % ttft_ms)]

    def expect(self) -> None:
        """A node has begun, and its first token is awaited: the time for work that need not be done after it."""
        self._facts = self._known_facts()

    def _known_facts(self) -> list[tuple[bytes, bytes]]:
        choice = self._choices[0]
        request_id = self._wanted.asks[0].request_id.hex().encode()
        facts = [(name, request_id) for name in self._shape.id_headers]
        if choice.begun is not None:
            facts.append((b"x-mycelia-served-by", header_value(peer_text(choice.begun.served_by))))
            facts.append((b"x-mycelia-cached-tokens", b"%d" % choice.begun.cached_tokens))
        if choice.route is not None:
            facts.append((b"x-mycelia-route", header_value(choice.route.reason)))
        return facts


async def _watch(receive: Receive, nursery: trio.Nursery, out: "_Whole | _Stream") -> None:
    """Cancels the nursery when the client disconnects. Keeps the client waiting with ``out`` if the answer takes long:
    most answers have begun before, and need no task for it."""
    with trio.move_on_after(HOLD_S):
        await cancel_at_disconnect(receive, nursery.cancel_scope)
        return
    nursery.start_soon(out.keep_alive)
    await cancel_at_disconnect(receive, nursery.cancel_scope)


class _Whole:
    """One JSON object, when the answer is complete."""

    def __init__(self, answer: OpenAiAnswer, send: Send) -> None:
        self._answer = answer
        self._send = send

    async def keep_alive(self) -> None:
        """Nothing can be sent before the status."""

    def expect(self, choice: Choice) -> None:
        """Nothing is made before the end."""

    async def still_there(self) -> None:
        """Nothing can be sent before the status."""

    async def piece(self, choice: Choice, said: AnswerPart, is_prompt: bool = False) -> None:
        """The choice keeps it."""

    async def ending(self, choice: Choice) -> None:
        pass

    async def end(self, failed: Failed | None) -> None:
        if failed is None:
            status, headers, body = 200, self._answer.headers(), msgspec.json.encode(self._answer.whole())
        else:
            status, headers = status_of(failed)
            headers = [*self._answer.headers(), *headers]
            body = msgspec.json.encode(self._answer.shape.failure(failed))
        await _begin(self._send, status, b"application/json", [*headers, (b"content-length", b"%d" % len(body))])
        await self._send({"type": "http.response.body", "body": body, "more_body": False})


class _Stream:
    """Server-sent events, as pieces come."""

    def __init__(self, answer: OpenAiAnswer, send: Send) -> None:
        self._answer = answer
        self._send = send
        self._has_begun = False
        self._has_text = trio.Event()
        self._is_sending = False
        self._waiting = trio.lowlevel.ParkingLot()
        """The tasks that wait until another one has sent. (trio's lock takes longer than most pieces.)"""
        self._opened: set[int] = set()
        self._held = b""
        """What goes out with the next write."""

    async def keep_alive(self) -> None:
        """Sends comments until there is text. Call it after ``HOLD_S``."""
        if self._has_text.is_set():
            return
        with trio.move_on_after(MAX_HELD_S):
            await self._answer.all_routed.wait()
        while not self._has_text.is_set():
            await self._write(_COMMENT)
            with trio.move_on_after(KEEP_ALIVE_S):
                await self._has_text.wait()

    def expect(self, choice: Choice) -> None:
        """Makes what will be sent before the choice's first text."""
        if not choice.index:
            self._answer.expect()
        choice.opening = self._answer.shape.opening_ahead(choice)

    async def still_there(self) -> None:
        """An answer that has begun may move and be computed again."""
        if self._has_text.is_set():
            await self._write(_COMMENT)

    async def piece(self, choice: Choice, said: AnswerPart, is_prompt: bool = False) -> None:
        await self._write(self._opening(choice) + self._answer.shape.piece(choice, said, is_prompt))
        choice.num_chars += len(said.content)

    async def ending(self, choice: Choice) -> None:
        """What ends the last choice goes out with the end of the stream: each write wakes the client's process."""
        self._held += self._opening(choice) + self._answer.shape.ending(choice)
        if not self._answer.has_all_ends:
            await self._write(b"")

    async def end(self, failed: Failed | None) -> None:
        if failed is not None and not self._has_begun:
            await _Whole(self._answer, self._send).end(failed)
            return
        closing = self._answer.closing() if failed is None else self._answer.shape.failing(failed)
        await self._write(closing, is_last=True)

    def _opening(self, choice: Choice) -> bytes:
        """What comes before a choice's first piece; empty before later ones."""
        self._has_text.set()
        if choice.index in self._opened:
            return b""
        self._opened.add(choice.index)
        return choice.opening or self._answer.shape.opening(choice)

    async def _write(self, data: bytes, is_last: bool = False) -> None:
        while self._is_sending:
            await self._waiting.park()
        self._is_sending = True
        try:
            if not self._has_begun:
                self._has_begun = True
                headers = [*self._answer.headers(), *STREAM_HEADERS]
                await _begin(self._send, 200, b"text/event-stream; charset=utf-8", headers)
            data, self._held = self._held + data, b""
            await self._send({"type": "http.response.body", "body": data, "more_body": not is_last})
        finally:
            self._is_sending = False
            self._waiting.unpark()


async def _begin(send: Send, status: int, content_type: bytes, headers: Sequence[tuple[bytes, bytes]]) -> None:
    all_headers = [(b"content-type", content_type), *headers]
    await send({"type": "http.response.start", "status": status, "headers": all_headers})


def header_value(text: str) -> bytes:
    """``text``, which may come from a peer, as a header's value: printable ASCII, and not too long."""
    return _UNPRINTABLE.sub("?", text[:_MAX_HEADER_CHARS]).strip().encode()
