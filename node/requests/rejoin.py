"""An answer that outlives the node where its request entered.

The client has all that is needed to go on: the request, and the tokens that came. It asks another entry node for what
comes after them, which that node routes to whoever has them cached, most likely the one that was serving. Nothing is
kept for clients that may come back or not; a seed makes the rest what it would have been (``Sampling.seed``).
"""

import math
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

import msgspec
import structlog
import trio

from mycelia.node.engine.engine import DEADLINE, TOO_LATE
from mycelia.node.network.network import MessageStream, NetworkError
from mycelia.proto.planes.failure import LEAVING
from mycelia.proto.wire.codec import fits
from mycelia.proto.wire.errors import RemoteError
from mycelia.proto.wire.messages import MAX_TEXT_BYTES_PER_TOKEN, Answered, Ask, Begun, EntryFrame, Failed, Route, Text

log = structlog.get_logger()

SILENCE_DEADLINE_S = 150.0
"""Of an entry node, which tells every one or two ``KEEP_ALIVE_S`` (entry.py) that it is there. Earlier ones told only
when there was something, and gave up a serving node after 120 s of silence."""
STALLED_S = 600.0
"""Between two tokens of an answer, whatever the entry node tells meanwhile: a slow machine may take that long for a
prompt that another one was lost with."""
MAX_FRUITLESS = 8
"""Entry nodes lost one after the other without a token of the answer."""
SEEK_DEADLINE_S = 60.0
"""For reaching another entry node: one that was restarted is back by then."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0

OpenEntry = Callable[[Ask, bytes | None], Awaitable[MessageStream]]
"""(what to ask, the peer that was lost just now) -> a stream on which it was asked, at another peer if there is one.
Raises NetworkError when none can be reached."""


class AnswerSoFar:
    """What a client has got of an answer."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._tokens = bytearray(ask.answered)
        self._num_chars = self._num_logprobs = 0
        self.namespace = ask.namespace
        """Of the model that was chosen; empty: none yet."""
        self.num_rejoins = 0

    def routed(self, namespace: bytes) -> None:
        """What the tokens to come mean. Raises RemoteError when it changes. Mutates."""
        if self._tokens and self.namespace and namespace != self.namespace:
            raise RemoteError("another model went on with the answer")
        self.namespace = namespace

    def add(self, tokens: bytes, num_chars: int = 0, num_logprobs: int = 0) -> None:
        """What came, of which an entry node need not tell the tokens. Raises RemoteError for more than was asked for,
        which a client would gather in memory, or what is no tokens. Mutates."""
        most = self._ask.sampling.max_tokens
        self._tokens += tokens
        self._num_chars += num_chars
        self._num_logprobs += num_logprobs
        if len(tokens) % 4 or len(self._tokens) > 4 * most:
            raise RemoteError("not the tokens that were asked for")
        if self._num_chars > MAX_TEXT_BYTES_PER_TOKEN * most or self._num_logprobs > most:
            raise RemoteError("more text than the tokens that were asked for have")

    @property
    def num_tokens(self) -> int:
        return len(self._tokens) // 4

    def rest(self) -> Ask:
        """The request for what comes after."""
        namespace = self.namespace if self._tokens else b""
        return msgspec.structs.replace(self._ask, answered=bytes(self._tokens), namespace=namespace)

    def num_resumed(self, told: int) -> int:
        """How often the answer moved, where the last entry node told of ``told`` times: its own first attempt counts
        there, as tokens came before it."""
        return told + max(self.num_rejoins - 1, 0) if self._tokens else told


async def rejoining(
    so_far: AnswerSoFar, open_entry: OpenEntry, due_at: float, lost: bytes | None = None
) -> AsyncGenerator[EntryFrame, None]:
    """The frames of an answer, entered anew wherever an entry node is lost. due_at: see ``entry_frames``. lost: the
    entry node that was lost before. Raises NetworkError when there is no other one."""
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
                    if isinstance(frame, Failed) and (
                        frame.code == LEAVING or (lost is not None and frame.code == "unknown_model")
                    ):
                        raise NetworkError(frame.message)  # (any other node may be of the right one)
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


def _noted(so_far: AnswerSoFar, frame: EntryFrame) -> EntryFrame:
    try:
        if isinstance(frame, Text):
            so_far.add(frame.tokens, len(frame.text), len(frame.logprobs))
        elif isinstance(frame, Route):
            so_far.routed(frame.namespace)
    except RemoteError as exc:
        return _broken(str(exc))
    if isinstance(frame, Answered):
        return msgspec.structs.replace(frame, resumed=so_far.num_resumed(frame.resumed))
    return frame


async def _opened(ask: Ask, open_entry: OpenEntry, lost: bytes | None, due_at: float) -> MessageStream:
    """At the first try, or after the loss of an entry node also later. Raises NetworkError."""
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
    """The frames of an answer, the last one made up if the entry node does not end it properly until ``due_at``, a
    trio time. Raises NetworkError when the stream breaks, or nothing comes for too long."""
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
        if not isinstance(frame, Route | Begun | Text | Answered | Failed):
            yield _broken(f"it sent a {type(frame).__name__}")
            return
        yield frame
        if isinstance(frame, Text) and (frame.text or frame.tokens):
            token_at = trio.current_time()
        if isinstance(frame, Answered | Failed):
            return


def _broken(how: str) -> Failed:
    return Failed(code="internal", message=f"the entry node broke the protocol: {how}"[:512], retryable=True)
