"""An open-loop client: prompts arrive at every node of a swarm whether or not it keeps up."""

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
import trio

from mycelia.bench.asking import http_client
from mycelia.proto.wire.errors import LocalError

_LETTERS = "abcdefghijklmnopqrstuvwxyz "
MAX_FAILED_SHARE = 0.01


@dataclass(frozen=True)
class Load:
    """The requests that arrive at each node. The fake engine takes a byte for a token."""

    rate: float = 2.0
    """Requests/s at each node, as a Poisson process."""
    num_prefixes: int = 64
    """Prefixes shared by all prompts of the swarm, chosen by Zipf's law with exponent 1."""
    prefix_tokens: int = 512
    own_tokens: tuple[int, int] = (64, 448)
    """Least and most tokens after the prefix; no other prompt has them."""
    max_tokens: int = 44
    """The fake engine ends an answer after each token with a chance of 1 in 64, so answers have 32 on average."""
    timeout_s: float = 30.0
    seed: int = 1


class Client:
    """Asks over the nodes' local HTTP API, on connections that stay open, and reads each answer as it comes."""

    def __init__(self, api_urls: Sequence[str], load: Load) -> None:
        self._api_urls = api_urls
        self._load = load
        self._rng = random.Random(load.seed)  # noqa: S311  prompts, no secrets
        self._prefixes = [self._text(load.prefix_tokens) for _ in range(load.num_prefixes)]
        self._weights = [1 / (rank + 1) for rank in range(load.num_prefixes)]
        self.first_answer = trio.Event()
        self.num_answered = 0
        self.num_failed = 0
        self.last_failure = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Client"]:
        """Asks while the block runs. Leaving breaks off unfinished answers."""
        async with http_client(self._load.timeout_s) as http, trio.open_nursery() as nursery:
            for api_url in self._api_urls:
                nursery.start_soon(self._arrivals, http, api_url)
            yield self
            nursery.cancel_scope.cancel()

    def check(self) -> None:
        """Raises LocalError when too few prompts were answered for a meaningful measurement."""
        if self.num_failed > MAX_FAILED_SHARE * (self.num_answered + self.num_failed) or not self.num_answered:
            raise LocalError(
                f"{self.num_failed} of {self.num_answered + self.num_failed} prompts failed: {self.last_failure}"
            )

    async def _arrivals(self, http: httpx.AsyncClient, api_url: str) -> None:
        due = trio.current_time()
        async with trio.open_nursery() as nursery:
            while True:
                due += self._rng.expovariate(self._load.rate)
                await trio.sleep_until(due)
                nursery.start_soon(self._ask, http, api_url, self._prompt())

    async def _ask(self, http: httpx.AsyncClient, api_url: str, prompt: str) -> None:
        load = self._load
        body = {
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": load.max_tokens,
            "timeout_s": load.timeout_s,
        }
        end = b""
        try:
            async with http.stream("POST", f"{api_url}/api/ask", json=body) as response:
                async for data in response.aiter_raw():
                    end = (end + data)[-4_096:]
        except httpx.HTTPError as exc:
            end = repr(exc).encode()
        if b'"type":"answered"' in end:
            self.num_answered += 1
            self.first_answer.set()
        else:
            self.num_failed += 1
            self.last_failure = end[-200:].decode(errors="replace")

    def _prompt(self) -> str:
        (prefix,) = self._rng.choices(self._prefixes, self._weights)
        return prefix + self._text(self._rng.randint(*self._load.own_tokens))

    def _text(self, num_tokens: int) -> str:
        return "".join(self._rng.choices(_LETTERS, k=num_tokens))
