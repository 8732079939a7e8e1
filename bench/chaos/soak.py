"""``mycelia bench soak``: real nodes under mixed load while others are killed, and what the nodes leak.

Half of the nodes are spared and watched; the others are killed and restarted, one every ``every_s``. All of them sleep
now and then, and their lines are slow, lossy or cut. Clients hold conversations over HTTP, ask for embeddings, break
off in the middle of answers, send nonsense, ask as ``mycelia ask`` does on a machine without a node, and ask for a
second model, which nodes load for that and unload later. First comes a warm-up, in which caches fill. Then the clients
pause until all work has ended, and the idle nodes are measured; the same again at the end. ``failures_of`` compares
with the bars.

Engines run with ``--debug``: each time one becomes idle, it compares its records with llama.cpp's. Every cell and every
sequence must belong to a cached prefix. An engine that finds a difference dies, and is counted.
"""

import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import httpx
import msgspec
import psutil
import trio

from mycelia.bench.chaos.chaos import ask_once
from mycelia.bench.chaos.faults import FaultInjector, Nodes, open_nodes
from mycelia.bench.plans import DELAY, KILL, LOSS, PARTITION, SLEEP, SoakBench
from mycelia.bench.report.report import Progress, Report, Row, report_of, rows_of
from mycelia.node.client.local import fetch_state
from mycelia.node.local_swarm.processes import LocalNode
from mycelia.node.requests.salts import PUBLIC_SALT
from mycelia.proto.wire.errors import LocalError
from mycelia.proto.wire.messages import Ask, ChatMessage, Sampling

SAMPLE_S = 5.0
QUIET_DEADLINE_S = 120.0
TIMEOUT_S = 120.0
CELLS, RAM_TIER_MIB = 4_096, 64
"""Sizes of each node's caches. Both are full after the warm-up, because memory counts once it is touched."""
DISK_TIER_GIB = 0.125
"""Budget of each node in the folder of prefixes, which all nodes share."""
DATA_BYTES = 16 << 20
"""Budget of a data directory: twice 2 MiB of the journal, three times 2 MiB of the log, and small files."""
MAX_GROWTH = 0.03
SECOND = "fake-second"
"""The model that is loaded on demand."""
DISTURBANCES = (SLEEP, DELAY, LOSS, PARTITION)
"""Faults of all nodes, also of the watched ones."""
FOLLOWED_LOG = "mycelia.node.log"
"""What the benchmark itself writes into a data directory."""
_MIB = 1 << 20

_TOPICS = ("the tide", "bread", "a long winter", "radio waves", "an orchard", "sand", "old maps", "the colour blue")
_PREFACE = "You are one of several speakers who talk about everyday things in plain words and short sentences. " * 4
_NONSENSE: tuple[bytes, ...] = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nno json!!",
    b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 50 + b"\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00",
)


class NoAnswerError(LocalError):
    """A node that runs did not answer in time."""


@dataclass(frozen=True)
class Sample:
    """The resources of one node at one time."""

    at_s: float
    node_rss: int
    engine_rss: int
    """Bytes; of several engines the largest one's."""
    disk_bytes: int
    """The size of the data directory."""
    num_files: int
    num_tasks: int
    num_exchanges: int
    num_engines: int = 1


@dataclass
class Soak:
    """The measurements. Times count from when the nodes were up."""

    warm_s: float = 0.0
    """When the load began again after the warm-up."""
    samples: dict[int, list[Sample]] = field(default_factory=dict)
    """Samples of each watched node, with and without load."""
    idle: dict[int, Sample] = field(default_factory=dict)
    after: dict[int, Sample] = field(default_factory=dict)
    num_answered: int = 0
    num_failed: int = 0
    failures: set[str] = field(default_factory=set)
    num_broken_off: int = 0
    num_kills: int = 0
    num_disturbances: int = 0
    num_switches: int = 0
    """Second models that were loaded."""
    num_engines_lost: int = 0
    """Engines that watched nodes lost."""
    num_unanswered: int = 0
    """Looks at a watched node under load that it did not answer in time, although it was awake."""
    most_data_bytes: int = 0
    """The size of the largest data directory of a watched node, at any time."""
    most_cache_bytes: int = 0
    """The size of the folder of prefixes, at any time."""
    num_nodes: int = 0


