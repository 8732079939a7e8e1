"""Every message of the wire, one frozen type a kind. ``wire.cddl`` is the normative form; this is its Python image.

A message is a CBOR map with small integer keys; key 0 is the kind. Fields carry their key as ``name="N"`` and their
bounds as ``Meta``: msgspec enforces both when ``codec.decode`` builds the object, so a Message that exists is valid.
Records that come in bulk (digest entries, tokens) are packed into byte strings whose layout ``blocks.py`` defines.
"""

from typing import Annotated

from msgspec import Meta, Struct, field

# Bounds that several kinds share. Each is a wire constant: changing one changes the protocol.
MAX_TOKENS_PER_REQUEST = 131_072
"""Prompt tokens in one request: the longest context that models in wide use are trained for."""
MAX_TOKENS_PER_FRAME = 1_024
MAX_LOGPROBS_PER_FRAME = 32
"""Tokens of a frame that brings logprobs: each has up to 21 of them, and 672 take 0.6 MB to decode."""
MAX_TEXT_BYTES_PER_FRAME = 65_536
MAX_TEXT_BYTES_PER_TOKEN = 1_024
"""Far above the longest token of any vocabulary; bounds what an answer of so many tokens can be made of."""
MAX_SMALL = 2**31 - 1
MAX_DELTA_BYTES = 16_384
"""One delta on gossip; what does not fit is announced by its head alone and fetched over a direct stream."""
MAX_ENTRIES_PER_OWNER = 16_384
"""Hard cap of a digest, whatever the owner's budget says."""
MAX_VECTOR = 1_024
MAX_NAMESPACES = 16
MAX_CELL_BITS = 16
"""Depth of the smallest cells: enough for 16 million nodes of one model."""
MAX_CANDIDATES = 64
MAX_CHAT_MESSAGES = 1_024
MAX_CHAT_BYTES = 524_288
MAX_STOPS, MAX_STOP_CHARS = 16, 256
MAX_LOGPROBS = 20
"""Alternatives a token, as in the common HTTP APIs."""
MAX_GRAMMAR_CHARS = 65_536
MAX_SALT_CHARS = 128
MAX_TRACE_STEPS = 64
MAX_LINKS = 64
MAX_MODELS = 128
"""Of which one answer tells."""
MAX_MODEL_NODES = 256
"""Of one model in it: a cell."""
MIN_LOGPROB = -1e6
"""Stands for everything less probable, also for what the model rules out."""

ENTRY_BYTES = 9
"""A digest entry: 8 bytes of block hash, 1 byte of class."""

