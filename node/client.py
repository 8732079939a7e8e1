"""How a command reaches the swarm: through the node that runs here, else as a light client through bootstrap peers."""

import math
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import httpx
import msgspec
import trio

from node.entry import ASK
from node.errors import first_error
from node.network.identity import Identity, new_identity
from node.network.network import MessageStream, Network, NetworkError, NetworkSettings
from node.peer_id import peer_from_text, peer_text
from node.rejoin import SILENCE_DEADLINE_S, AnswerSoFar, rejoining
from node.rundir import RunInfo, find_running, is_held
from node.views import (
    STILL_THERE_VIEW,
    AnsweredView,
    FailedView,
    FrameView,
    ModelRow,
    NodeState,
    RequestRow,
    RouteView,
    TextView,
    TraceView,
    TreeRowView,
    frame_view,
)
from proto.blocks import pack_tokens
from proto.errors import LocalError, RemoteError
from proto.messages import Ask
from proto.request import LEAVING

START_HINT = "start one with 'mycelia node'"
_STARTING = "the node with the data directory {} is starting or leaving; try again in a moment"
CONNECT_DEADLINE_S = 15.0
_HTTP_ERRORS = (httpx.HTTPError, httpx.InvalidURL, msgspec.DecodeError, RemoteError)
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


UNREACHED_AGAIN_S = 2.0
"""After which to try again whether a node can be reached, for whoever waits."""


class NoEntryError(LocalError):
    """No node could be reached, and nothing of the answer has come: one that is starting may be there soon."""


@dataclass
class LightClient:
    """Whoever asks without a node of its own. An entry node that refused a prompt keeps a place for this client, so one
    that asks again has to be the same, and to enter there."""

    identity: Identity = field(default_factory=new_identity)
    swarm_key: bytes = b""
    """See ``NodeSettings``."""
    entry: bytes | None = None
    """The node at which it entered last."""


@asynccontextmanager
async def ask_swarm(
    ask: Ask,
    data_dir: Path,
    bootstrap: Sequence[str],
    timeout_s: float | None = None,
    client: LightClient | None = None,
) -> AsyncIterator[AsyncIterator[FrameView]]:
    """The frames of one answer. Leaving early cancels the request at the node that serves it. Where the entry node is
    lost, the answer goes on through another one: each text comes exactly once.

    timeout_s: what the answer may take once a node is reached; then it is cancelled and fails with code ``deadline``.
    client: of an earlier try, for the next one of the same prompt; None: nobody that any node knows. Mutated.
    Reading raises LocalError when no node can be reached.
    """
    send, receive = trio.open_memory_channel[FrameView](0)
    due_at = math.inf if timeout_s is None else trio.current_time() + timeout_s

    async def follow() -> None:
        await _follow(ask, data_dir, bootstrap, due_at, send, client or LightClient())
        send.close()  # (only now: an error must find the reader waiting, and cancels it)

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow)
            yield receive
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise first_error(group) from group


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
            await _ask_local(so_far, info, due_at, send)
        except _EntryLostError as exc:
            from node.known_peers import entries_known  # (imports multiaddr)

            # The lost node might have sent the prompt to any of those that it remembered, even if it served it itself.
            entries = [*bootstrap, *entries_known(data_dir, so_far.namespace, time.time())]
            if not entries:
                raise LocalError(f"{exc}, and no other is known: give --bootstrap, or ask again") from exc
            so_far.num_rejoins += 1
            await _ask_as_light_client(so_far, entries, due_at, send, client, peer_from_text(info.peer))
    elif bootstrap:  # (also while the node here is starting)
        await _ask_as_light_client(so_far, bootstrap, due_at, send, client)
    elif is_held(data_dir):
        raise LocalError(_STARTING.format(data_dir))
    else:
        raise LocalError(
            f"no node is running here and no bootstrap peer is known; {START_HINT},"
            " or give the address of one with --bootstrap"
        )