async def bench_soak(bench: SoakBench) -> tuple[Report, Soak]:
    """Run the benchmark. Raises LocalError when the nodes do not start, or a watched one dies."""
    soak = Soak(num_nodes=bench.num_nodes)
    caches = ["--cells", str(CELLS), "--ram-tier", str(RAM_TIER_MIB), "--disk-tier", str(DISK_TIER_GIB)]
    models = ["--model", bench.model, "--model", f"{SECOND},load=demand"]
    options = [*models, "--threads", str(bench.threads), *caches, "--debug"]
    with Progress(round(bench.length_s / SAMPLE_S) + 3) as progress:
        with TemporaryDirectory(prefix="mycelia-soak-", ignore_cleanup_errors=True) as root:
            progress.step("nodes start")
            cache = Path(root) / "prefixes"
            options += ["--cache-dir", str(cache)]
            async with open_nodes(bench.num_nodes, options, Path(root), DISTURBANCES) as nodes:
                await _soak(bench, nodes, soak, cache, progress)
                watched = nodes.nodes[: bench.num_watched]
                soak.num_engines_lost = sum(node.counts["engine_lost"] for node in watched)
                soak.num_switches = sum(node.counts["model_loaded"] for node in watched)
        for failure in sorted(soak.failures):
            progress.show(f"failed: {failure}")
    return report_of("soak", _rows(soak)), soak


async def _soak(bench: SoakBench, nodes: Nodes, soak: Soak, cache: Path, progress: Progress) -> None:
    began = trio.current_time()
    kills, others = (random.Random(f"{what} {bench.seed}") for what in ("kills", "disturbances"))  # noqa: S311
    injector = FaultInjector(nodes, (KILL,), bench.every_s, kills, spared=range(bench.num_watched))
    disturber = FaultInjector(nodes, DISTURBANCES, 2 * bench.every_s, others)
    soak.samples = {number: [] for number in range(bench.num_watched)}

    async def sample() -> None:
        while True:
            for number, samples in soak.samples.items():
                try:
                    taken = await _sample(nodes.nodes[number], began)
                except NoAnswerError:
                    soak.num_unanswered += 1  # (hours of measurements are not thrown away for it)
                    continue
                if taken is not None:
                    samples.append(taken)
                    soak.most_data_bytes = max(soak.most_data_bytes, taken.disk_bytes)
            soak.most_cache_bytes = max(soak.most_cache_bytes, await trio.to_thread.run_sync(_size_of, cache))
            progress.step(f"{soak.num_answered} answered, {injector.num_faults} kills; {_told(soak)}")
            await trio.sleep(SAMPLE_S)

    async def load(seconds: float) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(injector.run)
            nursery.start_soon(disturber.run)
            async with trio.open_nursery() as clients:
                clients.start_soon(sample)
                for number, kind in enumerate(_KINDS):
                    rng = random.Random(f"client {bench.seed} {number} {seconds}")  # noqa: S311
                    clients.start_soon(_client, kind, bench, nodes, soak, rng)
                await trio.sleep(seconds)
                clients.cancel_scope.cancel()
            injector.stop()
            disturber.stop()

    await load(bench.warm_s)
    progress.step("the clients pause")
    soak.idle = await _quiet(bench, nodes, began)
    soak.warm_s = trio.current_time() - began
    await load(bench.length_s - bench.warm_s)
    progress.step("the clients are gone")
    soak.after = await _quiet(bench, nodes, began)
    soak.num_kills, soak.num_disturbances = injector.num_faults, disturber.num_faults


def _told(soak: Soak) -> str:
    last = [samples[-1] for samples in soak.samples.values() if samples]
    nodes = ", ".join(f"{one.node_rss // _MIB}+{one.engine_rss // _MIB}" for one in last)
    return f"node+engine {nodes} MiB"


def _size_of(folder: Path) -> int:
    """The bytes of the files under ``folder``, which change meanwhile."""
    sizes = 0
    for file in folder.rglob("*"):
        with suppress(OSError):
            sizes += file.stat().st_size if file.is_file() and file.name != FOLLOWED_LOG else 0
    return sizes


