"""How a command reaches the swarm: through the node on this machine, or as a light client through bootstrap peers."""

import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import httpx
import msgspec
import structlog
import trio

from mycelia.node.client.light import LightClient, ask_as_light_client, tell
from mycelia.node.client.local import HTTP_ERRORS, START_HINT, STARTING, http_client, no_answer
from mycelia.node.client.thoughts import ThoughtSplitter
from mycelia.node.errors import first_error
from mycelia.node.peer_id import peer_from_text
from mycelia.node.requests.rejoin import SILENCE_DEADLINE_S, AnswerSoFar
from mycelia.node.storage.data_dir import PUBLIC
from mycelia.node.storage.rundir import RunInfo, find_running, is_held
from mycelia.node.views.frames import PUBLIC_SUFFIX, AnsweredView, FailedView, FrameView, RouteView, TextView
from mycelia.proto.planes.failure import LEAVING
from mycelia.proto.wire.blocks import pack_tokens
from mycelia.proto.wire.errors import LocalError
from mycelia.proto.wire.messages import Ask, Sampling

log = structlog.get_logger()

LATE_S = 2.0
"""How much later than asked the node on this machine may say that an answer took too long."""


@asynccontextmanager
async def ask_swarm(
    ask: Ask,
    data_dir: Path,
    bootstrap: Sequence[str],
    timeout_s: float | None = None,
    client: LightClient | None = None,
) -> AsyncIterator[AsyncIterator[FrameView]]:
    """The frames of one answer. Leaving early cancels the request at the node that serves it. If the entry node is
    lost, the answer continues through another one, and each text comes exactly once.

    timeout_s: limit for the answer once a node is reached; then it is cancelled and fails with code ``deadline``.
    client: the light client of an earlier try of the same prompt; None: a new one, unknown to all nodes. Mutated.
    Reading raises LocalError when no node can be reached.
    """
    send, receive = trio.open_memory_channel[FrameView](0)
    ask = msgspec.structs.replace(ask, reads_format=bool(ask.messages))
    due_at = math.inf if timeout_s is None else trio.current_time() + timeout_s

    async def follow() -> None:
        await _follow(ask, data_dir, bootstrap, due_at, send, client or LightClient())
        send.close()  # (only now: an error must find the reader waiting, and cancels it)

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow)
            async with aclosing(_split(receive)) as frames:
                yield frames
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise first_error(group) from group


async def _split(frames: AsyncIterator[FrameView]) -> AsyncGenerator[FrameView, None]:
    """``frames`` with the model's thoughts apart from its text."""
    splitter = ThoughtSplitter()
    async for frame in frames:
        for part in splitter.split(frame):
            yield part


async def _follow(
    ask: Ask,
    data_dir: Path,
    bootstrap: Sequence[str],
    due_at: float,
    send: trio.MemorySendChannel[FrameView],
    client: LightClient,
) -> None:
    so_far = AnswerSoFar(ask)
    info = find_running(data_dir)
    if info is not None:
        try:
            with trio.CancelScope(deadline=due_at + LATE_S) as late:
                await ask_local(so_far, info, due_at, send)
            if late.cancelled_caught:
                raise LocalError(
                    f"the node at {info.api_url} (process {info.pid}) did not answer in the time it was given, and is"
                    " silent: it may be stopped or overloaded; restart it"
                )
        except EntryLostError as exc:
            from mycelia.node.storage.known_peers import entries_known  # (imports multiaddr)

            is_public = ask.model.endswith(PUBLIC_SUFFIX)
            if info.swarm and not (is_public or client.swarm_key):  # (no other node may read the prompt)
                raise LocalError(
                    f"{exc}; its private swarm is asked through it alone: start it, then ask again"
                ) from exc
            # The lost node may have sent the prompt to any node that it remembered, even if it served it itself.
            where = data_dir / PUBLIC if info.public and is_public else data_dir
            entries = [*bootstrap, *entries_known(where, so_far.namespace, time.time())]
            if not entries:
                raise LocalError(f"{exc}, and no other is known: give --bootstrap, or ask again") from exc
            log.warning("node_here_lost", reason=str(exc), now="looking for another node that goes on, Ctrl-C ends it")
            so_far.num_rejoins += 1
            await ask_as_light_client(so_far, entries, due_at, send, client, peer_from_text(info.peer))
    elif bootstrap or (client.mdns and not is_held(data_dir)):  # (also while the node on this machine is starting)
        await ask_as_light_client(so_far, bootstrap, due_at, send, client)
    elif is_held(data_dir):
        raise LocalError(STARTING.format(data_dir))
    else:
        raise LocalError(
            f"no node is running here and no bootstrap peer is known; {START_HINT},"
            " or give the address of one with --bootstrap"
        )


class EntryLostError(Exception):
    """The node on this machine went away before the answer was finished."""


async def ask_local(so_far: AnswerSoFar, info: RunInfo, due_at: float, send: trio.MemorySendChannel[FrameView]) -> None:
    ask = so_far.rest()
    body = {
        "model": ask.model,
        "request_id": ask.request_id.hex() if any(ask.request_id) else None,
        "timeout_s": None if math.isinf(due_at) else max(due_at - trio.current_time(), 0.001),
        "cache_salt": ask.cache_salt,
        "reads_format": ask.reads_format,
        "messages": [{"role": message.role, "content": message.content} for message in ask.messages],
        **_unusual(ask.sampling),
    }
    timeout = httpx.Timeout(10, read=SILENCE_DEADLINE_S)
    has_begun = is_over = False
    try:
        async with (
            http_client(info, timeout) as http,
            http.stream("POST", "/api/ask", json=body) as response,
        ):
            has_begun = True
            async for line in response.aiter_lines():
                frame = msgspec.json.decode(line, type=FrameView)
                if isinstance(frame, TextView):
                    so_far.add(pack_tokens(frame.tokens))
                elif isinstance(frame, RouteView):
                    so_far.routed(bytes.fromhex(frame.namespace))
                if isinstance(frame, FailedView) and frame.code == LEAVING:
                    raise EntryLostError(f"the node at {info.api_url} is leaving")
                is_over = isinstance(frame, AnsweredView | FailedView)
                await tell(send, frame)
    except HTTP_ERRORS as exc:
        if not (has_begun and isinstance(exc, httpx.TransportError)):
            raise no_answer(info, exc) from exc
    if not is_over:
        raise EntryLostError(f"the node at {info.api_url} went away before the answer was finished")


def _unusual(sampling: Sampling) -> dict[str, object]:
    """The fields that differ from the defaults, which the local API has as well. It does not have all fields."""
    usual = Sampling(max_tokens=sampling.max_tokens)
    chosen = {name: value for name, value in msgspec.structs.asdict(sampling).items() if value != getattr(usual, name)}
    return {"max_tokens": sampling.max_tokens, **chosen}
