"""``mycelia bench gateway``: how much HTTP adds to an engine's time to first token, and how much load a gateway bears.

Real processes on this machine serve the fake engine, which costs next to nothing, so that everything around the engine
is measured. Prompts are cached where they are served. The client speaks HTTP over a bare socket: its usual libraries
would cost more than the measured parts.
"""

import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import httpx
import psutil
import trio

from mycelia.bench.asking import in_time
from mycelia.bench.engine.engine import OurEngine
from mycelia.bench.plans import GatewayBench
from mycelia.bench.report.report import Progress, Report, Row, report_of, row_of
from mycelia.node.engine.fake.worker import DECODE_RATE
from mycelia.node.engine.models import FAKE_MODEL
from mycelia.node.engine.process import ProcessEngine, open_engine
from mycelia.node.engine.settings import EngineSettings
from mycelia.node.local_swarm.processes import LocalNode, open_local_swarm
from mycelia.node.requests.salts import PUBLIC_SALT
from mycelia.proto.wire.errors import LocalError
from mycelia.proto.wire.messages import ChatMessage, Conversation

_PROMPT_CHARS = 3_000
"""0.6 s of the fake engine's time. A node that has the prompt cached wins by that much."""
_ELSEWHERE = "a prompt was not served where it is cached"
_START_DEADLINE_S, _WARM_DEADLINE_S = 120.0, 60.0
_KEY = "a key for the benchmark alone"
_WRONG_KEY = "another one of that length!!!"
_STREAM_TOKENS = 300
_STORM_S, _STORM_CLIENTS = 5.0, 20


async def bench_gateway(bench: GatewayBench) -> Report:
    """Run the benchmark. Raises LocalError when a measurement fails."""
    progress = Progress(3 + 4 * bench.runs)
    progress.step("starting nodes")
    async with AsyncExitStack() as stack:
        root = Path(stack.enter_context(TemporaryDirectory(prefix="mycelia-bench-", ignore_cleanup_errors=True)))
        swarm = await stack.enter_async_context(open_local_swarm(root))
        keys = root / "keys"
        await trio.Path(keys).write_text(_KEY)
        options = ["--model", FAKE_MODEL, "--slots", str(max(bench.streams, 8)), "--api-key-file", str(keys)]
        with in_time(_START_DEADLINE_S, "the nodes did not come up in time"):
            near = await swarm.start("near", options=options)
            far = await swarm.start("far", [await near.address()], options)
            await near.wait_peers(1)
            await far.wait_peers(1)
        engine = await stack.enter_async_context(open_engine(EngineSettings(Path(FAKE_MODEL), fake=True)))
        progress.step("filling caches")
        rows = await _added(bench, engine, near, far, progress)
        rows += await _disconnects(bench, near, far, progress)
        rows += await _streams(bench, near, progress)
        rows += await _storm(bench, near, progress)
    progress.close()
    return report_of("gateway", rows)


# --- the time to the first token ------------------------------------------------------------------------------------


async def _added(
    bench: GatewayBench, engine: ProcessEngine, near: LocalNode, far: LocalNode, progress: Progress
) -> list[Row]:
    prompts = {name: name[0] * _PROMPT_CHARS for name in ("near", "far")}
    direct = OurEngine(engine)
    await _answer(near, prompts["near"])
    await _answer(far, prompts["far"])
    near_peer, far_peer = [(await node.wait_ready()).peer for node in (near, far)]
    await _wait_warm(near, prompts["far"], far_peer)

    async def of_engine() -> float:
        began = trio.current_time()
        tokens = await engine.tokenize_chat(Conversation((ChatMessage(role="user", content=prompts["near"]),)))
        tokenized_s = trio.current_time() - began
        return tokenized_s + (await direct.complete(tokens, 1)).ttft_s

    await of_engine()

    medians: list[list[float]] = []
    async with _connection(near) as stream:
        kinds: list[Callable[[], Awaitable[float]]] = [
            of_engine,
            partial(_ttft_s, stream, prompts["near"], near_peer),
            partial(_ttft_s, stream, prompts["near"], near_peer),  # (a newcomer gets less than half of the prompts)
            partial(_ttft_s, stream, prompts["far"], far_peer),
        ]
        for number in range(bench.runs):
            progress.step(f"time to first token, run {number + 1}")
            times = [[await kind() for kind in kinds] for _ in range(bench.requests)]  # (in rotation)
            medians.append([1000 * median(column) for column in zip(*times, strict=True)])
    return [
        row_of("engine_ttft_ms_p50", "ms, conversation to token, called directly", [run[0] for run in medians]),
        row_of("local_added_ttft_ms_p50", "ms", [run[1] - run[0] for run in medians]),
        row_of("hop_added_ttft_ms_p50", "ms", [run[3] - run[0] for run in medians]),
    ]


