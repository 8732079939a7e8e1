"""Prompts for models that this node does not serve: they enter at a node that does, and its frames are passed on.

A client chooses the model, and so the node that this node asks for it. Therefore the prompts passed on are limited by
client, and by node, well below the streams that a node accepts from one peer. A client over a limit gets a retry time.
"""

import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager, suppress

import msgspec
import trio

from mycelia.node.engine.engine import DEADLINE, TOO_LATE
from mycelia.node.errors import no_such_model
from mycelia.node.network.network import MessageStream, Network, NetworkError
from mycelia.node.requests.entry import ASK
from mycelia.node.requests.rejoin import AnswerSoFar, OpenEntry, rejoining
from mycelia.node.telemetry.requests import RequestLog
from mycelia.proto.admission.overload import OVERLOADED
from mycelia.proto.admission.subnets import Places, subnet_of
from mycelia.proto.wire.messages import Answered, Ask, EntryFrame, Failed

EnteredAt = AbstractAsyncContextManager[AsyncIterator[EntryFrame]]
"""See ``Entry.ask``."""
FindEntries = Callable[[], Awaitable[Sequence[bytes]]]
"""Connected peers at which a prompt can enter, the best first; empty: no known node serves the model."""

MAX_RELAYED, MAX_RELAYED_PER_CLIENT = 128, 32
MAX_RELAYED_PER_SERVER = 32
"""Half of the streams that a node accepts from one peer."""
RETRY_MS = 2_000


class _NobodyServesError(NetworkError):
    """No known node serves the model."""


class _BusyError(NetworkError):
    """Nodes serve the model, but each already has as many prompts as this node may pass on to it."""


class Relay:
    def __init__(self, network: Network, requests: RequestLog, served: Callable[[], Sequence[str]]) -> None:
        """served: the models of the swarm, named in the error for an unknown model."""
        self._network = network
        self._requests = requests
        self._served = served
        self._places = Places(MAX_RELAYED, MAX_RELAYED_PER_CLIENT)
        self._at_server: dict[bytes, Places] = {}

    @asynccontextmanager
    async def relayed(
        self, find: FindEntries, ask: Ask, deadline_s: float | None, client: bytes, is_own: bool
    ) -> AsyncIterator[AsyncIterator[EntryFrame]]:
        """The frames of an answer. The prompt enters at the first node of ``find`` that takes it, and again at another
        one if that node is lost. Leaving early cancels it. is_own: a client of this node's own API asks, not a peer."""
        due_at = math.inf if deadline_s is None else trio.current_time() + deadline_s
        request_id = self._requests.new_id(ask.request_id)
        self._requests.entered(request_id, ask.model, client)
        is_over = False

        async def logged(frames: AsyncIterator[EntryFrame]) -> AsyncGenerator[EntryFrame, None]:
            nonlocal is_over
            async for frame in frames:
                is_over = isinstance(frame, Answered | Failed)
                self._requests.relayed_frame(request_id, frame, so_far.num_tokens)
                yield frame

        so_far = AnswerSoFar(msgspec.structs.replace(ask, request_id=request_id))
        subnet = "" if is_own else subnet_of(self._network.remote_address(client))
        key = request_id if is_own else client
        place = _Place(self._at_server, key, subnet, is_own)

        async def enter(rest: Ask, lost: bytes | None) -> MessageStream:
            with trio.fail_at(due_at):
                peers = await find()
            if not peers and lost is None:
                raise _NobodyServesError(no_such_model(rest.model, self._served()))
            stream = await self._entered(sorted(peers, key=lambda peer: peer == lost), rest, place)
            self._requests.relayed(request_id, stream.peer)
            return stream

        is_admitted = self._places.take(key, subnet, is_own)
        try:
            frames = _frames(so_far, enter, due_at) if is_admitted else _refused("this node passes on too many prompts")
            async with aclosing(frames), aclosing(logged(frames)) as told:
                yield told
        finally:
            place.leave()
            if is_admitted:
                self._places.free(key, subnet)
            if not is_over:
                self._requests.cancelled(request_id, so_far.num_tokens)

    async def _entered(self, peers: Sequence[bytes], ask: Ask, place: "_Place") -> MessageStream:
        """The stream to the first of ``peers`` that takes the prompt. Raises NetworkError."""
        is_busy = False
        for peer in peers:
            if not place.take(peer):
                is_busy = True
                continue
            with suppress(NetworkError):
                # (each node that serves a model speaks it)
                stream = await self._network.open(peer, ASK, waits=False)
                await stream.send(ask)
                return stream
        if is_busy:
            raise _BusyError("this node may pass on no more prompts to the nodes of this model")
        raise NetworkError("no node that serves the model could be reached")


@asynccontextmanager
async def there_or_here(there: EnteredAt, here: Callable[[], EnteredAt]) -> AsyncIterator[AsyncIterator[EntryFrame]]:
    """The frames of the prompt that entered at a peer, or those of ``here`` if no peer could be reached or had room."""
    async with AsyncExitStack() as stack:
        frames = await stack.enter_async_context(there)
        first = await anext(frames, None)
        if isinstance(first, Failed) and first.code in ("no_peer", OVERLOADED):
            frames, first = await stack.enter_async_context(here()), None

        async def all_frames() -> AsyncGenerator[EntryFrame, None]:
            if first is not None:
                yield first
            async for frame in frames:
                yield frame

        yield await stack.enter_async_context(aclosing(all_frames()))


class _Place:
    def __init__(self, places: dict[bytes, Places], key: bytes, subnet: str, is_known: bool) -> None:
        """places: the places of all prompts, by server."""
        self._places = places
        self._key, self._subnet, self._is_known = key, subnet, is_known
        self._server: bytes | None = None

    def take(self, server: bytes) -> bool:
        """Take a place at ``server`` instead of the previous one; False if it has none left. Mutates."""
        self.leave()
        places = self._places.get(server) or Places(MAX_RELAYED_PER_SERVER, MAX_RELAYED_PER_SERVER)
        if not places.take(self._key, self._subnet, self._is_known):
            return False
        self._places[server] = places
        self._server = server
        return True

    def leave(self) -> None:
        """Give the place back, if there is one. Mutates."""
        if self._server is not None:
            places = self._places[self._server]
            places.free(self._key, self._subnet)
            if not places.num_taken:
                del self._places[self._server]
            self._server = None


async def _refused(reason: str) -> AsyncGenerator[EntryFrame, None]:
    yield Failed(code=OVERLOADED, message=reason, retryable=True, retry_after_ms=RETRY_MS)


async def _frames(so_far: AnswerSoFar, enter: OpenEntry, due_at: float) -> AsyncGenerator[EntryFrame, None]:
    try:
        async with aclosing(rejoining(so_far, enter, due_at)) as frames:
            async for frame in frames:
                yield frame
    except _NobodyServesError as exc:
        yield Failed(code="unknown_model", message=str(exc)[:512], retryable=False)
    except trio.TooSlowError:
        yield Failed(code=DEADLINE, message=TOO_LATE, retryable=False)
    except _BusyError as exc:
        yield Failed(code=OVERLOADED, message=str(exc)[:512], retryable=True, retry_after_ms=RETRY_MS)
    except NetworkError as exc:
        yield Failed(code="no_peer", message=str(exc)[:512], retryable=True)
