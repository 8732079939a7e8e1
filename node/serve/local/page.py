"""The page at /: one document with everything in it, which loads nothing from anywhere else.

Its styles and scripts are files of their own, inserted here, each kind joined to one. Their hashes tell the browser to
run nothing else, whatever text of a stranger appears on the page.
"""

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

PAGE = "/"
_STYLES = ("style.css", "chat.css")
_SCRIPTS = ("app.js", "usage.js", "markdown.js", "chat.js", "start.js")
"""In this order: the last one starts what the others define."""


def page_routes() -> list[Route]:
    async def page(_: Request) -> Response:
        document, policy = _document()
        headers = {
            "content-security-policy": policy,
            "cache-control": "no-cache",
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
            "x-frame-options": "DENY",
        }
        return Response(document, media_type="text/html; charset=utf-8", headers=headers)

    return [Route(PAGE, page)]


@cache
def _document() -> tuple[str, str]:
    folder = files("mycelia.node.serve") / "dashboard"

    def joined(names: Sequence[str]) -> str:
        return "\n".join(folder.joinpath(name).read_text("utf-8") for name in names)

    page, style, script = joined(["page.html"]), joined(_STYLES), joined(_SCRIPTS)
    document = page.replace("/*style*/", style).replace("/*script*/", script)
    policy = {
        "default-src": "'none'",
        "connect-src": "'self'",
        "img-src": "data:",
        "style-src": _hash(style),
        "script-src": _hash(script),
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return document, "; ".join(f"{name} {value}" for name, value in policy.items())


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
