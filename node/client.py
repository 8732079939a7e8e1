"""How a command reaches the swarm: through the node that runs here, else as a light client through bootstrap peers."""

import math
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import TypeVar

import httpx
import msgspec
import trio

from node.entry import ASK
from node.network.identity import new_identity
from node.network.network import MessageStream, Network, NetworkError, NetworkSettings
from node.relay import SILENCE_DEADLINE_S, entry_frames
from node.rundir import RunInfo, find_running, is_held
from node.views import (
    FailedView,
    FrameView,
    ModelRow,
    NodeState,
    RequestRow,
    TraceView,
    TreeRowView,
    frame_view,
)
from proto.errors import LocalError
from proto.messages import Ask, Sampling

START_HINT = "start one with 'mycelia node'"
_STARTING = "the node with the data directory {} is starting or leaving; try again in a moment"
CONNECT_DEADLINE_S = 15.0
_HTTP_ERRORS = (httpx.HTTPError, httpx.InvalidURL, msgspec.DecodeError)
_T = TypeVar("_T")


def running_node(data_dir: Path) -> RunInfo:
    """The node of ``data_dir``. Raises LocalError when none runs."""
    info = find_running(data_dir)
    if info is None:
        raise LocalError(
            _STARTING.format(data_dir)
            if is_held(data_dir)
            else f"no node is running with the data directory {data_dir}; {START_HINT}, or give --data-dir"
        )
    return info


async def fetch_state(info: RunInfo) -> NodeState:
    """Raises LocalError when the node does not answer."""
    return await _get(info, "/api/state", NodeState)


async def fetch_tree(info: RunInfo) -> list[TreeRowView]:
    """Raises LocalError when the node does not answer."""
    return await _get(info, "/api/tree", list[TreeRowView])


async def fetch_models(info: RunInfo) -> list[ModelRow]:
    """Raises LocalError when the node does not answer."""
    return await _get(info, "/api/models", list[ModelRow])


async def fetch_requests(info: RunInfo) -> list[RequestRow]:
    """Raises LocalError when the node does not answer."""
    return await _get(info, "/api/requests", list[RequestRow])


async def fetch_trace(info: RunInfo, prefix: str) -> TraceView:
    """Raises LocalError, also for a request that the node does not know."""
    return await _get(info, f"/api/trace/{prefix}", TraceView)


def _key(info: RunInfo) -> dict[str, str]:
    return {"authorization": f"Bearer {info.api_key}"} if info.api_key else {}


async def _get(info: RunInfo, path: str, kind: type[_T]) -> _T:
    try:
        async with httpx.AsyncClient(base_url=info.api_url, headers=_key(info), timeout=10, trust_env=False) as http:
            response = await http.get(path)
        if response.status_code == httpx.codes.NOT_FOUND:
            raise LocalError(msgspec.json.decode(response.content, type=FailedView).message)
        response.raise_for_status()
        return msgspec.json.decode(response.content, type=kind)
    except _HTTP_ERRORS as exc:
        raise _no_answer(info, exc) from exc


@asynccontextmanager
async def ask_swarm(
    ask: Ask, data_dir: Path, bootstrap: Sequence[str], timeout_s: float | None = None
) -> AsyncIterator[AsyncIterator[FrameView]]:
    """The frames of one answer. Leaving early cancels the request at the node that serves it.

    timeout_s: what the answer may take once a node is reached; then it is cancelled and fails with code ``deadline``.
    Raises LocalError when no node can be reached.
    """
    info = find_running(data_dir)
    if info is not None:
        async with _ask_local(ask, info, timeout_s) as frames:
            yield frames
    elif bootstrap:  # (also while the node here is starting)
        async with _ask_as_light_client(ask, bootstrap, timeout_s) as frames:
            yield frames
    elif is_held(data_dir):
        raise LocalError(_STARTING.format(data_dir))
    else:
        raise LocalError(
            f"no node is running here and no bootstrap peer is known; {START_HINT},"
            " or give the address of one with --bootstrap"
        )


@asynccontextmanager
async def _ask_local(ask: Ask, info: RunInfo, timeout_s: float | None) -> AsyncIterator[AsyncIterator[FrameView]]:
    body = {
        "model": ask.model,
        "request_id": ask.request_id.hex() if any(ask.request_id) else None,
        "timeout_s": timeout_s,
        "messages": [{"role": message.role, "content": message.content} for message in ask.messages],
        **{field.name: getattr(ask.sampling, field.name) for field in msgspec.structs.fields(Sampling)},
    }
    timeout = httpx.Timeout(10, read=SILENCE_DEADLINE_S)
    has_begun = False
    try:
        async with (
            httpx.AsyncClient(base_url=info.api_url, headers=_key(info), timeout=timeout, trust_env=False) as http,
            http.stream("POST", "/api/ask", json=body) as response,
        ):
            has_begun = True
            yield _views(response)
    except _HTTP_ERRORS as exc:
        if has_begun and isinstance(exc, httpx.TransportError):
            raise LocalError(f"the node at {info.api_url} went away before the answer was finished; ask again") from exc
        raise _no_answer(info, exc) from exc


async def _views(response: httpx.Response) -> AsyncIterator[FrameView]:
    async for line in response.aiter_lines():
        yield msgspec.json.decode(line, type=FrameView)


def _no_answer(info: RunInfo, exc: Exception) -> LocalError:
    reason = "it speaks another language" if isinstance(exc, msgspec.DecodeError) else str(exc) or type(exc).__name__
    return LocalError(f"the node at {info.api_url} (process {info.pid}) does not answer: {reason}; restart it")


@asynccontextmanager
async def _ask_as_light_client(
    ask: Ask, bootstrap: Sequence[str], timeout_s: float | None
) -> AsyncIterator[AsyncIterator[FrameView]]:
    from node.network.libp2p_network import open_network  # (imports libp2p, which a running node makes unnecessary)

    settings = NetworkSettings(identity=new_identity(), overlay=False)
    async with open_network(settings) as network:
        stream = await _open_entry(network, bootstrap)
        try:
            await stream.send(ask)
            due_at = math.inf if timeout_s is None else trio.current_time() + timeout_s
            async with aclosing(_stream_views(stream, due_at)) as views:
                yield views
        except NetworkError as exc:
            raise LocalError(f"the entry node went away: {exc}; ask again") from exc
        finally:
            with trio.CancelScope(shield=True):
                await stream.reset()


async def _stream_views(stream: MessageStream, due_at: float) -> AsyncGenerator[FrameView, None]:
    async with aclosing(entry_frames(stream, due_at)) as frames:
        async for frame in frames:
            yield frame_view(frame)


async def _open_entry(network: Network, bootstrap: Sequence[str]) -> MessageStream:
    """An entry stream at whichever bootstrap peer answers first. Raises LocalError when none does."""
    opened, failures = trio.open_memory_channel[MessageStream](math.inf), list[str]()
    send, receive = opened

    async def try_one(address: str) -> None:
        try:
            peer = await network.connect(address)
            send.send_nowait(await network.open(peer, ASK))
        except NetworkError as exc:
            failures.append(f"{address}: {exc}")
        if len(failures) == len(bootstrap):
            send.close()

    with trio.move_on_after(CONNECT_DEADLINE_S):
        async with trio.open_nursery() as nursery:
            for address in bootstrap:
                nursery.start_soon(try_one, address)
            async for stream in receive:
                nursery.cancel_scope.cancel()
                return stream
    detail = "; ".join(failures[:3]) or f"no answer within {CONNECT_DEADLINE_S:.0f} s"
    raise LocalError(f"no node could be reached ({detail}); {START_HINT}, or give another --bootstrap")