PeerId = Annotated[bytes, Meta(min_length=2, max_length=64)]
"""A libp2p peer id in its binary form; for Ed25519 it contains the public key itself."""
NamespaceKey = Annotated[bytes, Meta(min_length=16, max_length=16)]
Digest128 = Annotated[bytes, Meta(min_length=16, max_length=16)]
Signature = Annotated[bytes, Meta(min_length=64, max_length=64)]
RequestId = Annotated[bytes, Meta(min_length=16, max_length=16)]
Counter = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Small = Annotated[int, Meta(ge=0, le=MAX_SMALL)]
ModelName = Annotated[str, Meta(min_length=1, max_length=128)]
PackedEntries = Annotated[bytes, Meta(max_length=MAX_ENTRIES_PER_OWNER * ENTRY_BYTES)]
PackedTokens = Annotated[bytes, Meta(min_length=4, max_length=4 * MAX_TOKENS_PER_REQUEST)]
FrameTokens = Annotated[bytes, Meta(min_length=4, max_length=4 * MAX_TOKENS_PER_FRAME)]
TokenText = Annotated[bytes, Meta(max_length=MAX_TEXT_BYTES_PER_TOKEN)]
StopString = Annotated[str, Meta(min_length=1, max_length=MAX_STOP_CHARS)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
"""Subtracted from logits; the range is that of the common HTTP APIs."""


class Record(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A map that occurs inside messages and has no kind of its own."""


class Kind(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="0"):
    """Base of every message; the subclass's ``tag`` is its kind, key 0 of the map."""


# --- records -------------------------------------------------------------------------------------------------------


class Vitals(Record, frozen=True, kw_only=True):
    """What a node measures of itself now. Rates in tokens/s; 0 means not measured yet."""

    queued_tokens: Small = field(name="1")
    """Prompt tokens accepted but not yet prefilled."""
    active_requests: Small = field(name="2")
    """Requests being prefilled or decoded."""
    waiting_requests: Small = field(name="3")
    slots: Small = field(name="4")
    """Requests the engine works on at once; 0 while there is no engine."""
    prefill_rate: Small = field(name="5", default=0)
    decode_rate: Small = field(name="6", default=0)
    hold_ms: Small = field(name="7", default=0)
    """How long requests took from the start of their prefill to their last token lately, in the mean; 0: none did."""


class Served(Record, frozen=True, kw_only=True):
    """One model a node serves."""

    namespace: NamespaceKey = field(name="1")
    model: ModelName = field(name="2")
    context_tokens: Small = field(name="3")
    vitals: Vitals = field(name="4")


class Head(Record, frozen=True, kw_only=True):
    """A digest's signed head: what it is, of whom, and at which version. See ``digest.py``."""

    owner: PeerId = field(name="1")
    namespace: NamespaceKey = field(name="2")
    epoch: Counter = field(name="3")
    seq: Counter = field(name="4")
    count: Annotated[int, Meta(ge=0, le=MAX_ENTRIES_PER_OWNER)] = field(name="5")
    root: Digest128 = field(name="6")
    issued_at: Counter = field(name="7")
    """Unix time in ms."""
    signature: Signature = field(name="8")
    cell_bits: Annotated[int, Meta(ge=0, le=MAX_CELL_BITS)] = field(name="9", default=0)
    """Depth of the owner's cell, see ``cells.py``."""


class Version(Record, frozen=True, kw_only=True):
    """The version of one owner's digest that somebody holds."""

    owner: PeerId = field(name="1")
    namespace: NamespaceKey = field(name="2")
    epoch: Counter = field(name="3")
    seq: Counter = field(name="4")


class Sampling(Record, frozen=True, kw_only=True):
    """How to choose tokens, in this order: grammar, penalties, top-k, top-p, min-p, temperature, draw.

    The defaults are llama.cpp's, and greedy. Building one checks nothing: use ``codec.check_sampling`` on what people
    wrote.
    """

    max_tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS_PER_REQUEST)] = field(name="1")
    temperature: Annotated[float, Meta(ge=0, le=100)] = field(name="2", default=0.0)
    """0 is greedy: the likeliest token, with grammar and penalties still applied."""
    seed: Annotated[int, Meta(ge=0, le=2**32 - 1)] = field(name="3", default=0)
    top_k: Small = field(name="4", default=40)
    """Keep this many of the likeliest tokens; 0 keeps all."""
    top_p: Annotated[float, Meta(ge=0, le=1)] = field(name="5", default=0.95)
    """Keep the likeliest tokens that together have this probability; 1 keeps all."""
    min_p: Annotated[float, Meta(ge=0, le=1)] = field(name="6", default=0.05)
    """Keep tokens with at least this share of the likeliest one's probability; 0 keeps all."""
    repeat_penalty: Annotated[float, Meta(ge=0.1, le=10)] = field(name="7", default=1.0)
    """Divides the logits of recent tokens (multiplies negative ones); 1 is off."""
    frequency_penalty: Penalty = field(name="8", default=0.0)
    """Taken from a recent token's logit for every time it occurs."""
    presence_penalty: Penalty = field(name="9", default=0.0)
    """Taken from a recent token's logit once."""
    repeat_last_n: Annotated[int, Meta(ge=0, le=MAX_TOKENS_PER_REQUEST)] = field(name="10", default=64)
    """How many tokens, of prompt and answer, count as recent."""
    stop: Annotated[tuple[StopString, ...], Meta(max_length=MAX_STOPS)] = field(name="11", default=())
    """The answer ends before whichever of these is complete first."""
    logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] = field(name="12", default=0)
    """Alternatives to report a token, with its own probability; 0 reports nothing."""
    grammar: Annotated[str, Meta(max_length=MAX_GRAMMAR_CHARS)] = field(name="13", default="")
    """What the answer must match; empty: anything."""
    grammar_kind: Annotated[str, Meta(pattern="^(gbnf|json_schema)$")] = field(name="14", default="gbnf")
    """How to read ``grammar``: llama.cpp's GBNF with a rule ``root``, or a JSON schema."""


