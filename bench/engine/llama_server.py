"""llama-server's own code for comparison: the C++ server in the package ``xllamacpp``, in a process of its own.

Run as a module, this file is that process: it serves HTTP on a free port until standard input ends.
"""

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import trio

from mycelia.bench.engine.target import Settings, Timing
from mycelia.bench.report.extra import check_extra
from mycelia.proto.wire.errors import LocalError

_START_DEADLINE_S = 120.0
_PACKAGE = "xllamacpp"


class LlamaServer:
    """A running llama-server. Made by ``open_llama_server``."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def complete(self, prompt: Sequence[int], max_tokens: int) -> Timing:
        body = {
            "prompt": list(prompt),
            "n_predict": max_tokens,
            "stream": True,
            "cache_prompt": True,
            "temperature": 0,
            "return_tokens": True,
        }
        began, first, count, last = trio.current_time(), None, 0, dict[str, object]()
        async with self._http.stream("POST", "/completion", json=body) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if not line.startswith("data: "):
                    continue
                last = json.loads(line.removeprefix("data: "))
                first = first or trio.current_time()
        timings = last.get("timings")
        if not last.get("stop") or first is None or not isinstance(timings, dict):
            raise LocalError(f"llama-server ended an answer without its final event: {last}")
        count = int(str(last["tokens_predicted"]))
        return Timing(first - began, trio.current_time() - began, int(timings["cache_n"]), count)


def check_installed() -> None:
    """Raises LocalError with the command that installs it."""
    check_extra(_PACKAGE, "--against llama-server")


@asynccontextmanager
async def open_llama_server(model: Path, settings: Settings) -> AsyncIterator[LlamaServer]:
    """A llama-server with ``settings`` for the duration of the block. Raises LocalError when it does not start."""
    check_installed()
    arguments = [str(model), str(settings.threads), str(settings.cells), str(settings.slots)]
    process = await trio.lowlevel.open_process(
        [sys.executable, "-P", "-m", "mycelia.bench.engine.llama_server", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        with trio.move_on_after(_START_DEADLINE_S):
            line = b""
            while not line.endswith(b"\n") and (data := await process.stdout.receive_some()):
                line += bytes(data)
        address = line.decode().strip()
        if not address.startswith("http"):
            raise LocalError("llama-server did not start")
        # No connection is kept: the server closes idle ones after a few seconds, maybe just as the next request comes.
        limits = httpx.Limits(max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=address, timeout=600, trust_env=False, limits=limits) as http:
            yield LlamaServer(http)
    finally:
        with trio.CancelScope(shield=True):
            process.kill()
            await process.wait()


def _serve(model: str, threads: int, cells: int, slots: int) -> None:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.n_ctx, params.n_parallel = cells, slots
    params.n_batch, params.n_ubatch = Settings.batch_tokens, Settings.micro_batch_tokens
    params.kv_unified, params.warmup, params.port, params.verbosity = True, False, 0, 0
    server = xllamacpp.Server(params)
    sys.stdout.write(server.listening_address + "\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    _serve(sys.argv[1], *map(int, sys.argv[2:]))
