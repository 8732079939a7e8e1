"""``mycelia bench models``: several models on one node, and several models in one swarm.

*node*: one node serves all models under a plan with memory for all but one, so models are unloaded and come back. The
prompts of each model begin with one of a few long texts: after the model was away, its answers show how much of that
text was still cached. What the engines and the kept prefixes take is measured from outside.

*swarm*: four nodes, to which the models are spread unevenly, and at the same time four nodes that serve all of them.
Requests arrive at random times, at any node, for any model.
"""

import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import httpx
import psutil
import trio

from mycelia.bench.asking import http_client, in_time
from mycelia.bench.plans import ModelsBench
from mycelia.bench.report.report import Progress, Report, report_of, rows_of
from mycelia.node.client.local import fetch_state
from mycelia.node.engine.models import is_fake, model_name
from mycelia.node.engine.pool.memory import PREFIX, SHARED_MEMORY, used_bytes
from mycelia.node.local_swarm.processes import LocalNode, open_local_swarm
from mycelia.proto.loading.plan import KEPT_SHARE
from mycelia.proto.wire.errors import LocalError

START_DEADLINE_S = 300.0
ANSWER_DEADLINE_S = 300.0
SAMPLE_S = 0.5
NUM_TEXTS, NUM_WORDS = 3, 120
"""Long texts of each model, and words of each."""
SPARE = 1.05
"""The plan of the measured node is as large as all but the smallest model need together, and this much more."""
SPREAD = ((0,), (1,), (0, 2), (0, 1))
"""Models of each of four nodes, by number."""
_WORDS = ("river", "stone", "north", "window", "garden", "copper", "letter", "quiet", "engine", "market", "forest")


@dataclass
class Load:
    """What became of the requests of one run."""

    ttft_s: list[float] = field(default_factory=list)
    after_return: list[float] = field(default_factory=list)
    """Share of the long text that was cached, of the first request for it after its model was away."""
    failures: Counter[str] = field(default_factory=Counter)


async def bench_models(bench: ModelsBench) -> Report:
    """Run the benchmark. Raises LocalError when nodes do not start."""
    if len(bench.models) < len({index for node in SPREAD for index in node}):
        raise LocalError("give at least three models")
    rows: list[tuple[str, str, float]] = []
    with Progress(4) as progress:
        if "node" in bench.groups:
            rows += await _on_one_node(bench, progress)
        if "swarm" in bench.groups:
            rows += await _in_a_swarm(bench, progress)
    return report_of("models", rows_of(rows))


# --- one node -------------------------------------------------------------------------------------------------------


async def _on_one_node(bench: ModelsBench, progress: Progress) -> list[tuple[str, str, float]]:
    with TemporaryDirectory(prefix="mycelia-bench-", ignore_cleanup_errors=True) as root:
        progress.step("measuring what each model takes")
        async with _nodes(bench, Path(root), [range(len(bench.models))]) as (node,):
            served = (await fetch_state(await node.wait_ready())).served
        needs = sorted(row.memory_bytes for row in served)
        budget = SPARE * sum(needs[1:]) / (1 - KEPT_SHARE)
        options = ["--memory", f"{budget / 2**30:.4f}"]
        progress.step("a node with memory for all models but one")
        load, taken = Load(), list[float]()
        before = set(SHARED_MEMORY.glob(f"{PREFIX}*"))
        async with _nodes(bench, Path(root), [range(len(bench.models))], options) as (node,):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_watch_memory, node, before, taken)
                await _ask_for(bench, [node], load)
                nursery.cancel_scope.cancel()
            _tell_failures(load, progress)
            idle = await _at_rest(node)
            loads = node.counts["model_loaded"]
    returned = load.after_return
    return [
        ("node_failed", "requests", float(load.failures.total())),
        ("node_answered", "requests", float(len(load.ttft_s))),
        ("node_loads", "models loaded during the run", float(loads)),
        ("node_plan_used_max", "share of the planned memory, engines and kept prefixes", max(taken) / budget),
        ("node_hit_ratio_after_return", "share of a known text", sum(returned) / len(returned) if returned else 0.0),
        ("node_returns", "requests for a known text after its model was away", float(len(returned))),
        ("node_ttft_ms_p50", "ms", 1000 * median(load.ttft_s)),
        *idle,
    ]


async def _watch_memory(node: LocalNode, before: set[Path], taken: list[float]) -> None:
    """Appends what the node's engines and its folder in memory take, every SAMPLE_S. Never returns."""
    process = psutil.Process(node.process.pid)
    while True:
        total = 0
        for child in process.children():
            try:
                total += child.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        folders = set(SHARED_MEMORY.glob(f"{PREFIX}*")) - before
        taken.append(total + sum(map(used_bytes, folders)))
        await trio.sleep(SAMPLE_S)


async def _at_rest(node: LocalNode) -> list[tuple[str, str, float]]:
    """What the node's own process takes when nobody asks."""
    process = psutil.Process(node.process.pid)
    await trio.sleep(5)
    times, began = process.cpu_times(), time.monotonic()
    await trio.sleep(30)
    used = process.cpu_times()
    seconds = used.user + used.system - times.user - times.system
    return [
        ("node_rest_cpu", "share of a core, without engines", seconds / (time.monotonic() - began)),
        ("node_rest_mb", "MB, without engines", process.memory_info().rss / 1e6),
    ]


# --- a swarm --------------------------------------------------------------------------------------------------------


