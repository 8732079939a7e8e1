"""What clients and load balancers ask before they send a prompt.

    GET /health, /v1/health    200 when prompts are answered; 503 while the model loads and while the node leaves
    GET /props                 the context and the sampling defaults, as llama-server tells them
    GET /version               as vLLM tells it

Health needs no key, as it tells only that a node is here.
"""

from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mycelia.node.serve.api import Api
from mycelia.node.serve.http.bodies import json_response
from mycelia.node.serve.http.errors import BUSY_RETRY_S
from mycelia.node.version import VERSION
from mycelia.proto.wire.messages import Sampling

OPEN_PROBES = ("/health", "/v1/health")
LOADING = "loading"
_WORDS = {LOADING: "Loading model", "leaving": "the node is about to end: ask another one"}
_DEFAULTS = Sampling(max_tokens=1)


def health_routes(health: Callable[[], str]) -> list[Route]:
    """health: see ``Api.health``."""

    async def answer(_: Request) -> Response:
        return health_response(health())

    return [Route(path, answer) for path in OPEN_PROBES]


def health_response(status: str) -> Response:
    """In the shape of llama-server's."""
    if status == "ok":
        return json_response({"status": status})
    error = {"code": 503, "message": _WORDS[status], "type": "unavailable_error"}
    response = json_response({"status": status, "error": error}, 503)
    response.headers["retry-after"] = str(BUSY_RETRY_S)
    return response


def probe_routes(api: Api) -> list[Route]:
    async def props(_: Request) -> Response:
        return json_response(_props(api))

    async def version(_: Request) -> Response:
        return json_response({"version": VERSION})

    return [*health_routes(api.health), Route("/props", props), Route("/version", version)]


def _props(api: Api) -> dict[str, Any]:
    state, texts = api.state(), api.vocabulary_texts()
    params = {
        "n_predict": -1,
        "temperature": 1.0,
        "top_k": _DEFAULTS.top_k,
        "top_p": 1.0,
        "min_p": _DEFAULTS.min_p,
        "repeat_penalty": _DEFAULTS.repeat_penalty,
        "repeat_last_n": _DEFAULTS.repeat_last_n,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
    }
    return {
        "default_generation_settings": {"id": 0, "n_ctx": state.context_tokens, "params": params},
        "total_slots": state.slots,
        "model_alias": state.model,
        "model_path": state.model,
        "chat_template": texts.chat_template,
        "bos_token": texts.begin_text,
        "eos_token": texts.end_text,
        "modalities": {"vision": False, "audio": False},
        "build_info": f"mycelia {VERSION}",
    }