async def _sample(node: LocalNode, began: float) -> Sample | None:
    """None: the node sleeps. Raises LocalError when it is gone, and NoAnswerError when it does not answer."""
    info = await node.wait_ready()
    try:
        process = psutil.Process(node.process.pid)
        try:
            state = await fetch_state(info)
        except LocalError as exc:
            status = process.status()
            if status == psutil.STATUS_STOPPED:
                return None
            if status == psutil.STATUS_ZOMBIE:
                raise
            raise NoAnswerError(str(exc)) from exc
        engines = [child.memory_info().rss for child in process.children()]
        return Sample(
            trio.current_time() - began,
            process.memory_info().rss,
            max(engines, default=0),
            await trio.to_thread.run_sync(_size_of, node.data_dir),
            process.num_fds(),
            state.tasks,
            state.exchanges,
            len(engines),
        )
    except psutil.Error as exc:
        raise LocalError(f"{node.name}, which was not killed, is gone: {exc}") from exc


async def _quiet(bench: SoakBench, nodes: Nodes, began: float) -> dict[int, Sample]:
    """The resources of each watched node when all nodes are connected and no count decreases any more: the least seen
    of each count."""
    least: dict[int, Sample] = {}
    give_up_at = trio.current_time() + QUIET_DEADLINE_S
    changed_at = trio.current_time()
    while trio.current_time() < min(give_up_at, changed_at + bench.quiet_s):
        for number in range(bench.num_watched):
            now = await _sample(nodes.nodes[number], began)
            assert now is not None, "nobody sleeps any more"
            before = least.get(number, now)
            least[number] = Sample(
                now.at_s,
                now.node_rss,
                now.engine_rss,
                now.disk_bytes,
                min(now.num_files, before.num_files),
                min(now.num_tasks, before.num_tasks),
                min(now.num_exchanges, before.num_exchanges),
                now.num_engines,
            )
            is_less = _counts(least[number]) != _counts(before)
            state = await fetch_state(await nodes.nodes[number].wait_ready())
            if is_less or len(state.peers) < bench.num_nodes - 1:
                changed_at = trio.current_time()
        await trio.sleep(1.0)
    return least


def _counts(sample: Sample) -> tuple[int, int, int]:
    return sample.num_files, sample.num_tasks, sample.num_exchanges


# --- clients --------------------------------------------------------------------------------------------------------

Kind = Callable[[SoakBench, Nodes, Soak, random.Random], Awaitable[None]]


async def _client(kind: Kind, bench: SoakBench, nodes: Nodes, soak: Soak, rng: random.Random) -> None:
    """Asks one thing after the other until cancelled. A failure at a node that is being killed does not count."""
    while True:
        with suppress(httpx.HTTPError, OSError, trio.BrokenResourceError, LocalError):
            await kind(bench, nodes, soak, rng)
        await trio.sleep(rng.expovariate(1 / bench.think_s) if bench.think_s else 0.0)


async def _url(nodes: Nodes, rng: random.Random) -> str:
    return (await rng.choice(nodes.nodes).wait_ready()).api_url


def _http(url: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url, trust_env=False, timeout=TIMEOUT_S)


async def _connect(nodes: Nodes, rng: random.Random) -> trio.SocketStream:
    url = httpx.URL(await _url(nodes, rng))
    return await trio.open_tcp_stream(url.host, url.port or 80)


def _note(soak: Soak, response: httpx.Response) -> bool:
    if response.status_code == httpx.codes.OK:
        soak.num_answered += 1
        return True
    soak.num_failed += 1
    soak.failures.add(f"{response.status_code}: {response.text[:200]}")
    return False


def _body(bench: SoakBench, messages: list[dict[str, str]], **more: object) -> dict[str, object]:
    return {"messages": messages, "max_tokens": bench.max_tokens, "temperature": 0, "cache_salt": PUBLIC_SALT, **more}


