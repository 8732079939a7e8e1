"""Vector streams: a node asks another one for vectors of texts, ranks of documents, or what its models are for."""

from typing import Annotated

from msgspec import Meta, field

from mycelia.proto.wire.bounds import MAX_CHAT_BYTES, MAX_NAMESPACES, Kind, ModelName, NamespaceKey, Record, Small

MAX_TEXTS = 16
"""Texts in one question."""
MAX_WIDTH = 8_192
"""Numbers in one vector: twice as many as the widest of today's embedding models have."""


class EmbedTexts(Kind, frozen=True, kw_only=True, tag=34):
    """Asks for a vector of each text, or for the rank of each document by a query. Answered by TextVectors or
    Failed."""

    model: ModelName = field(name="1")
    namespace: Annotated[bytes, Meta(max_length=16)] = field(name="2")
    """Only a model of this namespace may answer: vectors of different models cannot be compared. Empty: any model of
    that name."""
    query: Annotated[str, Meta(max_length=MAX_CHAT_BYTES)] = field(name="3")
    """Empty: vectors are wanted."""
    texts: Annotated[
        tuple[Annotated[str, Meta(max_length=MAX_CHAT_BYTES)], ...], Meta(min_length=1, max_length=MAX_TEXTS)
    ] = field(name="4")
    is_passed_on: bool = field(name="5")
    """The sender passes on the question of another node: the receiver answers itself, or not at all."""


class TextVectors(Kind, frozen=True, kw_only=True, tag=35):
    """The vectors, or the ranks as vectors of one number, in the order of the texts."""

    namespace: NamespaceKey = field(name="1")
    """The namespace of the model that made them."""
    vectors: Annotated[bytes, Meta(min_length=4, max_length=4 * MAX_TEXTS * MAX_WIDTH)] = field(name="2")
    """All of one width, one after the other: 32-bit floats, little-endian."""
    num_tokens: Small = field(name="3")
    """Tokens of all texts together."""


class UsesQuery(Kind, frozen=True, kw_only=True, tag=36):
    """Asks what the receiver's own models are for; answered by Uses."""


class ModelUse(Record, frozen=True, kw_only=True):
    namespace: NamespaceKey = field(name="1")
    kind: Annotated[str, Meta(pattern="^(text|embedding|rerank)$")] = field(name="2")


class Uses(Kind, frozen=True, kw_only=True, tag=37):
    """What the sender's own models are for."""

    uses: Annotated[tuple[ModelUse, ...], Meta(max_length=MAX_NAMESPACES)] = field(name="1")
