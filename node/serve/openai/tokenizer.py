"""The tokenizer of the model served here, over HTTP: vLLM's paths and llama-server's names for the same.

lm-evaluation-harness uses them instead of a copy of the tokenizer. They answer for this node's own models only.
"""

from typing import Annotated

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mycelia.node.errors import BusyError
from mycelia.node.serve.api import Api, own_model, spelled
from mycelia.node.serve.http.bodies import json_response, read_json
from mycelia.node.serve.http.errors import HttpError
from mycelia.node.serve.http.keys import client_of
from mycelia.node.serve.openai.errors import refusing_openai
from mycelia.proto.wire.errors import LocalError
from mycelia.proto.wire.messages import MAX_CHAT_BYTES, MAX_TOKENS_PER_REQUEST

_Text = Annotated[str, Meta(max_length=MAX_CHAT_BYTES)]


class TokenizeRequest(msgspec.Struct):
    prompt: _Text | None = None
    content: _Text | None = None
    """llama-server's name for ``prompt``."""
    add_special_tokens: bool | None = None
    """With the token that begins every prompt; None: as vLLM with a prompt, true, and as llama-server, false."""
    add_special: bool | None = None
    model: Annotated[str, Meta(max_length=128)] | None = None


class DetokenizeRequest(msgspec.Struct):
    tokens: Annotated[list[Annotated[int, Meta(ge=0, le=2**32 - 1)]], Meta(max_length=MAX_TOKENS_PER_REQUEST)]
    model: Annotated[str, Meta(max_length=128)] | None = None


class Tokenized(msgspec.Struct):
    tokens: list[int]
    count: int


class Detokenized(msgspec.Struct):
    """The text under both servers' names."""

    prompt: str
    content: str


class TokenizerInfo(msgspec.Struct):
    bos_token: str | None
    eos_token: str | None
    chat_template: str | None
    add_bos_token: bool


def tokenizer_routes(api: Api) -> list[Route]:

    async def tokenize(request: Request) -> Response:
        body = await read_json(request, TokenizeRequest)
        model, text = _own_model(api, body.model), body.content if body.prompt is None else body.prompt
        if text is None:
            raise HttpError(400, "prompt is missing; conversations are tokenized at /api/tokenize", param="prompt")
        try:
            tokens = await api.tokenize_text(text, client_of(request.scope), model)
        except LocalError as exc:
            raise HttpError(429 if isinstance(exc, BusyError) else 400, str(exc), param="prompt") from exc
        begin = api.vocabulary_texts(model).begin_token
        asked = body.add_special if body.add_special_tokens is None else body.add_special_tokens
        keeps_begin = asked if asked is not None else body.prompt is not None
        if not keeps_begin and begin is not None and tokens[:1] == [begin]:
            del tokens[0]
        return json_response(Tokenized(tokens, len(tokens)))

    async def detokenize(request: Request) -> Response:
        body = await read_json(request, DetokenizeRequest)
        model = _own_model(api, body.model)
        try:
            text = await api.detokenize(body.tokens, model)
        except LocalError as exc:
            raise HttpError(400, str(exc), param="tokens") from exc
        return json_response(Detokenized(text, text))

    async def info(_: Request) -> Response:
        texts = api.vocabulary_texts()
        told = texts.begin_text or None, texts.end_text or None, texts.chat_template or None
        return json_response(TokenizerInfo(*told, add_bos_token=texts.begin_token is not None))

    return [
        Route("/tokenize", refusing_openai(tokenize), methods=["POST"]),
        Route("/detokenize", refusing_openai(detokenize), methods=["POST"]),
        Route("/tokenizer_info", refusing_openai(info)),
    ]


def _own_model(api: Api, named: str | None) -> str:
    model = own_model(api, named)
    if model is None:
        message = f"this node tokenizes for {spelled(api.own_models)}, not for {str(named)[:128]!r}"
        raise HttpError(404, message, "model_not_found", "model")
    return model
