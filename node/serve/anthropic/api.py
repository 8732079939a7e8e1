"""Anthropic's HTTP API: a translation onto the same requests that OpenAI's clients make.

    POST /v1/messages                 conversations, with tools; streams have typed events
    POST /v1/messages/count_tokens    the tokens of a conversation with its template

The key is in ``x-api-key`` or ``Authorization``; ``anthropic-version`` and ``anthropic-beta`` are ignored.
"""

from typing import cast

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mycelia.node.serve.anthropic.requests import to_chat
from mycelia.node.serve.anthropic.shape import MessageShape, errors
from mycelia.node.serve.anthropic.types import CountRequest, MessagesRequest, TokenCount
from mycelia.node.serve.api import Api, own_model, spelled
from mycelia.node.serve.http.bodies import json_response, read_json, refusing
from mycelia.node.serve.http.errors import HttpError
from mycelia.node.serve.http.keys import client_of
from mycelia.node.serve.openai.answers import OpenAiAnswer
from mycelia.node.serve.openai.requests import wanted_chat

ANTHROPIC_PREFIX = "/v1/messages"


def anthropic_routes(api: Api) -> list[Route]:
    async def messages(request: Request) -> Response:
        wanted = wanted_chat(to_chat(await read_json(request, MessagesRequest)))
        # (Starlette accepts any ASGI application as a response)
        return cast(Response, OpenAiAnswer(api, wanted, MessageShape(wanted, api.model), client_of(request.scope)))

    async def count(request: Request) -> Response:
        body = await read_json(request, CountRequest)
        model = own_model(api, body.model)
        if model is None:
            own = spelled(api.own_models)
            raise HttpError(404, f"tokens are counted for the node's own model only, {own}", "model_not_found")
        (ask,) = wanted_chat(to_chat(body)).asks
        tokens = await api.tokenize(ask.conversation, client_of(request.scope), model)
        return json_response(TokenCount(len(tokens)))

    refused = refusing(lambda exc: anthropic_refusal(exc.status, exc.message))
    return [
        Route(ANTHROPIC_PREFIX, refused(messages), methods=["POST"]),
        Route(f"{ANTHROPIC_PREFIX}/count_tokens", refused(count), methods=["POST"]),
    ]


def anthropic_refusal(status: int, message: str) -> Response:
    """A refusal in the shape of this API's errors."""
    return json_response(errors(status, message), status)
