"""Entry streams: a client without a model asks a node to be its entry node."""

from typing import Annotated, NamedTuple

from msgspec import Meta, field

from mycelia.proto.wire.bounds import (
    MAX_CANDIDATES,
    MAX_CHAT_BYTES,
    MAX_CHAT_MESSAGES,
    MAX_FORMAT_CHARS,
    MAX_LOGPROBS_PER_FRAME,
    MAX_MARK_CHARS,
    MAX_OPTIONS_CHARS,
    MAX_SALT_CHARS,
    MAX_TOKENS_PER_REQUEST,
    Kind,
    NamespaceKey,
    PeerId,
    Record,
    RequestId,
    Small,
)
from mycelia.proto.wire.serving import Failed, PromptLogprobs, Sampling, TokenLogprobs, Usage


class ChatMessage(Record, frozen=True, kw_only=True):
    """One turn of a conversation, before the chat template."""

    role: Annotated[str, Meta(min_length=1, max_length=32)] = field(name="1")
    content: Annotated[str, Meta(max_length=MAX_CHAT_BYTES)] = field(name="2")
    extras: Annotated[str, Meta(max_length=MAX_CHAT_BYTES)] = field(name="3", default="")
    """A JSON object with further fields that the template may read, such as tool_calls; empty: none."""


class CandidateTerms(Record, frozen=True, kw_only=True):
    """The entry node's knowledge of one candidate when it chose."""

    peer: PeerId = field(name="1")
    matched_tokens: Small = field(name="2")
    """Prompt tokens that the peer is estimated to have cached."""
    queued_requests: Small = field(name="3")
    cost: Annotated[float, Meta(ge=0, le=1e18)] = field(name="4")
    """Lower is better; unit and formula belong to the policy (``routing/choose.py``). Its parts follow."""
    round_trip_ms: Small = field(name="5", default=0)
    queue_ms: Small = field(name="6", default=0)
    """Time until the prompts before this one are prefilled there."""
    prefill_ms: Small = field(name="7", default=0)
    """Prefill time of the tokens that are not cached there."""
    load_factor: Annotated[float, Meta(ge=0, le=1e18)] = field(name="8", default=1.0)
    precision: Annotated[float, Meta(ge=0, le=1)] = field(name="9", default=1.0)
    """Share of such estimated matches that were really there (moving average)."""
    lateness_ms: Small = field(name="10", default=0)
    """Observed - expected wait (moving average)."""
    recompute_ms: Small = field(name="11", default=0)
    """Cost to other requests of computing tokens again there."""


class Conversation(NamedTuple):
    """What the chat template makes a prompt of. See the fields of ``Ask``; options: its ``template_options``."""

    messages: tuple[ChatMessage, ...]
    tools: str = ""
    options: str = ""
    continues_final: bool = False


