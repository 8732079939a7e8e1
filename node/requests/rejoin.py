"""An answer that survives the loss of its entry node.

The client has all that is needed to continue: the request and the tokens received. It asks another entry node for the
rest, and that node routes the request to a node that has these tokens cached, most likely the one that was serving.
Nodes keep nothing for clients that may never return. With a seed, the rest is as it would have been
(``Sampling.seed``).
"""

import math
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

import msgspec
import structlog
import trio

from mycelia.node.engine.engine import DEADLINE, TOO_LATE
from mycelia.node.network.network import MessageStream, NetworkError
from mycelia.node.requests.prompt_logprobs import MAX_PROMPT_RECORDS
from mycelia.proto.planes.failure import LEAVING
from mycelia.proto.wire.codec import fits
from mycelia.proto.wire.errors import RemoteError
from mycelia.proto.wire.messages import (
    MAX_TEXT_BYTES_PER_TOKEN,
    MAX_TOKENS_PER_REQUEST,
    Answered,
    Ask,
    Begun,
    EntryFrame,
    Failed,
    PromptLogprobs,
    Route,
    Text,
)

log = structlog.get_logger()

SILENCE_DEADLINE_S = 150.0
"""Silence after which an entry node counts as lost. It sends a keep-alive every one or two ``KEEP_ALIVE_S`` (entry.py).
Earlier versions sent only frames with content, and gave up a serving node after 120 s of silence."""
STALLED_S = 600.0
"""Limit between two tokens of an answer, whatever else the entry node sends: after the loss of a node, a slow machine
may take that long to compute the prompt again."""
MAX_FRUITLESS = 8
"""Entry nodes that may be lost in a row without a token of the answer."""
SEEK_DEADLINE_S = 60.0
"""Limit for reaching another entry node: a restarted one is back by then."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0

OpenEntry = Callable[[Ask, bytes | None], Awaitable[MessageStream]]
"""(the request, the peer that was just lost) -> a stream on which the request was sent, at another peer if there is
one. Raises NetworkError when no peer can be reached."""


class AnswerSoFar:
    """The part of an answer that a client has received."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._tokens = bytearray(ask.answered)
        self._num_chars = self._num_logprobs = self._num_prompt_records = 0
        self._num_reported = ask.sampling.logprobs_from
        """Tokens of the prompt whose logprobs came, or are not wanted."""
        self.namespace = ask.namespace
        """Namespace of the chosen model; empty: none yet."""
        self.num_rejoins = 0

    def routed(self, namespace: bytes) -> None:
        """Note the model of the tokens to come. Raises RemoteError if it changes within an answer. Mutates."""
        if self._tokens and self.namespace and namespace != self.namespace:
            raise RemoteError("another model went on with the answer")
        self.namespace = namespace

    def add(self, tokens: bytes, num_chars: int = 0, num_logprobs: int = 0) -> None:
        """Note what came; an entry node may leave out the tokens. Raises RemoteError for more than the request allows,
        which would fill a client's memory, and for bytes that are no tokens. Mutates."""
        most = self._ask.sampling.max_tokens
        self._tokens += tokens
        self._num_chars += num_chars
        self._num_logprobs += num_logprobs
        if len(tokens) % 4 or len(self._tokens) > 4 * most:
            raise RemoteError("not the tokens that were asked for")
        if self._num_chars > MAX_TEXT_BYTES_PER_TOKEN * most or self._num_logprobs > most:
            raise RemoteError("more text than the tokens that were asked for have")

    def add_prompt(self, frame: PromptLogprobs) -> None:
        """Note logprobs of the prompt. Raises RemoteError for more than a prompt may have, or others. Mutates."""
        self._num_prompt_records += sum(1 + len(entry.top) for entry in frame.logprobs)
        if not self._ask.sampling.prompt_logprobs or frame.position != self._num_reported or self._tokens:
            raise RemoteError("logprobs of the prompt that were not asked for")
        self._num_reported += len(frame.logprobs)
        if self._num_prompt_records > MAX_PROMPT_RECORDS or self._num_reported > MAX_TOKENS_PER_REQUEST:
            raise RemoteError("more logprobs than a prompt has")

    @property
    def num_tokens(self) -> int:
        return len(self._tokens) // 4

    def rest(self) -> Ask:
        """The request for the rest of the answer."""
        namespace = self.namespace if self._tokens or self._num_prompt_records else b""
        sampling = msgspec.structs.replace(self._ask.sampling, logprobs_from=self._num_reported)
        return msgspec.structs.replace(self._ask, sampling=sampling, answered=bytes(self._tokens), namespace=namespace)

    def forget_format(self) -> bool:
        """Ask for plain text from now on: the entry node is of a version that knows no formats. False: that was so
        before, or text has come. Mutates."""
        was_read = self._ask.reads_format and not self._tokens and not self._num_chars
        self._ask = msgspec.structs.replace(self._ask, reads_format=False)
        return was_read

    def num_resumed(self, told: int) -> int:
        """How often the answer moved, if the last entry node counts ``told`` moves: after tokens from an earlier entry
        node, it counts its own first attempt as a move."""
        return told + max(self.num_rejoins - 1, 0) if self._tokens else told


