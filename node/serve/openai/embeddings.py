"""POST /v1/embeddings: a vector for each text, by a model that this node serves."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.types import Receive, Scope, Send

from mycelia.node.errors import BusyError
from mycelia.node.serve.api import Api, own_model, spelled
from mycelia.node.serve.http.bodies import json_response, retry_after
from mycelia.node.serve.http.disconnect import cancelled_at_disconnect
from mycelia.node.serve.http.errors import HttpError
from mycelia.node.serve.openai.errors import error_body, errors, status_of
from mycelia.node.serve.openai.requests import read_prompts
from mycelia.node.serve.openai.short_vectors import Shortened, shortened
from mycelia.node.serve.openai.types import Embedding, EmbeddingList, EmbeddingRequest, EmbeddingUsage
from mycelia.proto.admission.shares import MAX_RETRY_S
from mycelia.proto.wire.blocks import unpack_tokens
from mycelia.proto.wire.errors import LocalError
from mycelia.proto.wire.messages import Failed

MAX_TEXTS = 256
"""Texts of one request."""
RETRY_MS = 1_000
"""Used when no better time is known."""


@dataclass(frozen=True)
class WantedEmbeddings:
    texts: list[str | Sequence[int]]
    """Texts or tokens."""
    model: str
    """As the client named it."""
    own_model: str
    """The model that makes the vectors."""
    is_base64: bool
    shortened: Shortened | None


def wanted_embeddings(body: EmbeddingRequest, own: Sequence[str], aliases: Mapping[str, str]) -> WantedEmbeddings:
    """What to embed. own: the models served here. Raises HttpError for what this node cannot do."""
    named = body.model or own[0]
    model = own_model(named, own, aliases)
    if model is None:
        message = (
            f"The model `{named}` does not exist here: embeddings come from the node's own model, {spelled(own)}, as"
            " vectors of different models cannot be compared"
        )
        raise HttpError(404, message, "model_not_found", "model")
    prompts = read_prompts(body.input, MAX_TEXTS, "input")
    if any(tokens for _, tokens in prompts):
        _check_tokenizer(body.tokenizer, model, aliases)
    texts: list[str | Sequence[int]] = [text or unpack_tokens(tokens) for text, tokens in prompts]
    is_base64 = body.encoding_format == "base64"
    return WantedEmbeddings(texts, named, model, is_base64, shortened(model, body.dimensions))


def _check_tokenizer(named: str | None, model: str, aliases: Mapping[str, str]) -> None:
    """Clients such as LangChain's make the tokens of OpenAI's models themselves; here they would stand for other
    texts, and no vector would show it."""
    if named is None:
        message = (
            "input has token ids, but not whose: send texts (LangChain: OpenAIEmbeddings(..., "
            f'check_embedding_ctx_length=False)), or "tokenizer": {model!r} if the ids are this model\'s own'
        )
        raise HttpError(400, message, "unknown_tokenizer", "input")
    if aliases.get(named, named) != model:
        message = f"input has token ids of {named!r}, but the node's model is {model!r}: send texts"
        raise HttpError(400, message, "unknown_tokenizer", "tokenizer")


class EmbeddingAnswer:
    """An ASGI application. A client that disconnects cancels its request."""

    def __init__(self, api: Api, wanted: WantedEmbeddings, client: bytes) -> None:
        self._api = api
        self._wanted = wanted
        self._client = client

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = None
        async with cancelled_at_disconnect(receive):
            response = await self._response()
        if response is not None:  # (otherwise the client is gone)
            await response(scope, receive, send)

    async def _response(self) -> Any:
        try:
            made = await self._api.embed(self._wanted.texts, self._client, self._wanted.own_model)
        except BusyError as exc:
            retry_ms = math.ceil(1_000 * min(exc.retry_s, MAX_RETRY_S)) or RETRY_MS
            failed = Failed(code="overloaded", message=str(exc), retryable=True, retry_after_ms=retry_ms)
            response = json_response(error_body(failed), status_of(failed)[0])
            response.headers.update({name.decode(): value.decode() for name, value in (retry_after(failed),)})
            return response
        except LocalError as exc:
            return json_response(error_body(Failed(code="bad_request", message=str(exc), retryable=False)), 400)
        vectors: Sequence[NDArray[np.float32]] = made.vectors
        try:
            if self._wanted.shortened is not None:
                vectors = [self._wanted.shortened(vector) for vector in vectors]
        except HttpError as exc:
            return json_response(errors(exc.status, exc.message, exc.code, exc.param), exc.status)
        data = [Embedding(place, self._spelled(vector)) for place, vector in enumerate(vectors)]
        usage = EmbeddingUsage(made.num_tokens, made.num_tokens)
        return json_response(EmbeddingList(data, self._wanted.model, usage))

    def _spelled(self, vector: Any) -> list[float] | str:
        return base64.b64encode(vector.astype("<f4").tobytes()).decode() if self._wanted.is_base64 else vector.tolist()
