"""Scripts of web pages, containers and proxies: the origins, headers and names of hosts that are let in."""

import httpx
import pytest

from mycelia.node.serve.api_keys import ApiKey, unnamed
from mycelia.node.serve.gateway import Access
from tests.node.serve.openai.test_api import KEY, OTHER_KEY, chat, served

PAGE = "https://chat.example"
STAINLESS = "authorization,content-type,x-stainless-arch,x-stainless-retry-count,anthropic-version,x-api-key"


def preflight(**more: str) -> dict[str, str]:
    asked = {"origin": PAGE, "access-control-request-method": "POST", "access-control-request-headers": STAINLESS}
    return asked | more


@pytest.mark.parametrize("keys", [(), (unnamed(KEY),)])
@pytest.mark.parametrize("origin", [PAGE, "*"])
async def test_preflights_of_allowed_pages_get_what_sdks_ask_for(keys: tuple[ApiKey, ...], origin: str) -> None:
    async with served(access=Access(keys=keys, origins=(origin,))) as (node, http):
        headers = preflight() | {"access-control-request-private-network": "true"}
        for path in ("/v1/chat/completions", "/chat/completions", "/v1/models", "/health"):
            answered = await http.options(path, headers=headers)
            assert answered.status_code == 200
            assert answered.headers["access-control-allow-origin"] == origin
            assert set(STAINLESS.split(",")) <= set(answered.headers["access-control-allow-headers"].split(","))
            assert answered.headers["access-control-allow-private-network"] == "true"
            assert "POST" in answered.headers["access-control-allow-methods"]
            assert int(answered.headers["access-control-max-age"]) > 600
        of_page = {"origin": PAGE, "sec-fetch-site": "cross-site", "user-agent": "Mozilla/5.0", "x-api-key": KEY}
        chatted = await http.post("/v1/chat/completions", json=chat(), headers=of_page)
        assert chatted.status_code == 200 and len(node.asked) == 1
        assert "retry-after" in chatted.headers["access-control-expose-headers"]
        refused = await http.post("/v1/chat/completions", json={}, headers=of_page)
        assert refused.status_code == 400 and refused.headers["access-control-allow-origin"] == origin


@pytest.mark.parametrize("access", [Access(), Access(keys=(unnamed(KEY),)), Access(origins=("https://other.example",))])
async def test_pages_that_are_not_allowed_get_nothing(access: Access) -> None:
    async with served(access=access) as (node, http):
        asked = await http.options("/v1/chat/completions", headers=preflight())
        assert asked.status_code >= 400 and "access-control-allow-origin" not in asked.headers
        for kind in ("text/plain", "application/x-www-form-urlencoded", "application/json", ""):
            simple = {"origin": PAGE, "content-type": kind, "user-agent": "Mozilla/5.0"}
            sent = await http.post("/v1/chat/completions", content=b'{"messages": []}', headers=simple)
            assert sent.status_code in (401, 403) and "access-control-allow-origin" not in sent.headers
        assert not node.asked


async def test_streams_are_not_held_back_by_proxies() -> None:
    async with served() as (_, http):
        streamed = await http.post("/v1/chat/completions", json=chat(stream=True))
        whole = await http.post("/v1/chat/completions", json=chat())
    assert streamed.headers["x-accel-buffering"] == "no" and streamed.headers["cache-control"] == "no-cache"
    assert "x-accel-buffering" not in whole.headers


async def test_a_key_is_known_in_the_headers_of_all_makers() -> None:
    async with served(access=Access(keys=(unnamed(KEY), unnamed(OTHER_KEY)))) as (node, http):

        async def status(**headers: str) -> int:
            given = {name.replace("_", "-"): value for name, value in headers.items()}
            return (await http.post("/v1/chat/completions", json=chat(), headers=given)).status_code

        assert await status(authorization=f"Bearer {KEY}") == 200
        assert await status(x_api_key=KEY) == await status(api_key=KEY) == 200
        assert await status(authorization="Bearer none", x_api_key=KEY) == 200, "a tool that sends its own, too"
        for wrong in ({}, {"x_api_key": "none"}, {"api_key": f"Bearer {KEY}"}, {"authorization": KEY}):
            assert await status(**wrong) == 401, wrong
        assert len(set(node.clients)) == 1
        refused = await http.get("/v1/models")
    assert "x-api-key" in refused.json()["error"]["message"] and refused.headers["www-authenticate"] == "Bearer"


async def test_named_hosts_are_served_beside_the_loopback() -> None:
    async with served(access=Access(hosts=("host.docker.internal", "fd00::7"))) as (_, http):

        async def get(host: str, **headers: str) -> httpx.Response:
            return await http.get("/v1/models", headers={"host": host, **headers})

        for host in ("host.docker.internal:7118", "HOST.docker.internal", "[fd00::7]:7118", "localhost"):
            assert (await get(host)).status_code == 200, host
        for host in ("docker.internal", "x.host.docker.internal", "host.docker.internal.evil.example", "evil.example"):
            refused = await get(host)
            assert refused.status_code == 400 and "--allow-host" in refused.json()["error"]["message"], host
        own = "http://host.docker.internal:7118"
        assert (await get("host.docker.internal:7118", origin=own)).status_code == 200
        assert (await get("host.docker.internal:7118", origin="http://evil.example")).status_code == 403
