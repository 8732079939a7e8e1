"""Many prompts at once to a node in the same network namespace: ``-m tests.e2e.burst DATA_DIR SALT TOKENS NUMBER ...``.

Prints a line of JSON at the first token of each answer, with its number and time, and one at the end of each, with its
text and the response's headers.
"""

import json
import sys
import time
from pathlib import Path

import httpx
import trio

from mycelia.node.client.local import key_header, running_node


def prompt(number: int) -> str:
    """All begin with the same prefix, so that one node is the best for all."""
    return "A long story that all of these questions share. " * 60 + f"Question {number}: "


async def ask(http: httpx.AsyncClient, salt: str, num_tokens: int, number: int) -> None:
    body = {
        "model": "",
        "messages": [{"role": "user", "content": prompt(number)}],
        "max_tokens": num_tokens,
        "temperature": 0,
        "stream": True,
        "cache_salt": salt,
    }
    began, text = time.monotonic(), ""
    async with http.stream("POST", "/v1/chat/completions", json=body) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                piece = json.loads(line[6:])
                delta = (piece.get("choices") or [{}])[0].get("delta", {}).get("content") or ""
                if delta and not text:
                    print(json.dumps({"number": number, "ttft_s": time.monotonic() - began}), flush=True)
                text += delta
    print(json.dumps({"number": number, "text": text} | dict(response.headers)), flush=True)


async def main(data_dir: str, salt: str, num_tokens: int, numbers: list[int]) -> None:
    info = running_node(Path(data_dir))
    limits = httpx.Limits(max_connections=None)
    async with (
        httpx.AsyncClient(base_url=info.api_url, headers=key_header(info), timeout=120, limits=limits) as http,
        trio.open_nursery() as nursery,
    ):
        for number in numbers:
            nursery.start_soon(ask, http, salt, num_tokens, number)


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2], int(sys.argv[3]), [int(word) for word in sys.argv[4:]])
