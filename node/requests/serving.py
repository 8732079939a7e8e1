"""Answers one ``Generate`` with the local engine: engine items become serving frames.

Used for peers' requests (over a stream) and for this node's own (no hop), so both get the same frames.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager

import msgspec

from mycelia.node.engine.engine import (
    Engine,
    EngineAccepted,
    EngineDone,
    EngineFailed,
    EngineItem,
    EnginePromptLogprobs,
    EngineRequest,
    EngineTokens,
)
from mycelia.node.network.exchange import cancelled_at_end, receive_opening
from mycelia.node.network.network import MessageStream
from mycelia.node.requests.failures import retry_after_ms
from mycelia.node.requests.own_models import OwnModels
from mycelia.node.telemetry.requests import RequestLog
from mycelia.proto.admission.subnets import subnet_of
from mycelia.proto.cache.sharing import PUBLIC, Owner, owner_of
from mycelia.proto.overlay import Overlay
from mycelia.proto.wire.blocks import STRIDE, pack_tokens, token_array
from mycelia.proto.wire.errors import RemoteError
from mycelia.proto.wire.messages import Accepted, Bounced, Failed, Final, Generate, PromptLogprobs, ServingFrame, Tokens

SendFrame = Callable[[ServingFrame], Awaitable[None]]
BegunAnswer = AbstractAsyncContextManager[AsyncIterator[EngineItem]] | Failed
"""The engine's answer, which has to be entered, or the refusal of the request."""


def begun_answer(
    engine: Engine, request: Generate, client: bytes, subnet: str, owner: Owner, deadline_s: float | None = None
) -> BegunAnswer:
    """Gives ``request`` to the engine. The result is for ``send_answer``, which must be called then. client, subnet,
    owner, deadline_s: see ``EngineRequest``. The deadline is not on the wire: a peer ends the stream."""
    refusal = _refusal(engine, request)
    if refusal is not None:
        return refusal
    engine_request = EngineRequest(
        request_id=request.request_id,
        prompt=token_array(request.prompt),
        sampling=request.sampling,
        resumed_tokens=request.resumed_tokens,
        deadline_s=deadline_s,
        client=client,
        subnet=subnet,
        owner=owner,
        open_tokens=request.open_tokens,
    )
    return engine.generate(engine_request)


async def send_answer(
    begun: BegunAnswer,
    engine: Engine,
    send: SendFrame,
    serving: AbstractContextManager[Callable[[EngineItem], None]],
    on_begun: Callable[[], None] = lambda: None,
) -> None:
    """Send Accepted, PromptLogprobs*, Tokens*, then Final or Failed. Cancelling this call cancels the request in the
    engine.

    serving: see ``RequestLog.serving``. on_begun: called when the engine has the request, before anything is sent.
    Raises what ``send`` raises.
    """
    if isinstance(begun, Failed):
        await send(begun)
        return
    position = 0
    async with begun as items:
        on_begun()
        with serving as note:
            async for item in items:
                note(item)
                frame = _frame(item, position, engine)
                if isinstance(item, EngineTokens):
                    position += len(item.tokens)
                await send(frame)


def _refusal(engine: Engine, request: Generate) -> Failed | None:
    if request.namespace != engine.info.namespace:
        return Failed(code="unknown_model", message="this node does not serve that model", retryable=True)
    if len(request.prompt) % 4:
        return Failed(code="bad_request", message="packed tokens are not a multiple of 4 bytes", retryable=False)
    return None


def _frame(item: EngineItem, position: int, engine: Engine) -> ServingFrame:
    match item:
        case EngineAccepted():
            return Accepted(cached_tokens=item.cached_tokens, vitals=engine.vitals())
        case EngineDone():
            return Final(reason=item.reason, usage=item.usage, vitals=engine.vitals())
        case EngineFailed():
            wait_ms = retry_after_ms(item.retry_after_s)
            return Failed(code=item.code, message=item.message[:512], retryable=item.retryable, retry_after_ms=wait_ms)
        case EnginePromptLogprobs():
            return PromptLogprobs(position=item.position, logprobs=item.logprobs)
        case EngineTokens():
            tokens = pack_tokens(item.tokens)
            return Tokens(position=position, tokens=tokens, text=item.text, logprobs=item.logprobs)


async def serve_generate_stream(
    models: OwnModels,
    overlay: Overlay,
    requests: RequestLog,
    remote_address: Callable[[bytes], str],
    stream: MessageStream,
) -> None:
    """Serves one inbound Generate. The requester cancels by ending the stream.

    The peer at the other end counts as the client: a peer that could name other clients could invent shares.
    remote_address: see ``Network``; a subnet has one share of the engine, with or without a hello.
    """
    request = await receive_opening(stream)
    if not isinstance(request, Generate):
        raise RemoteError(f"a {type(request).__name__} where a Generate belongs")
    owner = owner_of(request.tag, request.scope, stream.peer, overlay.subnet(stream.peer))
    refusal = overlay.turned_away(request, owner.tag)
    if refusal is not None:
        if isinstance(refusal, Bounced):
            requests.handed_back(request, stream.peer)
        await stream.send(refusal)
        return

    async def send(frame: ServingFrame) -> None:
        if isinstance(frame, Accepted | Final):
            frame = msgspec.structs.replace(frame, vitals=overlay.as_told(frame.vitals))
        await stream.send(frame if owner == PUBLIC else _in_whole_blocks(frame))

    engine = models.of(request.namespace) or models.first  # (which refuses prompts of other models)
    async with cancelled_at_end(stream):
        subnet = subnet_of(remote_address(stream.peer))
        begun = begun_answer(engine, request, stream.peer, subnet, owner)
        await send_answer(begun, engine, send, requests.serving(request, stream.peer))


def _in_whole_blocks(frame: ServingFrame) -> ServingFrame:
    """Rounds down what peers learn of a cache; also of their own prefixes, so that no error here reveals more."""
    match frame:
        case Accepted():
            return msgspec.structs.replace(frame, cached_tokens=_whole(frame.cached_tokens))
        case Final():
            usage = msgspec.structs.replace(frame.usage, cached_tokens=_whole(frame.usage.cached_tokens))
            return msgspec.structs.replace(frame, usage=usage)
        case _:
            return frame


def _whole(num_tokens: int) -> int:
    return num_tokens // STRIDE * STRIDE
