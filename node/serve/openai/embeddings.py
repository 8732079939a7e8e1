"""POST /v1/embeddings: a vector for each text, by a model of this node or of the swarm."""

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import trio
from numpy.typing import NDArray

from mycelia.node.serve.api import Api, Embedded
from mycelia.node.serve.http.errors import HttpError
from mycelia.node.serve.openai.request_types import EmbeddingRequest
from mycelia.node.serve.openai.requests import read_prompts
from mycelia.node.serve.openai.response_types import Embedding, EmbeddingList, TextUsage
from mycelia.node.serve.openai.short_vectors import Shortened, shortened
from mycelia.node.serve.openai.vectors import VectorAnswer
from mycelia.proto.wire.blocks import unpack_tokens

MAX_TEXTS = 2_048
"""Texts of one request, as OpenAI has it: LangChain sends 1,000 at once."""
MAX_ANSWER_BYTES = 64 << 20
_NUMBER_BYTES, _BASE64_BYTES = 22, 6
"""Bytes of a number in the answer."""


@dataclass(frozen=True)
class WantedEmbeddings:
    texts: list[str | Sequence[int]]
    """Texts or tokens."""
    named: str
    """The model as the client named it."""
    model: str
    """The model that makes the vectors."""
    is_base64: bool
    shortened: Shortened | None


def wanted_embeddings(body: EmbeddingRequest, usual: str, name_of: Callable[[str], str]) -> WantedEmbeddings:
    """What to embed. usual: the model for requests that name none; empty: there is none. name_of: see ``Api``. Raises
    HttpError for what no node can do."""
    named = body.model or usual
    if not named:
        raise HttpError(400, "this node serves no model that makes embeddings: name one of the swarm's", param="model")
    model = name_of(named)
    prompts = read_prompts(body.input, MAX_TEXTS, "input")
    if any(tokens for _, tokens in prompts):
        _check_tokenizer(body.tokenizer, model, name_of)
    texts: list[str | Sequence[int]] = [text or unpack_tokens(tokens) for text, tokens in prompts]
    is_base64 = body.encoding_format == "base64"
    return WantedEmbeddings(texts, named, model, is_base64, shortened(model, body.dimensions))


def _check_tokenizer(named: str | None, model: str, name_of: Callable[[str], str]) -> None:
    """Clients such as LangChain's make the tokens of OpenAI's models themselves; here they would stand for other
    texts, and no vector would show it."""
    if named is None:
        message = (
            "input has token ids, but not whose: send texts (LangChain: OpenAIEmbeddings(..., "
            f'check_embedding_ctx_length=False)), or "tokenizer": {model!r} if the ids are this model\'s own'
        )
        raise HttpError(400, message, "unknown_tokenizer", "input")
    if name_of(named) != model:
        message = f"input has token ids of {named!r}, but the model is {model!r}: send texts"
        raise HttpError(400, message, "unknown_tokenizer", "tokenizer")


class EmbeddingAnswer(VectorAnswer):
    """An ASGI application."""

    def __init__(self, api: Api, wanted: WantedEmbeddings, client: bytes) -> None:
        self._api = api
        self._wanted = wanted
        self._client = client

    async def make(self) -> Embedded:
        return await self._api.embed(self._wanted.texts, self._client, self._wanted.model)

    async def shape(self, made: Embedded) -> EmbeddingList:
        vectors: Sequence[NDArray[np.float32]] = made.vectors
        if self._wanted.shortened is not None:
            vectors = [self._wanted.shortened(vector) for vector in vectors]
        self._check_size(vectors)
        data = []
        for place, vector in enumerate(vectors):
            data.append(Embedding(place, self._spelled(vector)))
            await trio.lowlevel.checkpoint()  # (three million numbers take 0.4 s)
        return EmbeddingList(data, self._wanted.named, TextUsage(made.num_tokens, made.num_tokens))

    def _check_size(self, vectors: Sequence[NDArray[np.float32]]) -> None:
        """Raises HttpError for vectors that are too many numbers."""
        one = max((len(vector) for vector in vectors), default=0)
        most = MAX_ANSWER_BYTES // (max(one, 1) * (_BASE64_BYTES if self._wanted.is_base64 else _NUMBER_BYTES))
        if len(vectors) > most:
            message = f"{len(vectors)} vectors of {one} numbers are too much for one answer: send at most {most} texts"
            raise HttpError(400, message, param="input")

    def _spelled(self, vector: Any) -> Any:
        """What JSON has for a vector, which is a text or spelled already."""
        if self._wanted.is_base64:
            return base64.b64encode(vector.astype("<f4").tobytes()).decode()
        return msgspec.Raw(msgspec.json.encode(vector.tolist()))
