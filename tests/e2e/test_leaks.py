"""Clients that break off at every stage, and clients that misuse the gateway, leave nothing behind."""

import json
import os
from collections.abc import Callable

import httpx
import pytest
import trio

from mycelia.node.client.local import fetch_requests, fetch_state
from mycelia.node.local_swarm.processes import LocalSwarm
from mycelia.node.storage.rundir import RunInfo
from mycelia.node.views.state import NodeState
from tests.e2e.conftest import DEADLINE_S

pytestmark = pytest.mark.e2e

WORDS = "Tell me about the sea, the ships and the sailors. " * 20
BODY = json.dumps(
    {"messages": [{"role": "user", "content": WORDS}], "max_tokens": 2_000, "stream": True, "cache_salt": "public"}
).encode()
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
WHOLE = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY

STAGES: dict[str, Callable[[bytes], bool]] = {
    "before the status": lambda seen: True,
    "after the headers": lambda seen: b"\r\n\r\n" in seen,
    "after the first text": lambda seen: b'"content":"' in seen,
    "in the middle": lambda seen: seen.count(b"data: ") > 4,
}
BROKEN = [
    b"",
    b"POST /v1/chat",
    HEAD,
    HEAD + b"Content-Length: 100000\r\n\r\n" + BODY[:100],
    HEAD + b"Content-Length: 99999999999\r\n\r\n" + BODY,
    HEAD + b"".join(b"X-%d: %s\r\n" % (n, b"a" * 1_000) for n in range(200)) + b"\r\n",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    HEAD + b"Content-Length: 5\r\n\r\n{...}",
    os.urandom(4_096),
]


def is_clean(state: NodeState) -> bool:
    return not (state.active_requests or state.waiting_requests or state.exchanges)


async def becomes_clean(*infos: RunInfo) -> None:
    """Waits until no node has a running request, a waiting one or a stream of one, and none is listed as running."""
    for info in infos:
        while True:
            state, rows = await fetch_state(info), await fetch_requests(info)
            if is_clean(state) and all(row.status != "running" for row in rows):
                break


async def send_and_leave(port: int, data: bytes, enough: Callable[[bytes], bool]) -> None:
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        try:
            await stream.send_all(data)
            seen = b""
            while not enough(seen):
                piece = await stream.receive_some()
                if not piece:
                    return
                seen += bytes(piece)
        except trio.BrokenResourceError:  # (the node has refused the request and closed)
            return


async def test_nothing_is_left_of_clients_that_break_off(swarm: LocalSwarm) -> None:
    """Another node serves, so the gateway's side, the stream between the nodes and the engine have to end."""
    with trio.fail_after(2 * DEADLINE_S):
        first, second = await swarm.start_many(2, ["--model", "fake"])
        infos = [await first.wait_ready(), await second.wait_ready()]
        port = int(infos[0].api_url.rpartition(":")[2])
        async with httpx.AsyncClient(base_url=infos[1].api_url, trust_env=False, timeout=DEADLINE_S) as http:
            warm = {"messages": [{"role": "user", "content": WORDS}], "max_tokens": 2, "cache_salt": "public"}
            assert (await http.post("/v1/chat/completions", json=warm)).status_code == 200
        await first.wait_event(lambda e: e.get("event") == "ready")
        for enough in STAGES.values():
            async with trio.open_nursery() as nursery:
                for _ in range(8):
                    nursery.start_soon(send_and_leave, port, WHOLE, enough)
            await becomes_clean(*infos)
        async with trio.open_nursery() as nursery:
            for data in BROKEN * 4:
                nursery.start_soon(send_and_leave, port, data, lambda seen: True)
        await becomes_clean(*infos)
        state = await fetch_state(infos[0])
        assert state.stats.entered["cancelled"] >= 16 and "internal" not in state.stats.entered
        other = await fetch_state(infos[1])
        assert other.stats.served.get("cancelled", 0) > 0, "nothing was ever served over a hop"
        async with httpx.AsyncClient(base_url=infos[0].api_url, trust_env=False, timeout=DEADLINE_S) as http:
            assert (await http.post("/v1/chat/completions", json=warm)).status_code == 200
        assert not [event for event in first.events if event.get("level") == "error"]
