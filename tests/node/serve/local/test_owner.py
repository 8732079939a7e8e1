"""What only the owner of the machine may do with the node."""

import httpx
import pytest
import trio

from mycelia.node.client.local import pause_node
from mycelia.node.serve.api_keys import ApiKey, digest_of, local_key
from mycelia.node.serve.gateway import Access, make_app, serve_gateway
from mycelia.node.serve.http.server import bind_api
from mycelia.node.storage.rundir import RunInfo
from mycelia.proto.wire.errors import LocalError
from tests.node.serve.openai.test_api import KEY, OTHER_KEY, ScriptedNode, answer


class Pausable(ScriptedNode):
    def __init__(self) -> None:
        super().__init__(answer("Hi"))
        self.told: list[float | None] = []

    def pause(self, for_s: float | None) -> str:
        self.told.append(for_s)
        return "paused by its owner"


def client(node: Pausable, *keys: ApiKey) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(make_app(node, Access(keys)))
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:7118")


async def test_programs_on_this_machine_pause_and_resume_the_node() -> None:
    node = Pausable()
    with trio.fail_after(30):
        async with client(node) as http:
            assert (await http.post("/api/pause", json={"for_s": 60})).json() == {"paused": "paused by its owner"}
            assert (await http.post("/api/pause", json={})).status_code == 200 and node.told == [60, None]
            assert (await http.post("/api/resume", json={})).json() == {"paused": ""}
            assert (await http.get("/api/days?days=7")).json() == []
            for wrong in ({"for_s": 0}, {"for_s": 1e9}, {"for": 1}):
                assert (await http.post("/api/pause", json=wrong)).status_code == 400
            assert (await http.get("/api/days?days=401")).status_code == 400
            other = {"origin": "https://example.org"}
            assert (await http.post("/api/pause", json={}, headers=other)).status_code == 403
    assert node.told == [60, None]


async def test_an_api_key_of_others_does_not() -> None:
    node = Pausable()
    alice = ApiKey("alice", digest_of(KEY.encode()))
    with trio.fail_after(30):
        async with client(node, alice, local_key(OTHER_KEY)) as http:
            for method, path in (("POST", "/api/pause"), ("POST", "/api/resume"), ("GET", "/api/days")):
                for key, status in (("", 401), (KEY, 403), (OTHER_KEY, 200)):
                    headers = {"authorization": f"Bearer {key}"} if key else {}
                    body: dict[str, str] | None = {} if method == "POST" else None
                    assert (await http.request(method, path, headers=headers, json=body)).status_code == status
    assert node.told == [None]


async def test_a_command_gets_the_nodes_own_reason() -> None:
    class Full(Pausable):
        def pause(self, for_s: float | None) -> str:
            raise LocalError("cannot write pause.msgpack: the disk is full")

    listener = bind_api("127.0.0.1", 0)
    info = RunInfo(1, f"http://127.0.0.1:{listener.getsockname()[1]}", "")
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_gateway, Full(), listener)
            for length, reason in ((60.0, r"^cannot write pause\.msgpack"), (1e12, "^the body is not valid")):
                with pytest.raises(LocalError, match=reason):
                    await pause_node(info, length)
            nursery.cancel_scope.cancel()