class Logprob(Record, frozen=True, kw_only=True):
    """A token and how probable the model found it, before sampling options: log-softmax of the raw logits."""

    token: Annotated[int, Meta(ge=0, le=2**32 - 1)] = field(name="1")
    text: TokenText = field(name="2")
    """Its bytes, which need not be whole characters; empty for control tokens."""
    logprob: Annotated[float, Meta(ge=MIN_LOGPROB, le=0)] = field(name="3")


class TokenLogprobs(Record, frozen=True, kw_only=True):
    """A token of the answer and what could have stood there instead, the likeliest first."""

    chosen: Logprob = field(name="1")
    top: Annotated[tuple[Logprob, ...], Meta(max_length=MAX_LOGPROBS)] = field(name="2")
    """May contain ``chosen``."""


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


class Usage(Record, frozen=True, kw_only=True):
    """What a finished request took, as the engine that served it measured it."""

    prompt_tokens: Small = field(name="1")
    cached_tokens: Small = field(name="2")
    """Prompt tokens whose KV cells were reused instead of computed."""
    completion_tokens: Small = field(name="3")
    queue_ms: Small = field(name="4")
    prefill_ms: Small = field(name="5")
    decode_ms: Small = field(name="6")


# --- control messages: one-way, over a direct stream ---------------------------------------------------------------


class Hello(Kind, frozen=True, kw_only=True, tag=1):
    """First message in each direction of a connection: who speaks and what it serves."""

    wire_version: Small = field(name="1")
    agent: Annotated[str, Meta(max_length=64)] = field(name="2")
    served: Annotated[tuple[Served, ...], Meta(max_length=MAX_NAMESPACES)] = field(name="3")


class VitalsUpdate(Kind, frozen=True, kw_only=True, tag=2):
    """The sender's load changed."""

    namespace: NamespaceKey = field(name="1")
    vitals: Vitals = field(name="2")


class RepairRequest(Kind, frozen=True, kw_only=True, tag=3):
    """Asks for an owner's digest, telling what of it is held: epoch, seq, count and root, all zero for nothing."""

    owner: PeerId = field(name="1")
    namespace: NamespaceKey = field(name="2")
    epoch: Counter = field(name="3")
    seq: Counter = field(name="4")
    count: Annotated[int, Meta(ge=0, le=MAX_ENTRIES_PER_OWNER)] = field(name="5")
    root: Digest128 = field(name="6")


class Repair(Kind, frozen=True, kw_only=True, tag=4):
    """Brings a reader to ``head``. Any relay may send it; it is accepted only if the result hashes to the root."""

    head: Head = field(name="1")
    mode: Annotated[int, Meta(ge=0, le=2)] = field(name="2")
    """0 SAME: the entries held are right. 1 LOG: final state of every key touched since ``from_seq``.
    2 SNAPSHOT: ``upserts`` is everything."""
    from_seq: Counter = field(name="3")
    upserts: PackedEntries = field(name="4")
    removes: PackedEntries = field(name="5")


class Reconcile(Kind, frozen=True, kw_only=True, tag=5):
    """Pairwise anti-entropy: the versions that the sender holds. The receiver pushes what is newer and asks for
    what it lacks."""

    versions: Annotated[tuple[Version, ...], Meta(max_length=MAX_VECTOR)] = field(name="1")


class Subscribe(Kind, frozen=True, kw_only=True, tag=18):
    """Asks the receiver to tell its load whenever it changes, for so long, and now."""

    namespace: NamespaceKey = field(name="1")
    seconds: Small = field(name="2")


# --- gossip --------------------------------------------------------------------------------------------------------