async def _wait_warm(node: LocalNode, prompt: str, peer: str) -> None:
    """Wait until ``node`` knows that ``peer`` has the prompt and sends it there, without caching it itself."""
    with in_time(_WARM_DEADLINE_S, "the node did not learn in time what the other one has computed"):
        while True:
            await trio.sleep(1)  # (its digest is on its way)
            if await _answer(node, prompt) == peer:
                return
            prompt = prompt[:-1]


async def _answer(node: LocalNode, prompt: str) -> str:
    """The peer id of the node that answered ``prompt``."""
    info = await node.wait_ready()
    async with httpx.AsyncClient(base_url=info.api_url, trust_env=False, timeout=60, headers=_headers(_KEY)) as http:
        response = await http.post("/v1/chat/completions", json=_body(prompt, 1))
    if response.status_code != httpx.codes.OK:
        raise LocalError(f"a node refused: {response.text[:200]}")
    return response.headers["x-mycelia-served-by"]


async def _ttft_s(stream: trio.SocketStream, prompt: str, peer: str) -> float:
    """Uses a kept connection, as clients' libraries do. peer: the node that has to serve the prompt."""
    data = _request("POST", "/v1/chat/completions", _KEY, _body(prompt, 1, stream=True))
    began, ttft_s, seen = trio.current_time(), 0.0, b""
    await stream.send_all(data)
    async with aclosing(_pieces(stream)) as pieces:
        async for piece in pieces:
            seen += piece
            if not ttft_s and b"data: " in seen:
                ttft_s = trio.current_time() - began
            if b"HTTP/1.1 2" not in seen:
                break
            if seen.endswith(b"\r\n0\r\n\r\n"):  # (the last chunk)
                if peer.encode() not in seen.partition(b"\r\n\r\n")[0]:
                    raise LocalError(_ELSEWHERE)
                return ttft_s
    raise LocalError("a node refused a prompt")


# --- clients that leave ---------------------------------------------------------------------------------------------


async def _disconnects(bench: GatewayBench, near: LocalNode, far: LocalNode, progress: Progress) -> list[Row]:
    """Time from closing the connection to one node until the other node, which serves, is idle."""
    worst_ms, medians_ms = [], []
    url = (await far.wait_ready()).api_url
    data = _request("POST", "/v1/chat/completions", _KEY, _body("f" * _PROMPT_CHARS, _STREAM_TOKENS, stream=True))
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=60, headers=_headers(_KEY)) as http:

        async def is_busy() -> bool:
            return bool((await http.get("/api/state")).json()["active_requests"])

        for number in range(bench.runs):
            progress.step(f"clients that leave, run {number + 1}")
            times: list[float] = []
            for _ in range(bench.requests):
                for _ in range(2):  # (a newcomer gets less than half of the prompts)
                    await _answer(near, "n" * _PROMPT_CHARS)
                async with _connection(near) as stream, aclosing(_pieces(stream)) as pieces:
                    await stream.send_all(data)
                    async for piece in pieces:
                        if b"data: " in piece:
                            break
                    if not await is_busy():
                        raise LocalError(_ELSEWHERE)
                left = trio.current_time()
                while await is_busy():
                    pass
                times.append(1000 * (trio.current_time() - left))
            worst_ms.append(max(times))
            medians_ms.append(median(times))
    return [
        row_of("disconnect_cancel_ms_p50", "ms until the serving node, one hop on, is idle", medians_ms),
        row_of("disconnect_cancel_ms_max", "ms", worst_ms),
    ]


# --- many streams ---------------------------------------------------------------------------------------------------


async def _streams(bench: GatewayBench, node: LocalNode, progress: Progress) -> list[Row]:
    stalls_ms, shares, rates = [], [], []
    process = psutil.Process(node.process.pid)
    for number in range(bench.runs):
        progress.step(f"{bench.streams} streams, run {number + 1}")
        worst: list[float] = []
        began, before = trio.current_time(), process.cpu_times()
        async with trio.open_nursery() as nursery:
            for place in range(bench.streams):
                nursery.start_soon(_stream, node, f"stream {number} {place}", worst)
        wall_s, after = trio.current_time() - began, process.cpu_times()
        if len(worst) < bench.streams:
            raise LocalError(f"{bench.streams - len(worst)} streams were not answered")
        stalls_ms.append(1000 * max(worst))
        shares.append((after.user + after.system - before.user - before.system) / wall_s)
        rates.append(bench.streams * _STREAM_TOKENS / wall_s)
    return [
        row_of("sse_stall_ms_max", f"ms between events, {bench.streams} streams", stalls_ms),
        row_of("sse_cpu_share", "of one core, the gateway's process", shares),
        row_of("sse_tokens_per_s", f"all streams, each at most {DECODE_RATE:g}", rates),
    ]


