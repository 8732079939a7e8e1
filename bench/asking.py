"""Helpers with which benchmarks wait for real nodes and ask them over HTTP."""

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import trio

from mycelia.proto.wire.errors import LocalError


@contextmanager
def in_time(deadline_s: float, failure: str) -> Iterator[None]:
    """Raises LocalError with ``failure`` when the block takes longer."""
    try:
        with trio.fail_after(deadline_s):
            yield
    except trio.TooSlowError as exc:
        raise LocalError(f"{failure}; is the machine busy with something else?") from exc


def http_client(timeout_s: float) -> httpx.AsyncClient:
    # A node closes a connection that was idle for 5 s; a connection about to be closed must not be used again.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=2)
    return httpx.AsyncClient(timeout=timeout_s, limits=limits, trust_env=False)
