"""Bounds and types that messages of several planes share. Changing a bound changes the protocol."""

from typing import Annotated

from msgspec import Meta, Struct

MAX_TOKENS_PER_REQUEST = 131_072
"""Prompt tokens in one request: the longest context that widely used models are trained for."""
MAX_TOKENS_PER_FRAME = 1_024
MAX_LOGPROBS_PER_FRAME = 32
"""Tokens of a frame with logprobs: each token has up to 21 of them, and 672 take 0.6 MB to decode."""
MAX_TEXT_BYTES_PER_FRAME = 65_536
MAX_TEXT_BYTES_PER_TOKEN = 1_024
"""Far above the longest token of any vocabulary. Bounds the text of an answer by its number of tokens."""
MAX_SMALL = 2**31 - 1
MAX_DELTA_BYTES = 16_384
"""One delta on gossip. Of a larger change only the head is announced; readers fetch it over a direct stream."""
MAX_ENTRIES_PER_OWNER = 16_384
"""Hard limit of a digest, independent of the owner's budget."""
MAX_VECTOR = 1_024
MAX_NAMESPACES = 16
MAX_CELL_BITS = 16
"""Depth of the smallest cells: enough for 16 million nodes of one model."""
MAX_CANDIDATES = 64
MAX_CHAT_MESSAGES = 1_024
MAX_CHAT_BYTES = 524_288
MAX_STOPS, MAX_STOP_CHARS = 16, 1_024
MAX_BIASES = 1_024
"""Tokens with a logit bias in one request; common HTTP APIs allow 300."""
MAX_LOGPROBS = 20
"""Alternatives per token, as in the common HTTP APIs."""
MAX_GRAMMAR_CHARS = 65_536
MAX_SALT_CHARS = 128
MAX_FORMAT_CHARS, MAX_MARK_CHARS = 32, 64
MAX_OPTIONS_CHARS = 65_536
"""Options of a chat template."""
MAX_TRACE_STEPS = 64
MAX_LINKS = 64
MAX_MODELS = 128
"""Models in one answer."""
MAX_MODEL_NODES = 256
"""Nodes listed for one of these models: a cell."""
MAX_DEMANDED = 32
"""Models of which a node tells how often its clients ask for them."""
MAX_COMING = 4
"""Models that a node is about to serve."""
MIN_LOGPROB = -1e6
"""Stands for everything less probable, also for tokens that the model excludes."""
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
"""Subtracted from logits; the range is the one of the common HTTP APIs."""


class Record(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A map that occurs inside messages and has no kind of its own."""


class Kind(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="0"):
    """Base of every message; the subclass's ``tag`` is its kind, key 0 of the map."""
