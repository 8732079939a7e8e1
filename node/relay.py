"""Prompts for models that this node does not serve: they enter at a node that does, and its frames are passed on.

What comes over an entry stream is read here for light clients as well.
"""

import math
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager

import msgspec
import trio

from node.engine.engine import DEADLINE, TOO_LATE
from node.entry import ASK, FRAME_DEADLINE_S
from node.network.network import MessageStream, Network, NetworkError
from node.telemetry.requests import RequestLog
from proto.errors import RemoteError
from proto.messages import Answered, Ask, Begun, EntryFrame, Failed, Route, Text

SILENCE_DEADLINE_S = FRAME_DEADLINE_S + 30
"""Longer than the entry node waits for a serving node, so that it has time to try another."""


async def entry_frames(stream: MessageStream, due_at: float) -> AsyncGenerator[EntryFrame, None]:
    """The frames of an answer, the last one made up if the entry node does not end it properly until ``due_at``, a
    trio time. Raises NetworkError when the stream breaks."""
    while True:
        try:
            with trio.fail_at(min(trio.current_time() + SILENCE_DEADLINE_S, due_at)):
                frame = await stream.receive()
        except trio.TooSlowError:
            if trio.current_time() >= due_at:
                yield Failed(code=DEADLINE, message=TOO_LATE, retryable=False)
            else:
                message = f"the entry node was silent for {SILENCE_DEADLINE_S:.0f} s"
                yield Failed(code="timeout", message=message, retryable=True)
            return
        except RemoteError as exc:
            yield _broken(str(exc))
            return
        if not isinstance(frame, Route | Begun | Text | Answered | Failed):
            yield _broken(f"it sent a {type(frame).__name__}")
            return
        yield frame
        if isinstance(frame, Answered | Failed):
            return


@asynccontextmanager
async def relayed(
    network: Network,
    peers: Sequence[bytes],
    ask: Ask,
    deadline_s: float | None,
    client: bytes,
    requests: RequestLog,
) -> AsyncIterator[AsyncIterator[EntryFrame]]:
    """The frames of an answer that enters at the first of ``peers`` that takes it. Leaving early cancels it there."""
    started_at = trio.current_time()
    due_at = math.inf if deadline_s is None else started_at + deadline_s
    request_id = requests.new_id(ask.request_id)
    requests.entered(request_id, ask.model, client)
    is_over = False

    async def logged(frames: AsyncIterator[EntryFrame]) -> AsyncGenerator[EntryFrame, None]:
        nonlocal is_over
        async for frame in frames:
            is_over = isinstance(frame, Answered | Failed)
            requests.relayed_frame(request_id, frame)
            yield frame

    stream = await _opened(network, peers, msgspec.structs.replace(ask, request_id=request_id))
    try:
        if stream is not None:
            requests.relayed(request_id, stream.peer)
        async with aclosing(_frames(stream, due_at)) as frames, aclosing(logged(frames)) as told:
            yield told
    finally:
        if not is_over:
            requests.cancelled(request_id)
        if stream is not None:
            with trio.CancelScope(shield=True):
                await stream.reset()


async def _opened(network: Network, peers: Sequence[bytes], ask: Ask) -> MessageStream | None:
    for peer in peers:
        try:
            stream = await network.open(peer, ASK)
        except NetworkError:
            continue
        try:
            await stream.send(ask)
            return stream
        except NetworkError:
            with trio.CancelScope(shield=True):
                await stream.reset()
    return None


async def _frames(stream: MessageStream | None, due_at: float) -> AsyncGenerator[EntryFrame, None]:
    try:
        if stream is None:
            raise NetworkError("no node that serves the model could be reached")
        async with aclosing(entry_frames(stream, due_at)) as frames:
            async for frame in frames:
                yield frame
    except NetworkError as exc:
        yield Failed(code="no_peer", message=str(exc)[:512], retryable=True)


def _broken(how: str) -> Failed:
    return Failed(code="internal", message=f"the entry node broke the protocol: {how}"[:512], retryable=True)
