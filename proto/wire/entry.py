"""Entry streams: a client without a model asks a node to be its entry."""

from typing import Annotated

from msgspec import Meta, field

from mycelia.proto.wire.bounds import (
    MAX_CANDIDATES,
    MAX_CHAT_BYTES,
    MAX_CHAT_MESSAGES,
    MAX_LOGPROBS_PER_FRAME,
    MAX_SALT_CHARS,
    MAX_TOKENS_PER_REQUEST,
    Kind,
    NamespaceKey,
    PeerId,
    Record,
    RequestId,
    Small,
)
from mycelia.proto.wire.serving import Failed, Sampling, TokenLogprobs, Usage


class ChatMessage(Record, frozen=True, kw_only=True):
    """One turn of a conversation, before the chat template."""

    role: Annotated[str, Meta(min_length=1, max_length=32)] = field(name="1")
    content: Annotated[str, Meta(max_length=MAX_CHAT_BYTES)] = field(name="2")
    extras: Annotated[str, Meta(max_length=MAX_CHAT_BYTES)] = field(name="3", default="")
    """What else the template may read of it, such as tool_calls: a JSON object; empty: nothing."""


class CandidateTerms(Record, frozen=True, kw_only=True):
    """What routing knew of one candidate when it chose."""

    peer: PeerId = field(name="1")
    matched_tokens: Small = field(name="2")
    """Prompt tokens that the peer is estimated to hold already."""
    queued_requests: Small = field(name="3")
    cost: Annotated[float, Meta(ge=0, le=1e18)] = field(name="4")
    """Lower is better; unit and formula belong to the policy (``routing/choose.py``). What it is made of:"""
    round_trip_ms: Small = field(name="5", default=0)
    queue_ms: Small = field(name="6", default=0)
    """Until what is to be prefilled there before this prompt is done."""
    prefill_ms: Small = field(name="7", default=0)
    """Of what is not cached there."""
    load_factor: Annotated[float, Meta(ge=0, le=1e18)] = field(name="8", default=1.0)
    precision: Annotated[float, Meta(ge=0, le=1)] = field(name="9", default=1.0)
    """Share of such matches that were really there, of late."""
    lateness_ms: Small = field(name="10", default=0)
    """Observed - expected wait, of late."""
    recompute_ms: Small = field(name="11", default=0)
    """What it costs others that tokens are computed there again."""


class Ask(Kind, frozen=True, kw_only=True, tag=13):
    """A prompt: a conversation, or else a text, or else tokens. Answered by Route, then once a node has begun Begun and
    Text*, then Answered or Failed."""

    request_id: RequestId = field(name="1")
    model: Annotated[str, Meta(max_length=128)] = field(name="2")
    """Empty: whatever the entry node serves."""
    messages: Annotated[tuple[ChatMessage, ...], Meta(max_length=MAX_CHAT_MESSAGES)] = field(name="3")
    sampling: Sampling = field(name="4")
    tools: Annotated[str, Meta(max_length=MAX_CHAT_BYTES)] = field(name="5", default="")
    """What the chat template is told of functions that the model may call: a JSON array; empty: there are none."""
    text: Annotated[str, Meta(max_length=MAX_CHAT_BYTES)] = field(name="6", default="")
    """Instead of a conversation, with no template around it; control tokens spelled in it count."""
    tokens: Annotated[bytes, Meta(max_length=4 * MAX_TOKENS_PER_REQUEST)] = field(name="7", default=b"")
    """Instead of words: uint32, little-endian."""
    answered: Annotated[bytes, Meta(max_length=4 * MAX_TOKENS_PER_REQUEST)] = field(name="8", default=b"")
    """Tokens of the answer that the client has already, from an entry node that it lost; likewise. ``max_tokens``
    counts them too. The answer goes on after them, as it would have there."""
    namespace: Annotated[bytes, Meta(max_length=16)] = field(name="9", default=b"")
    """Of the Route that came with them: tokens mean nothing in any other. Empty: any."""
    cache_salt: Annotated[str, Meta(max_length=MAX_SALT_CHARS)] = field(name="10", default="")
    """Requests with the same one reuse each other's prefixes, and nobody else does; "public": everybody. Empty: those
    of the same client do, and others what two subnets had."""
    shared_messages: Annotated[int, Meta(ge=0, le=MAX_CHAT_MESSAGES)] = field(name="11", default=0)
    """Of a conversation, how many turns from the first one hold no secrets, as an application's system prompt."""


class Route(Kind, frozen=True, kw_only=True, tag=14):
    """Which node will serve, and what every candidate looked like. Sent again when a request is resumed elsewhere."""

    chosen: PeerId = field(name="1")
    reason: Annotated[str, Meta(max_length=256)] = field(name="2")
    prompt_tokens: Small = field(name="3")
    candidates: Annotated[tuple[CandidateTerms, ...], Meta(max_length=MAX_CANDIDATES)] = field(name="4")
    namespace: NamespaceKey = field(name="5", default=bytes(16))
    """Of the model that answers."""


class Begun(Kind, frozen=True, kw_only=True, tag=19):
    """A node has begun. Sent again when the request is resumed elsewhere."""

    served_by: PeerId = field(name="1")
    cached_tokens: Small = field(name="2")
    """Of the prompt, and of what was generated elsewhere before."""


MAX_TEXT_TOKENS = 1_024
"""Of one Text."""


class Text(Kind, frozen=True, kw_only=True, tag=15):
    """The next whole characters of the answer, or none with ``logprobs``."""

    text: Annotated[str, Meta(max_length=65_536)] = field(name="1")
    logprobs: Annotated[tuple[TokenLogprobs, ...], Meta(max_length=MAX_LOGPROBS_PER_FRAME)] = field(
        name="2", default=()
    )
    """Of the tokens that came since the last frame, if the request asks for them."""
    tokens: Annotated[bytes, Meta(max_length=4 * MAX_TEXT_TOKENS)] = field(name="3", default=b"")
    """That the text so far is all of, since the last frame; packed likewise. With them the client can go on elsewhere
    (``Ask.answered``)."""


STILL_THERE = Text(text="")
"""What an entry node says where it has nothing to say: that the answer is worked on."""


class Answered(Kind, frozen=True, kw_only=True, tag=16):
    """The last frame of an answered Ask."""

    served_by: PeerId = field(name="1")
    reason: Annotated[str, Meta(pattern="^(stop|length|cancelled)$")] = field(name="2")
    usage: Usage = field(name="3")
    ttft_ms: Small = field(name="4")
    """From the arrival of the Ask at the entry node to the first token there."""
    resumed: Small = field(name="5")
    """How often the request moved to another node after its first token."""


EntryFrame = Route | Begun | Text | Answered | Failed
