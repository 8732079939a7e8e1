"""Prompts for models that this node does not serve: they enter at a node that does, and its frames are passed on."""

import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager

import msgspec
import trio

from node.engine.engine import DEADLINE, TOO_LATE
from node.entry import ASK
from node.network.network import MessageStream, Network, NetworkError
from node.rejoin import AnswerSoFar, OpenEntry, rejoining
from node.telemetry.requests import RequestLog
from proto.messages import Answered, Ask, EntryFrame, Failed

FindEntries = Callable[[], Awaitable[Sequence[bytes]]]
"""Connected peers at which a prompt can enter, the best first; none: nobody is known to serve the model."""


class _NobodyServesError(NetworkError):
    """There is no node to be asked, and not only none that could be reached."""


@asynccontextmanager
async def relayed(
    network: Network,
    find: FindEntries,
    ask: Ask,
    deadline_s: float | None,
    client: bytes,
    requests: RequestLog,
    own: str,
) -> AsyncIterator[AsyncIterator[EntryFrame]]:
    """The frames of an answer that enters at the first of what ``find`` tells that takes it, and anew where that one is
    lost. Leaving early cancels it there. own: the model served here, for who asks for one that nobody serves."""
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

    so_far = AnswerSoFar(msgspec.structs.replace(ask, request_id=request_id))

    async def enter(rest: Ask, lost: bytes | None) -> MessageStream:
        with trio.fail_at(due_at):
            peers = await find()
        if not peers and lost is None:
            raise _NobodyServesError(f"no node that can be found serves {rest.model[:64]!r}, this one serves {own!r}")
        stream = await _entered(network, peers, rest, lost)
        requests.relayed(request_id, stream.peer)
        return stream

    try:
        async with aclosing(_frames(so_far, enter, due_at)) as frames, aclosing(logged(frames)) as told:
            yield told
    finally:
        if not is_over:
            requests.cancelled(request_id)


async def _entered(network: Network, peers: Sequence[bytes], ask: Ask, lost: bytes | None) -> MessageStream:
    """Asked at the first of ``peers`` that takes it, at ``lost`` last. Raises NetworkError."""
    for peer in sorted(peers, key=lambda peer: peer == lost):
        try:
            stream = await network.open(peer, ASK, waits=False)  # (every node that serves a model speaks it)
        except NetworkError:
            continue
        try:
            await stream.send(ask)
            return stream
        except NetworkError:
            with trio.CancelScope(shield=True):
                await stream.reset()
    raise NetworkError("no node that serves the model could be reached")


async def _frames(so_far: AnswerSoFar, enter: OpenEntry, due_at: float) -> AsyncGenerator[EntryFrame, None]:
    try:
        async with aclosing(rejoining(so_far, enter, due_at)) as frames:
            async for frame in frames:
                yield frame
    except _NobodyServesError as exc:
        yield Failed(code="unknown_model", message=str(exc)[:512], retryable=False)
    except trio.TooSlowError:
        yield Failed(code=DEADLINE, message=TOO_LATE, retryable=False)
    except NetworkError as exc:
        yield Failed(code="no_peer", message=str(exc)[:512], retryable=True)
