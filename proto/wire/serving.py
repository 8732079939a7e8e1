"""Request streams: an entry node asks a node to serve a prompt, and gets frames back."""

from typing import Annotated

from msgspec import Meta, field

from mycelia.proto.wire import defaults
from mycelia.proto.wire.bounds import (
    MAX_BIASES,
    MAX_GRAMMAR_CHARS,
    MAX_LOGPROBS,
    MAX_LOGPROBS_PER_FRAME,
    MAX_MARK_CHARS,
    MAX_STOPS,
    MAX_TEXT_BYTES_PER_FRAME,
    MAX_TOKENS_PER_REQUEST,
    MIN_LOGPROB,
    FrameTokens,
    Kind,
    NamespaceKey,
    PackedTokens,
    Penalty,
    Record,
    RequestId,
    Small,
    StopString,
    TokenText,
)
from mycelia.proto.wire.metadata import Vitals


class Sampling(Record, frozen=True, kw_only=True):
    """How to choose tokens, in this order: logit bias, grammar, penalties, top-k, top-p, min-p, temperature, draw.

    The defaults are llama.cpp's, and greedy. The constructor checks nothing: use ``codec.check_sampling`` on user
    input.
    """

    max_tokens: Annotated[int, Meta(ge=0, le=MAX_TOKENS_PER_REQUEST)] = field(name="1")
    """0: compute the prompt, so that it is cached, and answer with no token."""
    temperature: Annotated[float, Meta(ge=0, le=100)] = field(name="2", default=defaults.TEMPERATURE)
    """0 is greedy: the most probable token, with grammar and penalties still applied."""
    seed: Annotated[int, Meta(ge=0, le=2**32 - 1)] = field(name="3", default=defaults.SEED)
    top_k: Small = field(name="4", default=defaults.TOP_K)
    """Keep this many of the most probable tokens; 0 keeps all."""
    top_p: Annotated[float, Meta(ge=0, le=1)] = field(name="5", default=defaults.TOP_P)
    """Keep the most probable tokens that together have this probability; 1 keeps all."""
    min_p: Annotated[float, Meta(ge=0, le=1)] = field(name="6", default=defaults.MIN_P)
    """Keep tokens with at least this share of the highest probability; 0 keeps all."""
    repeat_penalty: Annotated[float, Meta(ge=0.1, le=10)] = field(name="7", default=defaults.REPEAT_PENALTY)
    """Divides the logits of recent tokens (multiplies negative ones); 1 is off."""
    frequency_penalty: Penalty = field(name="8", default=0.0)
    """Subtracted from a recent token's logit for every occurrence."""
    presence_penalty: Penalty = field(name="9", default=0.0)
    """Subtracted from a recent token's logit once."""
    repeat_last_n: Annotated[int, Meta(ge=0, le=MAX_TOKENS_PER_REQUEST)] = field(name="10", default=64)
    """How many tokens, of prompt and answer, count as recent."""
    stop: Annotated[tuple[StopString, ...], Meta(max_length=MAX_STOPS)] = field(name="11", default=())
    """The answer ends before the first of these that is complete."""
    logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] = field(name="12", default=0)
    """Alternatives to report per token, with its own probability; 0 reports nothing."""
    grammar: Annotated[str, Meta(max_length=MAX_GRAMMAR_CHARS)] = field(name="13", default="")
    """A grammar that the answer must match; empty: anything."""
    grammar_kind: Annotated[str, Meta(pattern="^(gbnf|json_schema|regex|lark)$")] = field(name="14", default="gbnf")
    """How to read ``grammar``: llama.cpp's GBNF with a rule ``root``, a JSON schema, or since version 2 a regular
    expression of the whole answer, or llguidance's Lark with a rule ``start``."""
    prompt_logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] = field(name="15", default=0)
    """Alternatives to report per token of the prompt, with its own probability; 0 reports nothing. If it is not 0, an
    end token that the model chooses is part of the answer, without text: it has logprobs as well."""
    logprobs_from: Annotated[int, Meta(ge=0, le=MAX_TOKENS_PER_REQUEST)] = field(name="16", default=0)
    """With ``prompt_logprobs``: the first token of the prompt that is reported; the sender has the earlier ones. Only
    cells before it can be reused. The first token of all has no probability, so 0 is as good as 1."""
    logit_bias: Annotated[bytes, Meta(max_length=MAX_BIASES * 8)] = field(name="17", default=b"")
    """Added to the logits of tokens before anything else: packed records, see ``biases.py``."""
    thought_opening: Annotated[str, Meta(max_length=MAX_MARK_CHARS)] = field(name="18", default="")
    """With a grammar and ``thought_closing``: the answer may begin with this mark of a thought; empty: it begins inside
    one."""
    thought_closing: Annotated[str, Meta(max_length=MAX_MARK_CHARS)] = field(name="19", default="")
    """With a grammar: the model thinks freely up to this mark, and what the grammar describes comes after it; empty:
    at once. ``{...}`` in it stands for any text."""


class Logprob(Record, frozen=True, kw_only=True):
    """A token and its probability before sampling options: log-softmax of the raw logits."""

    token: Annotated[int, Meta(ge=0, le=2**32 - 1)] = field(name="1")
    text: TokenText = field(name="2")
    """The token's bytes, which need not be whole characters; empty for control tokens."""
    logprob: Annotated[float, Meta(ge=MIN_LOGPROB, le=0)] = field(name="3")