async def _stream(node: LocalNode, prompt: str, worst: list[float]) -> None:
    """Appends the longest silence after the first text."""
    async with _connection(node) as stream:
        await stream.send_all(
            _request("POST", "/v1/chat/completions", _KEY, _body(prompt, _STREAM_TOKENS, stream=True))
        )
        last, longest, tail = 0.0, 0.0, b""
        async with aclosing(_pieces(stream)) as pieces:
            async for piece in pieces:
                now = trio.current_time()
                if last:
                    longest = max(longest, now - last)
                if last or b"data: " in piece:
                    last = now
                tail = (tail + piece)[-64:]
                if b"[DONE]" in tail:
                    worst.append(longest)
                    return


# --- wrong keys -----------------------------------------------------------------------------------------------------


async def _storm(bench: GatewayBench, node: LocalNode, progress: Progress) -> list[Row]:
    ratios, rates = [], []
    prompt = "n" * _PROMPT_CHARS
    refused = other = 0

    async def guess() -> None:
        nonlocal refused, other
        data = _request("GET", "/v1/models", _WRONG_KEY)
        due = trio.current_time()
        while True:
            due += _STORM_CLIENTS / bench.storm_rate
            await trio.sleep_until(due)
            async with _connection(node) as stream:  # (a node closes a connection whose request it refused)
                await stream.send_all(data)
                status = await _status(stream)
            if status == httpx.codes.UNAUTHORIZED:
                refused += 1
            else:
                other += 1

    peer = (await node.wait_ready()).peer
    for number in range(bench.runs):
        progress.step(f"wrong keys, run {number + 1}")
        async with _connection(node) as stream, trio.open_nursery() as nursery:
            idle_s = median([await _ttft_s(stream, prompt, peer) for _ in range(bench.requests)])
            before, began = refused, trio.current_time()
            for _ in range(_STORM_CLIENTS):
                nursery.start_soon(guess)
            times = [await _ttft_s(stream, prompt, peer) for _ in range(bench.requests)]
            await trio.sleep_until(began + _STORM_S)
            nursery.cancel_scope.cancel()
        rates.append((refused - before) / (trio.current_time() - began))
        ratios.append(median(times) / idle_s)
    return [
        row_of("wrong_keys_per_s", "requests/s refused with 401", rates),
        row_of("wrong_keys_other", "other replies to them", [float(other)]),
        row_of("wrong_keys_ttft_ratio", "of the TTFT without them", ratios),
    ]


# --- HTTP -----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _connection(node: LocalNode) -> AsyncIterator[trio.SocketStream]:
    url = httpx.URL((await node.wait_ready()).api_url)
    stream = await trio.open_tcp_stream(url.host, url.port or 80)
    async with stream:
        yield stream


async def _pieces(stream: trio.SocketStream) -> AsyncGenerator[bytes, None]:
    """The received bytes, as they come. Raises LocalError after silence."""
    while True:
        with trio.move_on_after(_START_DEADLINE_S) as silence:
            piece = bytes(await stream.receive_some(65_536))
        if silence.cancelled_caught:
            raise LocalError("a node is silent")
        if not piece:
            return
        yield piece


async def _status(stream: trio.SocketStream) -> int:
    """The status of a reply that is read to its end. Raises LocalError when there is none."""
    reply = b""
    async with aclosing(_pieces(stream)) as pieces:
        async for piece in pieces:
            reply += piece
            head, _, body = reply.partition(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
            if length and len(body) >= int(length[1]):
                return int(head.split()[1])
    raise LocalError("a node closed a connection without an answer")


def _body(prompt: str, max_tokens: int, stream: bool = False) -> dict[str, object]:
    turns = [{"role": "user", "content": prompt}]
    sampling = {"max_tokens": max_tokens, "temperature": 0, "stream": stream}
    return {"messages": turns, **sampling, "cache_salt": PUBLIC_SALT}


def _headers(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def _request(method: str, path: str, key: str, body: object = None) -> bytes:
    data = b"" if body is None else json.dumps(body).encode()
    lines: Sequence[str] = (
        f"{method} {path} HTTP/1.1",
        "host: 127.0.0.1",
        *(f"{name}: {value}" for name, value in _headers(key).items()),
        "content-type: application/json",
        f"content-length: {len(data)}",
    )
    return "\r\n".join([*lines, "", ""]).encode() + data
