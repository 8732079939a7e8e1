"""OpenAI's Responses API: a translation onto the same requests that chat completions make.

POST   /v1/responses       a conversation, with tools; streams have typed events
GET    /v1/responses/ID    a response that is still kept, see ``store.py``
DELETE /v1/responses/ID
"""

from functools import partial
from typing import cast

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mycelia.node.serve.api import Api
from mycelia.node.serve.http.bodies import json_response, read_json
from mycelia.node.serve.http.errors import HttpError
from mycelia.node.serve.http.keys import client_of
from mycelia.node.serve.openai.answers import OpenAiAnswer
from mycelia.node.serve.openai.errors import refusing_openai
from mycelia.node.serve.openai.requests import wanted_chat
from mycelia.node.serve.responses.requests import items_of, to_chat
from mycelia.node.serve.responses.shape import ResponseShape
from mycelia.node.serve.responses.store import ResponseStore
from mycelia.node.serve.responses.types import Deleted, Item, ResponseBody, ResponsesRequest


def responses_routes(api: Api) -> list[Route]:
    store = ResponseStore()

    async def respond(request: Request) -> Response:
        body = await read_json(request, ResponsesRequest)
        client = client_of(request.scope)
        earlier = list[Item]()
        if body.previous_response_id:
            found = store.items(client, body.previous_response_id)
            if found is None:
                raise _not_found(body.previous_response_id, "previous_response_id")
            earlier = found
        wanted = wanted_chat(to_chat(body, earlier))
        items = [*earlier, *items_of(body)]
        keep = partial(_keep, store, client, items) if body.store is not False else _forget
        # (Starlette accepts any ASGI application as a response)
        return cast(Response, OpenAiAnswer(api, wanted, ResponseShape(wanted, api.model, body, keep), client))

    async def one(request: Request) -> Response:
        name, client = request.path_params["name"], client_of(request.scope)
        if request.method == "DELETE":
            if not store.remove(client, name):
                raise _not_found(name)
            return json_response(Deleted(name))
        body = store.find(client, name)
        if body is None:
            raise _not_found(name)
        return json_response(msgspec.Raw(body))

    return [
        Route("/v1/responses", refusing_openai(respond), methods=["POST"]),
        Route("/v1/responses/{name}", refusing_openai(one), methods=["GET", "DELETE"]),
    ]


def _keep(store: ResponseStore, client: bytes, items: list[Item], body: ResponseBody) -> None:
    said = msgspec.convert(msgspec.to_builtins(body.output), list[Item])
    store.add(client, body, [*items, *said])


def _forget(_: ResponseBody) -> None:
    pass


def _not_found(name: str, param: str | None = None) -> HttpError:
    message = f"Response with id {name[:128]!r} not found: this node keeps responses for a while, in memory only."
    return HttpError(404, message, "response_not_found", param)