class Ask(Kind, frozen=True, kw_only=True, tag=13):
    """A prompt: a conversation, a text or tokens. Answered by Route, then Begun, PromptLogprobs* and Text*, then
    Answered or Failed."""

    request_id: RequestId = field(name="1")
    model: Annotated[str, Meta(max_length=128)] = field(name="2")
    """Empty: the model that the entry node serves."""
    messages: Annotated[tuple[ChatMessage, ...], Meta(max_length=MAX_CHAT_MESSAGES)] = field(name="3")
    sampling: Sampling = field(name="4")
    tools: Annotated[str, Meta(max_length=MAX_CHAT_BYTES)] = field(name="5", default="")
    """Functions that the model may call, for the chat template: a JSON array; empty: none."""
    text: Annotated[str, Meta(max_length=MAX_CHAT_BYTES)] = field(name="6", default="")
    """A prompt without a chat template, instead of a conversation. Control tokens spelled in it count as such."""
    tokens: Annotated[bytes, Meta(max_length=4 * MAX_TOKENS_PER_REQUEST)] = field(name="7", default=b"")
    """A prompt in tokens, instead of text: uint32, little-endian."""
    answered: Annotated[bytes, Meta(max_length=4 * MAX_TOKENS_PER_REQUEST)] = field(name="8", default=b"")
    """Tokens of the answer that the client already has, from an entry node that it lost; packed likewise. The answer
    continues after them, as it would have there. ``max_tokens`` includes them."""
    namespace: Annotated[bytes, Meta(max_length=16)] = field(name="9", default=b"")
    """Namespace of the Route that came with these tokens: they mean nothing in another one. Empty: any."""
    cache_salt: Annotated[str, Meta(max_length=MAX_SALT_CHARS)] = field(name="10", default="")
    """Requests with the same salt reuse each other's prefixes, and no others do; "public": all do. Empty: requests of
    the same client do, and others reuse what two subnets had asked."""
    shared_messages: Annotated[int, Meta(ge=0, le=MAX_CHAT_MESSAGES)] = field(name="11", default=0)
    """How many leading turns of a conversation hold no secrets, such as an application's system prompt."""
    template_options: Annotated[str, Meta(max_length=MAX_OPTIONS_CHARS)] = field(name="12", default="")
    """Further variables for the chat template, such as enable_thinking: a JSON object; empty: none."""
    continues_final: bool = field(name="13", default=False)
    """The answer continues the last message, which is the assistant's, instead of beginning a turn."""
    reads_format: bool = field(name="14", default=False)
    """The client reads the form in which the model writes thoughts and calls: Route names it, and control tokens that
    belong to it are spelled in the answer's text."""

    @property
    def conversation(self) -> Conversation:
        return Conversation(self.messages, self.tools, self.template_options, self.continues_final)


class Route(Kind, frozen=True, kw_only=True, tag=14):
    """The node that will serve, and what the entry node knew of each candidate. Sent again when a request moves."""

    chosen: PeerId = field(name="1")
    reason: Annotated[str, Meta(max_length=256)] = field(name="2")
    prompt_tokens: Small = field(name="3")
    candidates: Annotated[tuple[CandidateTerms, ...], Meta(max_length=MAX_CANDIDATES)] = field(name="4")
    namespace: NamespaceKey = field(name="5", default=bytes(16))
    """The namespace of the model that answers."""
    format: Annotated[str, Meta(max_length=MAX_FORMAT_CHARS)] = field(name="6", default="")
    """The form of the model's thoughts and calls, if the Ask wants to know; empty: unknown."""
    opened: Annotated[str, Meta(max_length=MAX_MARK_CHARS)] = field(name="7", default="")
    """The mark at the prompt's end with which the answer has begun, such as that of a thought; empty: none."""


class Begun(Kind, frozen=True, kw_only=True, tag=19):
    """A node has begun. Sent again when the request is resumed at another node."""

    served_by: PeerId = field(name="1")
    cached_tokens: Small = field(name="2")
    """Tokens found in that node's cache, of the prompt and of the answer so far."""


MAX_TEXT_TOKENS = 1_024


class Text(Kind, frozen=True, kw_only=True, tag=15):
    """The next whole characters of the answer; may be empty with ``logprobs``."""

    text: Annotated[str, Meta(max_length=65_536)] = field(name="1")
    logprobs: Annotated[tuple[TokenLogprobs, ...], Meta(max_length=MAX_LOGPROBS_PER_FRAME)] = field(
        name="2", default=()
    )
    """Log-probabilities of the tokens since the last frame, if the request asks for them."""
    tokens: Annotated[bytes, Meta(max_length=4 * MAX_TEXT_TOKENS)] = field(name="3", default=b"")
    """The tokens since the last frame, whose text is complete with this frame; packed likewise. With them the client
    can continue at another entry node (``Ask.answered``)."""


KEEP_ALIVE = Text(text="")
"""Sent by an entry node without news: the answer is still in work."""


class Answered(Kind, frozen=True, kw_only=True, tag=16):
    """The last frame of an answered Ask."""

    served_by: PeerId = field(name="1")
    reason: Annotated[str, Meta(pattern="^(stop|length|cancelled)$")] = field(name="2")
    usage: Usage = field(name="3")
    ttft_ms: Small = field(name="4")
    """Time from the arrival of the Ask at the entry node to the first token there."""
    resumed: Small = field(name="5")
    """How often the request moved to another node after its first token."""


EntryFrame = Route | Begun | PromptLogprobs | Text | Answered | Failed