async def rejoining(
    so_far: AnswerSoFar, open_entry: OpenEntry, due_at: float, lost: bytes | None = None
) -> AsyncGenerator[EntryFrame, None]:
    """The frames of an answer. It enters again at another node each time its entry node is lost. due_at: see
    ``entry_frames``. lost: the entry node that was lost before. Raises NetworkError when there is no other one."""
    num_fruitless = 0
    while True:
        rest = so_far.rest()
        if not fits(rest):
            tokens = f", with the {so_far.num_tokens} tokens of its answer so far," if so_far.num_tokens else ""
            told = f"the prompt{tokens} does not fit into one message to another node; shorten it"
            yield Failed(code="too_long", message=told, retryable=False)
            return
        stream = await _opened(rest, open_entry, lost, due_at)
        before = so_far.num_tokens
        try:
            async with aclosing(entry_frames(stream, due_at)) as frames:
                async for received in frames:
                    frame = _noted(so_far, received)
                    if isinstance(frame, Failed) and _is_too_new(frame) and so_far.forget_format():
                        break
                    if isinstance(frame, Failed) and (
                        frame.code == LEAVING or (lost is not None and frame.code == "unknown_model")
                    ):
                        raise NetworkError(frame.message)  # (another node may be the right one)
                    yield frame
                    if isinstance(frame, Answered | Failed):
                        return
        except NetworkError as exc:
            lost = stream.peer
            num_fruitless = num_fruitless + 1 if so_far.num_tokens == before else 0
            if num_fruitless >= MAX_FRUITLESS:
                raise
            so_far.num_rejoins += 1
            log.debug("entry_lost", reason=str(exc), tokens=so_far.num_tokens)
        finally:
            with trio.CancelScope(shield=True):
                await stream.reset()


def _is_too_new(frame: Failed) -> bool:
    """Whether the entry node does not know a field of the request."""
    return frame.code == "bad_request" and "unknown field" in frame.message


def _noted(so_far: AnswerSoFar, frame: EntryFrame) -> EntryFrame:
    try:
        if isinstance(frame, Text):
            so_far.add(frame.tokens, len(frame.text), len(frame.logprobs))
        elif isinstance(frame, PromptLogprobs):
            so_far.add_prompt(frame)
        elif isinstance(frame, Route):
            so_far.routed(frame.namespace)
    except RemoteError as exc:
        return _broken(str(exc))
    if isinstance(frame, Answered):
        return msgspec.structs.replace(frame, resumed=so_far.num_resumed(frame.resumed))
    return frame


async def _opened(ask: Ask, open_entry: OpenEntry, lost: bytes | None, due_at: float) -> MessageStream:
    """Opens a stream: in one try, or after the loss of an entry node in repeated ones. Raises NetworkError."""
    if lost is None:
        return await open_entry(ask, None)
    give_up_at, pause_s = min(trio.current_time() + SEEK_DEADLINE_S, due_at), FIRST_PAUSE_S
    while True:
        try:
            return await open_entry(ask, lost)
        except NetworkError:
            if trio.current_time() + pause_s >= give_up_at:
                raise
        await trio.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


async def entry_frames(stream: MessageStream, due_at: float) -> AsyncGenerator[EntryFrame, None]:
    """The frames of an answer. If the entry node breaks the protocol, or ``due_at`` (a trio time) passes, the last
    frame is a Failed made here. Raises NetworkError when the stream breaks or stays silent for too long."""
    token_at = math.inf
    while True:
        silent_at = min(trio.current_time() + SILENCE_DEADLINE_S, token_at + STALLED_S)
        try:
            with trio.fail_at(min(silent_at, due_at)):
                frame = await stream.receive()
        except trio.TooSlowError as exc:
            if trio.current_time() < due_at:
                raise NetworkError("the entry node brought nothing for too long") from exc
            yield Failed(code=DEADLINE, message=TOO_LATE, retryable=False)
            return
        except RemoteError as exc:
            yield _broken(str(exc))
            return
        if not isinstance(frame, Route | Begun | PromptLogprobs | Text | Answered | Failed):
            yield _broken(f"it sent a {type(frame).__name__}")
            return
        yield frame
        if isinstance(frame, Text) and (frame.text or frame.tokens):
            token_at = trio.current_time()
        if isinstance(frame, Answered | Failed):
            return


def _broken(how: str) -> Failed:
    return Failed(code="internal", message=f"the entry node broke the protocol: {how}"[:512], retryable=True)