class Delta(Kind, frozen=True, kw_only=True, tag=6):
    """The final state of every key that its owner touched in (from_seq, head.seq]."""

    head: Head = field(name="1")
    from_seq: Counter = field(name="2")
    upserts: Annotated[bytes, Meta(max_length=MAX_DELTA_BYTES)] = field(name="3")
    removes: Annotated[bytes, Meta(max_length=MAX_DELTA_BYTES)] = field(name="4")


class Announce(Kind, frozen=True, kw_only=True, tag=7):
    """A head alone: the change is larger than gossip should carry."""

    head: Head = field(name="1")


# --- request streams -----------------------------------------------------------------------------------------------


class Generate(Kind, frozen=True, kw_only=True, tag=8):
    """Opens a request at the node that shall serve it. Answered by Accepted, Tokens*, then Final or Failed."""

    request_id: RequestId = field(name="1")
    namespace: NamespaceKey = field(name="2")
    prompt: PackedTokens = field(name="3")
    sampling: Sampling = field(name="4")
    promised_tokens: Small = field(name="5")
    """The match that the requester chose this node for."""
    resumed_tokens: Small = field(name="6", default=0)
    """How many tokens at the end of ``prompt`` were generated for this request before, on a node that was lost."""
    patience_ms: Small = field(name="7", default=0)
    """If the first token would take longer than this, counted from here, answer with Bounced instead. 0: never."""
    tag: Annotated[bytes, Meta(max_length=16)] = field(name="8", default=b"")
    """Whose cached prefixes it may reuse besides the open ones, see ``sharing.py``: a secret between the requester and
    the node that serves. Empty: the requester's own."""
    scope: Annotated[int, Meta(ge=0, le=2)] = field(name="9", default=0)
    """Who may reuse what it computes. 0: its owner, and others once two households had it. 1: its owner. 2: everybody,
    as it may reuse what others computed so; the tag is not used."""
    open_tokens: Small = field(name="10", default=0)
    """Leading tokens that hold no secrets: the whole blocks of them are everybody's as soon as they are computed."""


class Accepted(Kind, frozen=True, kw_only=True, tag=9):
    """Prefill has begun; what of the prompt was found in the cache. Once, before the first token."""

    cached_tokens: Small = field(name="1")
    vitals: Vitals = field(name="2")


class Tokens(Kind, frozen=True, kw_only=True, tag=10):
    """Generated tokens ``position``, ``position`` + 1, ..., at least one; ``text`` is their UTF-8, at most
    MAX_TEXT_BYTES_PER_TOKEN each, which may end inside a character.

    ``text`` is all that these tokens say and nothing of later ones. So a token waits at the serving node while a
    stop string may have begun in it, and only the answer's last tokens may come without (all of) their text.
    """

    position: Small = field(name="1")
    tokens: FrameTokens = field(name="2")
    text: Annotated[bytes, Meta(max_length=MAX_TEXT_BYTES_PER_FRAME)] = field(name="3")
    logprobs: Annotated[tuple[TokenLogprobs, ...], Meta(max_length=MAX_LOGPROBS_PER_FRAME)] = field(
        name="4", default=()
    )
    """One a token if the request asks for them, else none."""


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
"""Codes of Failed. Who sends which, and whether to retry: ``interoperability.md``."""


class Failed(Kind, frozen=True, kw_only=True, tag=12):
    """The last frame of a request that was not answered."""

    code: Annotated[str, Meta(min_length=1, max_length=32)] = field(name="1")
    """One of ERROR_CODES. An unknown one is treated by ``retryable`` alone."""
    message: Annotated[str, Meta(max_length=512)] = field(name="2")
    retryable: bool = field(name="3")
    """True when the same request may succeed on another node or later."""
    retry_after_ms: Small = field(name="4", default=0)
    """Of ``overloaded``: how long to wait before asking this node again; 0: unknown. See ``shares.py``."""


class Bounced(Kind, frozen=True, kw_only=True, tag=17):
    """The last and only frame of a request that its requester should route again, knowing this."""

    cached_tokens: Small = field(name="1")
    """Of the prompt, in this node's cache."""
    vitals: Vitals = field(name="2")


