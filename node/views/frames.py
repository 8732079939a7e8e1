"""The readable forms of an answer's frames: the lines of ``mycelia ask --json`` and of the local API."""

import msgspec

from mycelia.node.peer_id import peer_text
from mycelia.proto.wire.blocks import unpack_tokens
from mycelia.proto.wire.messages import (
    Answered,
    Begun,
    EntryFrame,
    Failed,
    Logprob,
    PromptLogprobs,
    Route,
    Text,
    TokenLogprobs,
)

MAX_TIMEOUT_S = 86_400.0
"""A day: a longer timeout is a typing error."""
PUBLIC_SUFFIX = "@public"
"""Ends the name of a model that is asked for in the open network, at a node that is in a private one as well."""


class CandidateView(msgspec.Struct, frozen=True):
    """A candidate node: one line of ``--explain``."""

    peer: str
    matched_tokens: int
    queued_requests: int
    cost: float
    """The seconds until the first token, weighed with the load (``proto/routing/choose.py``): lower is better."""
    round_trip_ms: int
    queue_ms: int
    prefill_ms: int
    load_factor: float
    precision: float
    lateness_ms: int
    recompute_ms: int


class RouteView(msgspec.Struct, frozen=True, tag="route"):
    """Where the prompt goes, and why. Sent again when the request moves."""

    chosen: str
    reason: str
    prompt_tokens: int
    candidates: list[CandidateView]
    namespace: str = ""
    """Namespace of the answering model in hexadecimal. It stands for the model's file, its settings and the swarm."""
    format: str = ""
    opened: str = ""
    """See ``Route``; empty unless requested."""


class BegunView(msgspec.Struct, frozen=True, tag="begun"):
    """A node has begun to answer. Sent again when the request moved."""

    served_by: str
    cached_tokens: int


class LogprobView(msgspec.Struct, frozen=True):
    """A token and the natural logarithm of its probability."""

    token: int
    text: str
    """With U+FFFD for incomplete characters."""
    bytes: list[int]
    logprob: float


class TokenLogprobsView(LogprobView, frozen=True):
    """A token of the answer, with the likeliest tokens at its place."""

    top: list[LogprobView]


class TextView(msgspec.Struct, frozen=True, tag="text", omit_defaults=True):
    text: str
    logprobs: list[TokenLogprobsView] = []
    """Omitted unless requested."""
    tokens: list[int] = []
    thought: str = ""
    """What the model wrote for itself, before ``text``. The node sends all as text; clients split it."""


class PromptLogprobsView(msgspec.Struct, frozen=True, tag="prompt_logprobs"):
    position: int
    logprobs: list[TokenLogprobsView]


class AnsweredView(msgspec.Struct, frozen=True, tag="answered"):
    """The end of an answer. Times in ms: ``ttft_ms`` was measured at the entry node, the rest at the serving node."""

    served_by: str
    finish_reason: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    ttft_ms: int
    queue_ms: int
    prefill_ms: int
    decode_ms: int
    resumed: int


class FailedView(msgspec.Struct, frozen=True, tag="failed"):
    code: str
    message: str
    retryable: bool
    retry_after_s: float = 0.0
    """Seconds after which to ask again, as in the header Retry-After; 0: unknown."""


FrameView = RouteView | BegunView | PromptLogprobsView | TextView | AnsweredView | FailedView


def frame_view(frame: EntryFrame) -> FrameView:
    """The readable form of a frame."""
    match frame:
        case Route():
            return RouteView(
                namespace=frame.namespace.hex(),
                format=frame.format,
                opened=frame.opened,
                chosen=peer_text(frame.chosen),
                reason=frame.reason,
                prompt_tokens=frame.prompt_tokens,
                candidates=[
                    CandidateView(**msgspec.structs.asdict(one) | {"peer": peer_text(one.peer)})
                    for one in frame.candidates
                ],
            )
        case Begun():
            return BegunView(peer_text(frame.served_by), frame.cached_tokens)
        case PromptLogprobs():
            return PromptLogprobsView(frame.position, [_logprobs_view(entry) for entry in frame.logprobs])
        case Text():
            logprobs = [_logprobs_view(entry) for entry in frame.logprobs]
            return TextView(frame.text, logprobs, unpack_tokens(frame.tokens))
        case Answered():
            usage = frame.usage
            return AnsweredView(
                served_by=peer_text(frame.served_by),
                finish_reason=frame.reason,
                prompt_tokens=usage.prompt_tokens,
                cached_tokens=usage.cached_tokens,
                completion_tokens=usage.completion_tokens,
                ttft_ms=frame.ttft_ms,
                queue_ms=usage.queue_ms,
                prefill_ms=usage.prefill_ms,
                decode_ms=usage.decode_ms,
                resumed=frame.resumed,
            )
        case Failed():
            return FailedView(frame.code, frame.message, frame.retryable, frame.retry_after_ms / 1000)


def is_keep_alive(frame: EntryFrame | FrameView) -> bool:
    """Whether the frame says only that the answer is still in work, see ``KEEP_ALIVE``."""
    return isinstance(frame, Text | TextView) and not (frame.text or frame.tokens or frame.logprobs)


def _logprobs_view(entry: TokenLogprobs) -> TokenLogprobsView:
    chosen, top = entry.chosen, [_logprob_view(other) for other in entry.top]
    return TokenLogprobsView(
        chosen.token, chosen.text.decode("utf-8", "replace"), list(chosen.text), chosen.logprob, top
    )


def _logprob_view(entry: Logprob) -> LogprobView:
    return LogprobView(entry.token, entry.text.decode("utf-8", "replace"), list(entry.text), entry.logprob)