async def _in_a_swarm(bench: ModelsBench, progress: Progress) -> list[tuple[str, str, float]]:
    """Both swarms at once: what else this machine does concerns both."""
    everywhere = [range(len(bench.models))] * len(SPREAD)
    loads = {"spread": Load(), "everywhere": Load()}
    progress.step("starting two swarms")
    with TemporaryDirectory(prefix="mycelia-bench-", ignore_cleanup_errors=True) as root:
        async with _nodes(bench, Path(root, "1"), SPREAD) as one, _nodes(bench, Path(root, "2"), everywhere) as other:
            progress.step("a swarm with its models spread, and one with all everywhere")
            async with trio.open_nursery() as nursery:
                for nodes, load in zip((one, other), loads.values(), strict=True):
                    nursery.start_soon(_ask_for, bench, nodes, load)
    rows: list[tuple[str, str, float]] = []
    for name, load in loads.items():
        _tell_failures(load, progress)
        rows += [
            (f"{name}_failed", "requests", float(load.failures.total())),
            (f"{name}_answered", "requests", float(len(load.ttft_s))),
            (f"{name}_ttft_ms_p50", "ms", 1000 * median(load.ttft_s)),
        ]
    ratio = median(loads["spread"].ttft_s) / median(loads["everywhere"].ttft_s)
    return [*rows, ("spread_ttft_ratio", "of every model everywhere", ratio)]


def _tell_failures(load: Load, progress: Progress) -> None:
    for failure, count in load.failures.items():
        progress.show(f"{count} requests failed: {failure}")


# --- both -----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _nodes(
    bench: ModelsBench, root: Path, spread: Sequence[Sequence[int]], options: Sequence[str] = ()
) -> AsyncIterator[list[LocalNode]]:
    """A node for each entry of ``spread``, which has the numbers of its models; all are connected and serve them."""
    async with open_local_swarm(root) as swarm:
        nodes: list[LocalNode] = []
        with in_time(START_DEADLINE_S, "the nodes did not come up in time"):
            for number, models in enumerate(spread):
                named = [word for index in models for word in ("--model", bench.models[index])]
                bootstrap = [await nodes[0].address()] if nodes else []
                given = [*named, "--threads", str(bench.threads), "--no-mdns", *options]
                nodes.append(await swarm.start(f"node-{number}", bootstrap, given))
            for node, models in zip(nodes, spread, strict=True):
                info = await node.wait_ready()
                await node.wait_peers(len(nodes) - 1)
                while len((await fetch_state(info)).served) < len(models):
                    await node.wait_next_event()
        yield nodes


async def _ask_for(bench: ModelsBench, nodes: Sequence[LocalNode], load: Load) -> None:
    """Poisson requests for ``bench.minutes``."""
    rng = random.Random(bench.seed)  # noqa: S311  a workload
    names = [model_name(model) for model in bench.models]
    texts = {name: [_text(rng, NUM_WORDS) for _ in range(NUM_TEXTS)] for name in names}
    urls = [(await node.wait_ready()).api_url for node in nodes]
    asker = _Asker(bench, nodes[0], load)
    ends_at = trio.current_time() + 60 * bench.minutes
    async with http_client(ANSWER_DEADLINE_S) as http, trio.open_nursery() as nursery:
        while trio.current_time() < ends_at:
            await trio.sleep(rng.expovariate(bench.rate * len(nodes)))
            name = rng.choices(names, [1 / (place + 1) for place in range(len(names))])[0]
            text = rng.choice(texts[name])
            prompt = f"{text} {_text(rng, 8)}"
            nursery.start_soon(asker.ask, http, rng.choice(urls), name, text, prompt)


class _Asker:
    def __init__(self, bench: ModelsBench, node: LocalNode, load: Load) -> None:
        """node: the one whose loads of models are counted."""
        self._bench = bench
        self._node = node
        self._load = load
        self._seen: dict[tuple[str, str], int] = {}
        """Model and text -> number of loads of the model when the text was last answered."""

    async def ask(self, http: httpx.AsyncClient, url: str, model: str, text: str, prompt: str) -> None:
        began, first_at, usage = trio.current_time(), 0.0, None
        body = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": self._bench.max_tokens}
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        try:
            async with http.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
                async for line in answer.aiter_lines():
                    if answer.status_code != httpx.codes.OK or '"error"' in line:
                        self._load.failures[line[:200]] += 1
                        return
                    if not line.startswith("data: {"):
                        continue
                    chunk = json.loads(line.removeprefix("data: "))
                    usage = chunk.get("usage") or usage
                    if not first_at and any(choice["delta"].get("content") for choice in chunk["choices"]):
                        first_at = trio.current_time()
        except httpx.HTTPError as exc:
            self._load.failures[type(exc).__name__] += 1
            return
        if usage is None:
            self._load.failures["an answer without an end"] += 1
            return
        self._load.ttft_s.append((first_at or trio.current_time()) - began)  # (an answer may have no text)
        loads = sum(event.get("event") == "model_loaded" and event.get("model") == model for event in self._node.events)
        before = self._seen.get((model, text))
        if before is not None and before < loads and not is_fake(model):  # (the fake engine keeps nothing)
            share = len(text) / len(prompt)
            cached = usage["prompt_tokens_details"]["cached_tokens"] / usage["prompt_tokens"]
            self._load.after_return.append(min(cached / share, 1.0))
        self._seen[model, text] = loads


def _text(rng: random.Random, num_words: int) -> str:
    return " ".join(rng.choice(_WORDS) for _ in range(num_words))