class TokenLogprobs(Record, frozen=True, kw_only=True):
    """A token of the answer and its alternatives, the most probable first."""

    chosen: Logprob = field(name="1")
    top: Annotated[tuple[Logprob, ...], Meta(max_length=MAX_LOGPROBS)] = field(name="2")
    """May contain ``chosen``."""


class Usage(Record, frozen=True, kw_only=True):
    """The tokens and time of a finished request, as measured by the engine that served it."""

    prompt_tokens: Small = field(name="1")
    cached_tokens: Small = field(name="2")
    """Prompt tokens whose KV cells were reused instead of computed."""
    completion_tokens: Small = field(name="3")
    queue_ms: Small = field(name="4")
    prefill_ms: Small = field(name="5")
    decode_ms: Small = field(name="6")


class Generate(Kind, frozen=True, kw_only=True, tag=8):
    """Opens a request at its serving node. Answered by Accepted, Tokens*, then Final or Failed; or by Bounced."""

    request_id: RequestId = field(name="1")
    namespace: NamespaceKey = field(name="2")
    prompt: PackedTokens = field(name="3")
    sampling: Sampling = field(name="4")
    promised_tokens: Small = field(name="5")
    """The match for which the entry node chose this node."""
    resumed_tokens: Small = field(name="6", default=0)
    """How many tokens at the end of ``prompt`` were generated for this request before, at a lost node."""
    patience_ms: Small = field(name="7", default=0)
    """If the first token would take longer than this from now, the node answers with Bounced instead. 0: never."""
    tag: Annotated[bytes, Meta(max_length=16)] = field(name="8", default=b"")
    """Names the owner of cached prefixes that the request may reuse besides open ones, see ``sharing.py``: a secret
    between the sender and the serving node. Empty: the sender's own."""
    scope: Annotated[int, Meta(ge=0, le=2)] = field(name="9", default=0)
    """Which requests may reuse what this one computes. 0: its owner's, and others after two subnets had it. 1: its
    owner's. 2: all, and this one may reuse what others computed with 2; the tag is not used."""
    open_tokens: Small = field(name="10", default=0)
    """Leading tokens that hold no secrets: their whole blocks are open as soon as they are computed."""


class Accepted(Kind, frozen=True, kw_only=True, tag=9):
    """Prefill has begun; how much of the prompt was in the cache. Sent once, before the first token."""

    cached_tokens: Small = field(name="1")
    vitals: Vitals = field(name="2")


class Tokens(Kind, frozen=True, kw_only=True, tag=10):
    """Generated tokens ``position``, ``position`` + 1, ..., at least one. ``text`` is their UTF-8, at most
    MAX_TEXT_BYTES_PER_TOKEN each, and may end inside a character.

    ``text`` is all the text of these tokens and nothing of later ones. So a token waits at the serving node while a
    stop string may have begun in it, and only the answer's last tokens may lack (part of) their text.
    """

    position: Small = field(name="1")
    tokens: FrameTokens = field(name="2")
    text: Annotated[bytes, Meta(max_length=MAX_TEXT_BYTES_PER_FRAME)] = field(name="3")
    logprobs: Annotated[tuple[TokenLogprobs, ...], Meta(max_length=MAX_LOGPROBS_PER_FRAME)] = field(
        name="4", default=()
    )
    """One per token if the request asks for them, else none."""


class PromptLogprobs(Kind, frozen=True, kw_only=True, tag=33):
    """Logprobs of the prompt's tokens ``position``, ``position`` + 1, .... They come in order, after Accepted and
    before the first Tokens, from ``Sampling.logprobs_from`` (at least 1) to the prompt's end. An entry node passes them
    on before the first Text, beginning with token 0 if the client wants all, whose logprob is 0 and means nothing."""

    position: Small = field(name="1")
    logprobs: Annotated[tuple[TokenLogprobs, ...], Meta(min_length=1, max_length=MAX_LOGPROBS_PER_FRAME)] = field(
        name="2"
    )


class Final(Kind, frozen=True, kw_only=True, tag=11):
    """The last frame of an answered request."""

    reason: Annotated[str, Meta(pattern="^(stop|length|cancelled)$")] = field(name="1")
    usage: Usage = field(name="2")
    vitals: Vitals = field(name="3")


ERROR_CODES = (
    "bad_request",
    "too_long",
    "overloaded",
    "unknown_model",
    "engine_lost",
    "no_peer",
    "deadline",
    "leaving",
    "internal",
)
"""Codes of Failed. ``interoperability.md`` says which node sends which, and whether to retry."""


class Failed(Kind, frozen=True, kw_only=True, tag=12):
    """The last frame of a request that was not answered."""

    code: Annotated[str, Meta(min_length=1, max_length=32)] = field(name="1")
    """One of ERROR_CODES. For an unknown one only ``retryable`` counts."""
    message: Annotated[str, Meta(max_length=512)] = field(name="2")
    retryable: bool = field(name="3")
    """Whether the same request may succeed at another node or later."""
    retry_after_ms: Small = field(name="4", default=0)
    """With ``overloaded``: how long to wait before asking this node again; 0: unknown. See ``shares.py``."""


class Bounced(Kind, frozen=True, kw_only=True, tag=17):
    """The last and only frame of a request that the entry node should route again with this information."""

    cached_tokens: Small = field(name="1")
    """Prompt tokens in this node's cache."""
    vitals: Vitals = field(name="2")


ServingFrame = Accepted | PromptLogprobs | Tokens | Final | Failed | Bounced
