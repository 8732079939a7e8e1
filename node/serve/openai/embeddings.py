"""POST /v1/embeddings: a vector for each text, by the model that this node serves."""

import base64
import math
from collections.abc import Sequence
from typing import Any

from starlette.types import Receive, Scope, Send

from mycelia.node.errors import BusyError
from mycelia.node.serve.api import Api
from mycelia.node.serve.http.bodies import HttpError, json_response, retry_after
from mycelia.node.serve.http.disconnect import cancelled_at_disconnect
from mycelia.node.serve.openai.errors import error_body, status_of
from mycelia.node.serve.openai.requests import read_prompts
from mycelia.node.serve.openai.types import Embedding, EmbeddingList, EmbeddingRequest, EmbeddingUsage
from mycelia.proto.admission.shares import MAX_RETRY_S
from mycelia.proto.wire.blocks import unpack_tokens
from mycelia.proto.wire.errors import LocalError
from mycelia.proto.wire.messages import Failed

MAX_TEXTS = 256
"""Texts of one request."""
RETRY_MS = 1_000
"""Used when no better time is known."""


def wanted_texts(body: EmbeddingRequest, model: str) -> list[str | Sequence[int]]:
    """The texts or tokens to embed. Raises HttpError for what this node, which serves ``model``, cannot do."""
    if body.model not in (None, "", model):
        message = f"embeddings come from the node's own model, {model!r}, not from {body.model!r}"
        raise HttpError(404, message, "model_not_found", "model")
    if body.dimensions is not None:
        raise HttpError(400, "dimensions is not served: vectors have the width of the model", param="dimensions")
    return [text or unpack_tokens(tokens) for text, tokens in read_prompts(body.input, MAX_TEXTS, "input")]


class EmbeddingAnswer:
    """An ASGI application. A client that disconnects cancels its request."""

    def __init__(self, api: Api, texts: list[str | Sequence[int]], is_base64: bool, client: bytes) -> None:
        self._api = api
        self._texts = texts
        self._is_base64 = is_base64
        self._client = client

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = None
        async with cancelled_at_disconnect(receive):
            response = await self._response()
        if response is not None:  # (otherwise the client is gone)
            await response(scope, receive, send)

    async def _response(self) -> Any:
        try:
            made = await self._api.embed(self._texts, self._client)
        except BusyError as exc:
            retry_ms = math.ceil(1_000 * min(exc.retry_s, MAX_RETRY_S)) or RETRY_MS
            failed = Failed(code="overloaded", message=str(exc), retryable=True, retry_after_ms=retry_ms)
            response = json_response(error_body(failed), status_of(failed)[0])
            response.headers.update({name.decode(): value.decode() for name, value in (retry_after(failed),)})
            return response
        except LocalError as exc:
            return json_response(error_body(Failed(code="bad_request", message=str(exc), retryable=False)), 400)
        data = [Embedding(place, self._spelled(vector)) for place, vector in enumerate(made.vectors)]
        usage = EmbeddingUsage(made.num_tokens, made.num_tokens)
        return json_response(EmbeddingList(data, self._api.model, usage))

    def _spelled(self, vector: Any) -> list[float] | str:
        return base64.b64encode(vector.astype("<f4").tobytes()).decode() if self._is_base64 else vector.tolist()
