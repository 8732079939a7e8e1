"""Requests to the node on this machine, over its local API."""

import ssl
from pathlib import Path
from typing import TypeVar

import httpx
import msgspec

from mycelia.node.storage.rundir import RunInfo, find_running, is_held
from mycelia.node.views.frames import FailedView
from mycelia.node.views.history import DayRow, RequestRow, TraceView, UsageRow
from mycelia.node.views.state import ModelRow, NodeState, PausedView, ReloadView, TreeRowView
from mycelia.proto.wire.errors import LocalError, RemoteError

START_HINT = "start one with 'mycelia node'"

STARTING = "the node with the data directory {} is starting or leaving; try again in a moment"

HTTP_ERRORS = (httpx.HTTPError, httpx.InvalidURL, msgspec.DecodeError, RemoteError)

_T = TypeVar("_T")


def running_node(data_dir: Path) -> RunInfo:
    """The running node of ``data_dir``. Raises LocalError when none runs."""
    info = find_running(data_dir)
    if info is None:
        raise LocalError(
            STARTING.format(data_dir)
            if is_held(data_dir)
            else f"no node is running with the data directory {data_dir}; {START_HINT}, or give --data-dir"
        )
    return info


async def fetch_state(info: RunInfo) -> NodeState:
    """Raises LocalError when the node does not answer."""
    return await _get(info, "/api/state", NodeState)


async def fetch_tree(info: RunInfo) -> list[TreeRowView]:
    """Raises LocalError when the node does not answer."""
    return await _get(info, "/api/tree", list[TreeRowView])


async def fetch_models(info: RunInfo) -> list[ModelRow]:
    """Raises LocalError when the node does not answer."""
    return await _get(info, "/api/models", list[ModelRow])


async def fetch_requests(info: RunInfo) -> list[RequestRow]:
    """Raises LocalError when the node does not answer."""
    return await _get(info, "/api/requests", list[RequestRow])


async def fetch_usage(info: RunInfo, num_days: int) -> list[UsageRow]:
    """Raises LocalError when the node does not answer."""
    return await _get(info, f"/api/usage?days={num_days}", list[UsageRow])


async def fetch_days(info: RunInfo, num_days: int) -> list[DayRow]:
    """Raises LocalError when the node does not answer."""
    return await _get(info, f"/api/days?days={num_days}", list[DayRow])


async def pause_node(info: RunInfo, for_s: float | None) -> str:
    """See ``Api.pause``. Raises LocalError."""
    return (await _get(info, "/api/pause", PausedView, {"for_s": for_s})).paused


async def resume_node(info: RunInfo) -> str:
    """See ``Api.resume``. Raises LocalError."""
    return (await _get(info, "/api/resume", PausedView, {})).paused


async def fetch_trace(info: RunInfo, prefix: str) -> TraceView:
    """Raises LocalError, also for a request that the node does not know."""
    return await _get(info, f"/api/trace/{prefix}", TraceView)


async def reload_config(info: RunInfo) -> ReloadView:
    """Makes the node read its configuration again. Raises LocalError, also with what is wrong in it."""
    try:
        async with http_client(info, httpx.Timeout(10)) as http:
            response = await http.post("/api/reload")
        if response.status_code == httpx.codes.UNPROCESSABLE_ENTITY:
            raise LocalError(msgspec.json.decode(response.content, type=FailedView).message)
        if response.status_code == httpx.codes.NOT_FOUND:
            raise LocalError("the running node is of an earlier version: restart it")
        response.raise_for_status()
        return msgspec.json.decode(response.content, type=ReloadView)
    except HTTP_ERRORS as exc:
        raise no_answer(info, exc) from exc


def key_header(info: RunInfo) -> dict[str, str]:
    return {"authorization": f"Bearer {info.api_key}"} if info.api_key else {}


def http_client(info: RunInfo, timeout: httpx.Timeout) -> httpx.AsyncClient:
    """A client of the running node's HTTP. Raises LocalError when the node's certificate cannot be read."""
    trusted = _only(info.api_cert) if info.api_cert else True
    return httpx.AsyncClient(
        base_url=info.api_url, headers=key_header(info), timeout=timeout, trust_env=False, verify=trusted
    )


def _only(cert: str) -> ssl.SSLContext:
    """Trusts the node's own certificate, which names this machine as others see it, and no other one."""
    try:
        context = ssl.create_default_context(cafile=cert)
    except (OSError, ssl.SSLError) as exc:
        raise LocalError(f"cannot read {cert}, the certificate of the node's HTTP: {exc.strerror or exc}") from exc
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


async def _get(info: RunInfo, path: str, kind: type[_T], body: object = None) -> _T:
    """body: None asks by GET, any other value goes by POST."""
    try:
        async with http_client(info, httpx.Timeout(10)) as http:
            response = await (http.get(path) if body is None else http.post(path, json=body))
        if response.is_error:
            raise LocalError(msgspec.json.decode(response.content, type=FailedView).message)
        return msgspec.json.decode(response.content, type=kind)
    except HTTP_ERRORS as exc:
        raise no_answer(info, exc) from exc


def no_answer(info: RunInfo, exc: Exception) -> LocalError:
    reason = (
        "its reply cannot be read"
        if isinstance(exc, msgspec.DecodeError | RemoteError)
        else str(exc) or type(exc).__name__
    )
    return LocalError(f"the node at {info.api_url} (process {info.pid}) does not answer: {reason}; restart it")
