"""OpenAI's HTTP API, so that existing tools can use a swarm.

    POST /v1/chat/completions    conversations, with tools and structured output
    POST /v1/completions         texts, without a chat template
    GET  /v1/models              every model of the swarm, with the number of its nodes
    GET  /v1/models/NAME
    POST /v1/embeddings          vectors for texts
    POST /v1/rerank              how well documents answer a query; Cohere's and Jina's, not OpenAI's
    GET  /openapi.json           a description of this API, for programs

A prompt for a model that this node does not serve enters at one that does; so do texts for vectors and ranks.
"""

import time
from typing import cast

import msgspec
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mycelia.node.errors import no_such_model
from mycelia.node.serve.api import Api
from mycelia.node.serve.http.bodies import json_response, read_json
from mycelia.node.serve.http.errors import HttpError
from mycelia.node.serve.http.keys import client_of
from mycelia.node.serve.openai.answers import OpenAiAnswer
from mycelia.node.serve.openai.embeddings import EmbeddingAnswer, wanted_embeddings
from mycelia.node.serve.openai.errors import refusing_openai
from mycelia.node.serve.openai.openapi import openapi
from mycelia.node.serve.openai.request_types import ChatRequest, CompletionRequest, EmbeddingRequest, RerankRequest
from mycelia.node.serve.openai.requests import wanted_chat, wanted_completion
from mycelia.node.serve.openai.rerank import RerankAnswer, wanted_ranks
from mycelia.node.serve.openai.response_types import Model, Models
from mycelia.node.serve.openai.shapes import ChatShape, TextShape
from mycelia.node.serve.openai.tokenizer import tokenizer_routes
from mycelia.node.views.state import ModelRow


def openai_routes(api: Api) -> list[Route]:
    began = int(time.time())

    async def chat(request: Request) -> Response:
        wanted = wanted_chat(await read_json(request, ChatRequest))
        # (Starlette accepts any ASGI application as a response)
        return cast(Response, OpenAiAnswer(api, wanted, ChatShape(wanted, api.model), client_of(request.scope)))

    async def complete(request: Request) -> Response:
        wanted = wanted_completion(await read_json(request, CompletionRequest))
        return cast(Response, OpenAiAnswer(api, wanted, TextShape(wanted, api.model), client_of(request.scope)))

    async def models(_: Request) -> Response:
        return json_response(Models(await listed()))

    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        known = await listed()
        found = {model.id: model for model in known}
        root = name if name in found else api.name_of(name)
        if root not in found:
            message = no_such_model(name, [model.id for model in known])
            raise HttpError(404, message, "model_not_found", "model")
        return json_response(msgspec.structs.replace(found[root], id=name))

    async def listed() -> list[Model]:
        """The models of the swarm, and the aliases."""
        rows = {row.model: row for row in await api.models()}
        names = [(name, name) for name in rows] + [pair for pair in api.aliases.items() if pair[0] not in rows]
        found = [(name, root, rows.get(root, ModelRow(root, 0, 0))) for name, root in names]
        return [
            Model(
                name,
                row.nodes,
                row.context_tokens,
                row.connected,
                began,
                root,
                row.reuse or UNSET,
                row.kind or UNSET,
            )
            for name, root, row in found
        ]

    async def embed(request: Request) -> Response:
        body = await read_json(request, EmbeddingRequest)
        wanted = wanted_embeddings(body, api.model_for("embedding"), api.name_of)
        return cast(Response, EmbeddingAnswer(api, wanted, client_of(request.scope)))

    async def rerank(request: Request) -> Response:
        body = await read_json(request, RerankRequest)
        wanted = wanted_ranks(body, api.model_for("rerank"), api.name_of)
        return cast(Response, RerankAnswer(api, wanted, client_of(request.scope)))

    async def document(_: Request) -> Response:
        return json_response(openapi())

    return [
        Route("/v1/chat/completions", refusing_openai(chat), methods=["POST"]),
        Route("/v1/completions", refusing_openai(complete), methods=["POST"]),
        Route("/v1/models", refusing_openai(models)),
        Route("/v1/models/{name:path}", refusing_openai(model)),
        Route("/v1/embeddings", refusing_openai(embed), methods=["POST"]),
        Route("/v1/rerank", refusing_openai(rerank), methods=["POST"]),
        Route("/openapi.json", document),
        *tokenizer_routes(api),
    ]