# --- entry streams: a client without a model asks a node to be its entry --------------------------------------------


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
    of the same client do, and others what two households had."""
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


# --- inspect streams: what a node is asked about itself, for people -------------------------------------------------


class TraceStep(Record, frozen=True, kw_only=True):
    """Something that happened to a request."""

    at_ms: Small = field(name="1")
    """Since the first step at this node."""
    name: Annotated[str, Meta(min_length=1, max_length=32)] = field(name="2")
    detail: Annotated[str, Meta(max_length=256)] = field(name="3", default="")
    peer: Annotated[bytes, Meta(max_length=64)] = field(name="4", default=b"")
    """The other node that has to do with it; empty: none."""


class TraceQuery(Kind, frozen=True, kw_only=True, tag=20):
    """What happened to a request here? Whoever knows its id may ask: ids are random and go nowhere else. Answered by
    Trace."""

    request_id: RequestId = field(name="1")


class Trace(Kind, frozen=True, kw_only=True, tag=21):
    """The steps of a request at this node in their order, the first ones if there are too many; none: not known, or not
    any more."""

    steps: Annotated[tuple[TraceStep, ...], Meta(max_length=MAX_TRACE_STEPS)] = field(name="1")


class Link(Record, frozen=True, kw_only=True):
    """A node that the sender is connected to."""

    peer: PeerId = field(name="1")
    round_trip_ms: Small = field(name="2")
    """0: not measured."""


class LinksQuery(Kind, frozen=True, kw_only=True, tag=22):
    """Which nodes are you connected to? Answered by Links."""


class Links(Kind, frozen=True, kw_only=True, tag=23):
    """The nodes that the sender is connected to, the nearest ones if there are too many."""

    links: Annotated[tuple[Link, ...], Meta(max_length=MAX_LINKS)] = field(name="1")


class ReachQuery(Kind, frozen=True, kw_only=True, tag=24):
    """Where do you see me, and can you open a TCP connection to this port there? Answered by Reach."""

    port: Annotated[int, Meta(ge=1, le=65_535)] = field(name="1")


class Reach(Kind, frozen=True, kw_only=True, tag=25):
    """How its peer looks to the sender."""

    address: Annotated[str, Meta(max_length=128)] = field(name="1")
    """Multiaddr of the other end of the connection, as the sender sees it."""
    time_ms: Counter = field(name="2")
    """The sender's clock: ms since 1970."""
    outcome: Annotated[str, Meta(pattern="^(open|closed|untried)$")] = field(name="3")
    """Of the connection to the port; untried: the sender was asked too often."""


# --- models streams: what the swarm serves --------------------------------------------------------------------------


class ModelNodes(Record, frozen=True, kw_only=True):
    """A model, and who serves it as far as the sender knows, see ``directory.py``."""

    namespace: NamespaceKey = field(name="1")
    model: ModelName = field(name="2")
    context_tokens: Small = field(name="3")
    age_s: Small = field(name="4")
    """How long ago somebody was connected with one of them; 0: the sender is, or is one."""
    nodes: Annotated[bytes, Meta(max_length=8 * MAX_MODEL_NODES)] = field(name="5")
    """The last 8 bytes of each one's peer id, packed as block hashes are."""


class ModelsQuery(Kind, frozen=True, kw_only=True, tag=26):
    """Which models do you know of? Answered by Models."""


class Models(Kind, frozen=True, kw_only=True, tag=27):
    """Those that the sender knows of, the surest ones if there are too many."""

    models: Annotated[tuple[ModelNodes, ...], Meta(max_length=MAX_MODELS)] = field(name="1")


Control = Hello | VitalsUpdate | RepairRequest | Repair | Reconcile | Subscribe
Gossip = Delta | Announce
ServingFrame = Accepted | Tokens | Final | Failed | Bounced
EntryFrame = Route | Begun | Text | Answered | Failed
Inspect = TraceQuery | Trace | LinksQuery | Links | ReachQuery | Reach
Message = Control | Gossip | Generate | ServingFrame | Ask | EntryFrame | Inspect | ModelsQuery | Models