def _first_message(rng: random.Random) -> dict[str, str]:
    return {"role": "user", "content": f"{_PREFACE}Tell me about {rng.choice(_TOPICS)}, number {rng.randrange(50)}."}


async def _converse(bench: SoakBench, nodes: Nodes, soak: Soak, rng: random.Random) -> None:
    """Some turns at one node."""
    async with _http(await _url(nodes, rng)) as http:
        messages = [_first_message(rng)]
        for _ in range(rng.randint(1, 5)):
            response = await http.post("/v1/chat/completions", json=_body(bench, messages))
            if not _note(soak, response):
                return
            answer = response.json()["choices"][0]["message"]["content"] or ""
            messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "And then?"}]


async def _break_off(bench: SoakBench, nodes: Nodes, soak: Soak, rng: random.Random) -> None:
    """A stream that is read for a while, or to its end."""
    body = msgspec.json.encode(_body(bench, [_first_message(rng)], stream=True))
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    enough, seen = rng.randrange(bench.max_tokens), 0
    async with await _connect(nodes, rng) as stream:
        await stream.send_all(head.encode() + body)
        async for piece in stream:
            if not seen and not piece.startswith(b"HTTP/1.1 200"):
                soak.num_failed += 1
                soak.failures.add(piece[:200].decode(errors="replace"))
                return
            seen += max(piece.count(b"data: "), 1)
            if b"data: [DONE]" in piece:
                soak.num_answered += 1
                return
            if seen > enough:
                soak.num_broken_off += 1
                return


async def _embed(bench: SoakBench, nodes: Nodes, soak: Soak, rng: random.Random) -> None:
    async with _http(await _url(nodes, rng)) as http:
        _note(soak, await http.post("/v1/embeddings", json={"input": [rng.choice(_TOPICS), rng.choice(_TOPICS)]}))


async def _send_nonsense(bench: SoakBench, nodes: Nodes, soak: Soak, rng: random.Random) -> None:
    with trio.move_on_after(TIMEOUT_S):
        async with await _connect(nodes, rng) as stream:
            await stream.send_all(rng.choice(_NONSENSE))
            await stream.receive_some()


async def _ask_light(bench: SoakBench, nodes: Nodes, soak: Soak, rng: random.Random) -> None:
    ask = Ask(
        request_id=bytes(16),
        model="",
        messages=(ChatMessage(role="user", content=_first_message(rng)["content"]),),
        sampling=Sampling(max_tokens=bench.max_tokens, temperature=0.0),
        cache_salt=PUBLIC_SALT,
    )
    stream = await ask_once(ask, nodes.addresses)
    soak.num_answered += not stream.failure
    if stream.failure:
        soak.num_failed += 1
        soak.failures.add(stream.failure)


async def _switch(bench: SoakBench, nodes: Nodes, soak: Soak, rng: random.Random) -> None:
    """The second model, at each node in turn; then a pause in which they unload it."""
    for node in list(nodes.nodes):
        async with _http((await node.wait_ready()).api_url) as http:
            body = _body(bench, [_first_message(rng)], model=SECOND)
            _note(soak, await http.post("/v1/chat/completions", json=body))
    await trio.sleep(bench.switch_s * rng.uniform(1.0, 1.3))


_KINDS: tuple[Kind, ...] = (_converse, _converse, _break_off, _embed, _send_nonsense, _ask_light, _switch)


# --- results --------------------------------------------------------------------------------------------------------