class _EntryLostError(Exception):
    """The node here went away before the answer was finished."""


async def _ask_local(
    so_far: AnswerSoFar, info: RunInfo, due_at: float, send: trio.MemorySendChannel[FrameView]
) -> None:
    ask = so_far.rest()
    body = {
        "model": ask.model,
        "request_id": ask.request_id.hex() if any(ask.request_id) else None,
        "timeout_s": None if math.isinf(due_at) else max(due_at - trio.current_time(), 0.001),
        "cache_salt": ask.cache_salt,
        "messages": [{"role": message.role, "content": message.content} for message in ask.messages],
        **msgspec.structs.asdict(ask.sampling),
    }
    timeout = httpx.Timeout(10, read=SILENCE_DEADLINE_S)
    has_begun = is_over = False
    try:
        async with (
            httpx.AsyncClient(base_url=info.api_url, headers=_key(info), timeout=timeout, trust_env=False) as http,
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
                    raise _EntryLostError(f"the node at {info.api_url} is leaving")
                is_over = isinstance(frame, AnsweredView | FailedView)
                await _tell(send, frame)
    except _HTTP_ERRORS as exc:
        if not (has_begun and isinstance(exc, httpx.TransportError)):
            raise _no_answer(info, exc) from exc
    if not is_over:
        raise _EntryLostError(f"the node at {info.api_url} went away before the answer was finished")


async def _tell(send: trio.MemorySendChannel[FrameView], frame: FrameView) -> None:
    if frame != STILL_THERE_VIEW:
        await send.send(frame)


def _no_answer(info: RunInfo, exc: Exception) -> LocalError:
    reason = (
        "it speaks another language"
        if isinstance(exc, msgspec.DecodeError | RemoteError)
        else str(exc) or type(exc).__name__
    )
    return LocalError(f"the node at {info.api_url} (process {info.pid}) does not answer: {reason}; restart it")


async def _ask_as_light_client(
    so_far: AnswerSoFar,
    bootstrap: Sequence[str],
    due_at: float,
    send: trio.MemorySendChannel[FrameView],
    client: LightClient,
    lost: bytes | None = None,
) -> None:
    """lost: the entry node that began the answer."""
    from node.network.libp2p_network import open_network  # (imports libp2p, which a running node makes unnecessary)

    settings = NetworkSettings(identity=client.identity, overlay=False, swarm_key=client.swarm_key)
    async with open_network(settings) as network:

        async def enter(ask: Ask, lost: bytes | None) -> MessageStream:
            if lost is None:
                first = _of_peer(bootstrap, client.entry)
            else:
                first = [address for address in bootstrap if address not in _of_peer(bootstrap, lost)]
            try:
                stream = await _open_entry(network, first or bootstrap)
            except NetworkError:
                if not first or len(first) == len(bootstrap):
                    raise
                stream = await _open_entry(network, bootstrap)
            client.entry = stream.peer
            try:
                await stream.send(ask)
            except NetworkError:
                with trio.CancelScope(shield=True):
                    await stream.reset()
                raise
            return stream

        try:
            async with aclosing(rejoining(so_far, enter, due_at, lost)) as frames:
                async for frame in frames:
                    await _tell(send, frame_view(frame))
        except NetworkError as exc:
            has_begun = bool(so_far.rest().answered)
            kind = LocalError if has_begun else NoEntryError
            raise kind(f"{exc}; {START_HINT}, or give another --bootstrap") from exc


def _of_peer(addresses: Sequence[str], peer: bytes | None) -> list[str]:
    return [address for address in addresses if peer is not None and address.endswith(peer_text(peer))]


async def _open_entry(network: Network, bootstrap: Sequence[str]) -> MessageStream:
    """An entry stream at whichever bootstrap peer answers first. Raises NetworkError when none does."""
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
    raise NetworkError(f"no node could be reached ({detail})")
