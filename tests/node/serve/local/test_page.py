"""The page at /: complete in itself, and closed to everything else."""

import base64
import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import trio

from mycelia.node.serve.api_keys import unnamed
from mycelia.node.serve.gateway import Access, serve_gateway
from mycelia.node.serve.http.server import bind_api
from mycelia.node.swarms import Swarms
from tests.node.members import open_members

KEY = "0123456789abcdef"


@asynccontextmanager
async def served(access: Access = Access()) -> AsyncIterator[httpx.AsyncClient]:
    listener = bind_api("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with trio.fail_after(30):
        async with open_members(1) as (_, (one,)), trio.open_nursery() as nursery:
            await nursery.start(serve_gateway, Swarms(one.node), listener, access)
            async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
                yield http
            nursery.cancel_scope.cancel()


async def test_the_page_is_one_document_that_loads_nothing() -> None:
    async with served() as http:
        page = await http.get("/")
    assert page.status_code == 200 and page.headers["content-type"] == "text/html; charset=utf-8"
    without_names = page.text.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|//cdn|@import|url\(", without_names)
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=[\"'](?!data:)", page.text)
    assert "/*style*/" not in page.text and "/*script*/" not in page.text


async def test_the_browser_is_told_what_alone_may_run() -> None:
    async with served() as http:
        page = await http.get("/")
    policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'" and policy["frame-ancestors"] == "'none'"
    for kind in ("script", "style"):
        (text,) = re.findall(rf"<{kind}>(.*?)</{kind}>", page.text, re.DOTALL)
        assert policy[f"{kind}-src"] == f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
    assert "innerHTML" not in page.text and "eval(" not in page.text
    assert page.headers["x-content-type-options"] == "nosniff"


async def test_the_page_needs_no_key_and_everything_that_it_shows_does() -> None:
    async with served(Access(keys=(unnamed(KEY),))) as http:
        assert (await http.get("/")).status_code == 200
        for path in ("/api/state", "/api/events", "/api/requests", "/api/links", "/metrics"):
            assert (await http.get(path)).status_code == 401, path


async def test_a_stranger_s_host_name_gets_no_page() -> None:
    async with served() as http:
        assert (await http.get("/", headers={"host": "evil.example"})).status_code == 400