def growth(soak: Soak, rss: Callable[[Sample], int]) -> float:
    """Growth of the watched node that grew most: median of the last tenth of the samples under load / median of the
    first tenth after the warm-up, - 1. Raises ValueError without samples."""
    found = []
    for samples in soak.samples.values():
        sizes = [rss(sample) for sample in samples if sample.at_s >= soak.warm_s]
        tenth = max(len(sizes) // 10, 1)
        found.append(median(sizes[-tenth:]) / max(median(sizes[:tenth]), 1) - 1)
    return max(found)


def leaked(soak: Soak, what: Callable[[Sample], int]) -> int:
    """How much more an idle node has at the end than after the warm-up, of the node with most.

    An engine has tasks and files of its own. So a node that has another number of engines at the end than after the
    warm-up is compared with the least that it ever had with so many until then."""
    found = []
    for number, after in soak.after.items():
        alike = [soak.idle[number]]
        if after.num_engines != alike[0].num_engines:
            until_then = [sample for sample in soak.samples[number] if sample.at_s < soak.warm_s]
            alike = [sample for sample in until_then if sample.num_engines == after.num_engines] or alike
        found.append(what(after) - min(map(what, alike)))
    return max(found)


def failures_of(soak: Soak) -> list[str]:
    """The bars that were missed, each in words. Raises ValueError without a sample."""
    node, engine = growth(soak, lambda sample: sample.node_rss), growth(soak, lambda sample: sample.engine_rss)
    cache_bytes = soak.num_nodes * DISK_TIER_GIB * (1 << 30)
    missed = {
        f"nodes' memory grew by {node:.1%}": node > MAX_GROWTH,
        f"engines' memory grew by {engine:.1%}": engine > MAX_GROWTH,
        f"{soak.num_engines_lost} engines were lost": soak.num_engines_lost > 0,
        f"{soak.num_unanswered} questions to watched nodes got no answer": soak.num_unanswered > 0,
        f"a data directory took {soak.most_data_bytes} bytes": soak.most_data_bytes > DATA_BYTES,
        f"the prefixes on disk took {soak.most_cache_bytes} bytes": soak.most_cache_bytes > cache_bytes,
        "nothing was answered": not soak.num_answered,
    }
    for what, count in (
        ("tasks", leaked(soak, lambda sample: sample.num_tasks)),
        ("files", leaked(soak, lambda sample: sample.num_files)),
        ("streams", leaked(soak, lambda sample: sample.num_exchanges)),
    ):
        missed[f"{count} {what} leaked"] = count > 0
    return [text for text, is_missed in missed.items() if is_missed]


def _rows(soak: Soak) -> list[Row]:
    """Raises ValueError without a sample."""
    rows: list[tuple[str, str, float]] = [
        ("node_rss_growth", "%", 100 * growth(soak, lambda sample: sample.node_rss)),
        ("engine_rss_growth", "%", 100 * growth(soak, lambda sample: sample.engine_rss)),
        ("node_rss_mib", "MiB at the end", max(one.node_rss for one in soak.after.values()) / _MIB),
        ("engine_rss_mib", "MiB at the end", max(one.engine_rss for one in soak.after.values()) / _MIB),
        ("leaked_tasks", "tasks", leaked(soak, lambda sample: sample.num_tasks)),
        ("leaked_files", "file descriptors", leaked(soak, lambda sample: sample.num_files)),
        ("leaked_streams", "streams", leaked(soak, lambda sample: sample.num_exchanges)),
        ("data_mib", "MiB on disk, the most", soak.most_data_bytes / _MIB),
        ("prefixes_mib", "MiB on disk, the most, of all nodes", soak.most_cache_bytes / _MIB),
        ("engines_lost", "engines, also by a leaked cell or sequence", soak.num_engines_lost),
        ("unanswered", "questions to watched nodes about their state", soak.num_unanswered),
        ("answered", "requests", soak.num_answered),
        ("failed", "requests", soak.num_failed),
        ("broken_off", "requests", soak.num_broken_off),
        ("kills", "nodes", soak.num_kills),
        ("disturbances", "sleeps and bad lines", soak.num_disturbances),
        ("switches", "loads of a second model", soak.num_switches),
        ("missed_bars", "bars", len(failures_of(soak))),
    ]
    return rows_of(rows)


def plot_of(soak: Soak) -> str:
    """Memory over time, as an SVG file. Needs the extra ``bench``."""
    from mycelia.bench.report.plots import Curve, lines

    series: list[Curve] = []
    for number, samples in soak.samples.items():
        for name, sizes in (
            ("engine", [sample.engine_rss for sample in samples]),
            ("node", [sample.node_rss for sample in samples]),
        ):
            points = [(sample.at_s / 60, size / _MIB) for sample, size in zip(samples, sizes, strict=True)]
            series.append(Curve(f"{name} {number + 1}", len(series), points))
    return lines(series, "minutes", "MiB")
