"""The gateway's description in OpenAPI 3.1, made from the types that check the requests."""

from typing import Any

import msgspec

from mycelia.node.serve.anthropic import types as anthropic
from mycelia.node.serve.openai.request_types import ChatRequest, CompletionRequest, EmbeddingRequest, RerankRequest
from mycelia.node.serve.openai.response_types import (
    ChatCompletion,
    Completion,
    EmbeddingList,
    Errors,
    Model,
    Models,
    Reranked,
)
from mycelia.node.serve.openai.tokenizer import (
    Detokenized,
    DetokenizeRequest,
    Tokenized,
    TokenizeRequest,
    TokenizerInfo,
)
from mycelia.node.serve.responses import types as responses
from mycelia.node.version import VERSION

_REFS = "#/components/schemas/{name}"
_JSON, _EVENTS = "application/json", "text/event-stream"
_REFUSALS = {
    "400": "The request cannot be served; the message has the reason.",
    "401": "No key, or a wrong one.",
    "404": "No such model.",
    "408": "The body did not arrive in time.",
    "413": "The body is too large.",
    "415": "The body is not JSON.",
    "429": "All nodes are busy; Retry-After has the time to wait.",
    "500": "An error inside the node.",
    "503": "No node could answer.",
    "504": "The answer was not finished in time.",
}


_BODIES = (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    RerankRequest,
    anthropic.MessagesRequest,
    anthropic.CountRequest,
    responses.ResponsesRequest,
    TokenizeRequest,
    DetokenizeRequest,
)
_REPLIES = (
    ChatCompletion,
    Completion,
    EmbeddingList,
    Reranked,
    Models,
    Model,
    Errors,
    anthropic.Message,
    anthropic.TokenCount,
    anthropic.Errors,
    responses.ResponseBody,
    responses.Deleted,
    Tokenized,
    Detokenized,
    TokenizerInfo,
)


def openapi() -> dict[str, Any]:
    kinds = (*_BODIES, *_REPLIES)
    schemas, components = msgspec.json.schema_components(kinds, ref_template=_REFS)
    refs: dict[Any, Any] = dict(zip(kinds, schemas, strict=True))

    def operation(name: str, summary: str, reply: type, body: type | None = None, is_streamed: bool = True) -> Any:
        errors = anthropic.Errors if body in (anthropic.MessagesRequest, anthropic.CountRequest) else Errors
        return _operation(name, summary, refs[reply], refs[errors], refs[body] if body else None, is_streamed)

    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Mycelia",
            "version": VERSION,
            "description": "OpenAI's and Anthropic's APIs in front of a swarm. Unknown fields of requests are ignored.",
        },
        "paths": {
            "/v1/chat/completions": {"post": operation("chat", "Answer a conversation.", ChatCompletion, ChatRequest)},
            "/v1/completions": {"post": operation("complete", "Continue a text.", Completion, CompletionRequest)},
            "/v1/embeddings": {
                "post": operation("embed", "Vectors for texts.", EmbeddingList, EmbeddingRequest, is_streamed=False)
            },
            "/v1/rerank": {
                "post": operation(
                    "rerank", "How well documents answer a query.", Reranked, RerankRequest, is_streamed=False
                )
            },
            "/v1/models": {"get": operation("models", "Every model of the swarm.", Models)},
            "/v1/models/{name}": {"get": operation("model", "One of these models.", Model) | {"parameters": [_NAME]}},
            "/v1/responses": {
                "post": operation(
                    "respond", "Answer a conversation.", responses.ResponseBody, responses.ResponsesRequest
                )
            },
            "/v1/responses/{name}": {
                "get": operation("response", "A response that is kept.", responses.ResponseBody),
                "delete": operation("forget", "Forget a response.", responses.Deleted),
                "parameters": [_NAME],
            },
            "/v1/messages": {
                "post": operation("message", "Answer a conversation.", anthropic.Message, anthropic.MessagesRequest)
            },
            "/v1/messages/count_tokens": {
                "post": operation(
                    "count", "The tokens of a conversation.", anthropic.TokenCount, anthropic.CountRequest, False
                )
            },
            "/tokenize": {
                "post": operation("tokenize", "The tokens of a text.", Tokenized, TokenizeRequest, is_streamed=False)
            },
            "/detokenize": {
                "post": operation(
                    "detokenize", "The text of tokens.", Detokenized, DetokenizeRequest, is_streamed=False
                )
            },
            "/tokenizer_info": {"get": operation("tokenizer", "The model's begin and end.", TokenizerInfo)},
            "/health": {"get": _probe("health", "Whether prompts are answered; needs no key.") | {"security": [{}]}},
            "/v1/health": {"get": _probe("health_v1", "The same.") | {"security": [{}]}},
            "/props": {"get": _probe("props", "Context and sampling defaults, as llama-server tells them.")},
            "/version": {"get": _probe("version", "The version, as vLLM tells it.")},
        },
        "components": {
            "schemas": components,
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer"},
                "bareKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        "security": [{}, {"key": []}, {"bareKey": []}],
    }


_NAME = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def _operation(
    name: str, summary: str, reply: Any, errors: Any, body: Any = None, is_streamed: bool = True
) -> dict[str, Any]:
    """reply, errors, body: references to their schemas."""
    content: dict[str, Any] = {_JSON: {"schema": reply}}
    if body is not None and is_streamed:
        content[_EVENTS] = {"schema": {"type": "string"}}
    refusal = {_JSON: {"schema": errors}}
    responses: dict[str, Any] = {"200": {"description": "OK", "content": content}}
    responses |= {status: {"description": text, "content": refusal} for status, text in _REFUSALS.items()}
    operation: dict[str, Any] = {"operationId": name, "summary": summary, "responses": responses}
    if body is not None:
        operation["requestBody"] = {"required": True, "content": {_JSON: {"schema": body}}}
    return operation


def _probe(name: str, summary: str) -> dict[str, Any]:
    content = {_JSON: {"schema": {"type": "object"}}}
    responses = {
        "200": {"description": "OK", "content": content},
        "503": {"description": "The model is loading, or the node is about to end.", "content": content},
    }
    return {"operationId": name, "summary": summary, "responses": responses}
