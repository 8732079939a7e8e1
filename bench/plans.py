"""The options of ``mycelia bench``: what each benchmark measures, how often and how long. Imports nothing heavy,
because ``mycelia bench NAME --help`` reads only this."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mycelia.node.plugins import OWN_POLICY
from mycelia.sim.setting import setting

CAPACITY = 1.0
"""The load that the others are compared with."""
KILL, FREEZE, ENGINE, STORM, FLAP, FULL_DISK, CLOCK = "kill", "freeze", "engine", "storm", "flap", "full-disk", "clock"
SLOW_DISK, DELAY, LOSS, PARTITION = "slow-disk", "delay", "loss", "partition"
SLEEP = "sleep"
FAULTS = (KILL, FREEZE, ENGINE, STORM, FLAP, FULL_DISK, SLOW_DISK, CLOCK, DELAY, LOSS, PARTITION)
"""The faults of ``bench chaos``, described in ``chaos/faults.py``."""
ATTACK_GROUPS = ("newcomer", "http", "floods", "bans", "engine", "prefix", "liar")
RANDOM = "random"
MODEL_GROUPS = ("node", "swarm")
SUPPLY_RULES = ("auto", "fixed", "greedy", "planner")
SUPPLY_DEMANDS = ("steady", "daily", "jumping", "appearing")
"""Described in ``sim/supply.py``."""
MMLU, DIALOGUE = "mmlu", "dialogue"
"""Workloads of real nodes, described in ``swarm/prompts.py``."""
LOADS = {MMLU: 0.8, DIALOGUE: 2.0}


def _model() -> Any:
    return setting("smollm2", "Model to serve, as for 'mycelia node'; it must be on this machine.", metavar="NAME|PATH")


def _threads() -> Any:
    return setting(1, "Threads of each engine.", least=1, most=1_024)


def _runs(default: int, what: str = "Runs of each measurement.", most: int = 1_000) -> Any:
    return setting(default, what, least=1, most=most)


def _seed(what: str) -> Any:
    return setting(1, f"Seed of {what}.")


def _nodes(default: int, least: int, most: int, what: str, shows_default: bool = True) -> Any:
    return setting(default, what, "--nodes", least=least, most=most, shows_default=shows_default)


def _only(what: str, metavar: str = "GROUP", choices: Sequence[str] = ()) -> Any:
    return setting((), what, "--only", metavar=metavar, choices=choices)


@dataclass(frozen=True)
class EngineBench:
    model: str = _model()
    threads: int = setting(1, "Threads of the engine.", least=1, most=1_024)
    cells: int = setting(8_192, "Number of KV cells.", least=2_048, most=16_777_216)
    slots: int = setting(8, "Requests that run at once.", least=8, most=64)
    runs: int = _runs(5)
    against: str | None = setting(
        None, "Measure this engine too, run for run, and print ratios.", choices=["llama-server"]
    )
    seed: int = _seed("the prompts")


@dataclass(frozen=True)
class ModelBench:
    threads: int | None = setting(
        None, "Threads of the engine.  [default: all usable processor cores]", least=1, most=1_024
    )
    slots: int = setting(8, "Most answers at once.", least=1, most=64)
    prompt_tokens: int = setting(512, "Length of the prompt whose prefill is measured.", least=16, most=100_000)
    gpu_layers: int | None = setting(
        None, "Layers on GPUs; 0: none.  [default: all, if there is a GPU]", "--gpu-layers", least=0, most=10_000
    )
    runs: int = _runs(3)
    seed: int = _seed("the prompts")


@dataclass(frozen=True)
class IndexBench:
    peers: int = setting(1_000, "Number of nodes that hold blocks.", least=1, most=100_000)
    residencies: int = setting(1_000_000, "Pairs of a node and a block that it holds.", least=1_000, most=100_000_000)
    zipf: float = setting(0.8, "Skew of the popularity of prompts: Zipf's exponent.", least=0, most=3)
    families: int = setting(
        64, "Number of beginnings that prompts share; 0: prompts share nothing, the worst case.", least=0, most=10_000
    )
    runs: int = _runs(5)
    against: str | None = setting(
        None, "Measure this index too, prompt for prompt, and print ratios.", choices=["dynamo"]
    )
    seed: int = _seed("prompts and of the nodes that hold them")


@dataclass(frozen=True)
class GatewayBench:
    runs: int = _runs(5)
    requests: int = setting(30, "Requests of each kind per run.", least=1, most=10_000)
    streams: int = setting(64, "Streams that are open at the same time.", least=1, most=127)
    storm_rate: float = 500.0
    """Requests/s with wrong keys."""


@dataclass(frozen=True)
class RoutingBench:
    num_nodes: int = _nodes(256, 1, 2_000, "Number of candidate nodes, the entry node included.")
    tokens: int = setting(2_048, "Tokens of each prompt.", least=256, most=100_000)
    runs: int = _runs(5)
    seed: int = _seed("prompts and of the nodes that hold them")


@dataclass(frozen=True)
class GossipBench:
    num_nodes: int = _nodes(1_000, 8, 10_000, "Number of simulated nodes.")
    rtt_file: Path | None = setting(
        None,
        "JSON with a square matrix `rtt_ms`, gzipped or not; without it, latencies of a modelled internet.",
        "--rtt",
        metavar="FILE",
        path="file",
    )
    only: tuple[str, ...] = _only("Measure this row only; may be repeated.", "ROW")
    seed: int = _seed("everything: equal seeds, equal runs")


@dataclass(frozen=True)
class ScaleBench:
    num_nodes: int = _nodes(1_000, 40, 100_000, "Number of nodes that serve one model.")
    only: tuple[str, ...] = _only("Measure only these rows: cells, digests, dht, reuse or growth; may be repeated.")
    seed: int = _seed("everything: equal seeds, equal runs")


@dataclass(frozen=True)
class HundredBench:
    num_nodes: int = _nodes(100, 4, 1_000, "Number of real nodes.")
    per_process: int = setting(10, "Nodes in one process.", "--per-process", least=1, most=100)
    num_requests: int = setting(400, "Number of prompts.", "--requests", least=1, most=100_000)
    rate: float = setting(4.0, "Prompts per second in the whole swarm.", above=0, most=1_000)
    rest_s: float = setting(60.0, "Length of the window at rest.", "--rest", least=1, most=3_600, metavar="SECONDS")
    seed: int = _seed("prompts, arrivals and entry nodes")


@dataclass(frozen=True)
class SoakBench:
    length_s: float = setting(
        1_800.0, "Length of the run in minutes.", "--minutes", least=0.2, most=100_000, scale=60.0
    )
    num_nodes: int = _nodes(4, 2, 32, "Number of real nodes; half of them are killed again and again.")
    every_s: float = setting(
        30.0,
        "Time between kills. Machines sleep and lines are cut or slow half as often.",
        "--every",
        least=1,
        most=36_000,
        metavar="SECONDS",
    )
    model: str = _model()
    threads: int = _threads()
    plot: Path | None = setting(
        None, "Also draw memory over time, as an SVG file; needs mycelia[bench].", metavar="FILE", path="output"
    )
    seed: int = _seed("clients and kills")
    max_tokens: int = 32
    think_s: float = 1.0
    """Mean pause of a client."""
    switch_s: float = 660.0
    """Pause of the client that asks for the second model: nodes unload a model after ten minutes."""
    quiet_s: float = 10.0
    """A node is idle when no count has decreased for this time."""

    @property
    def warm_s(self) -> float:
        return min(0.25 * self.length_s, 1_800.0)

    @property
    def num_watched(self) -> int:
        return (self.num_nodes + 1) // 2


@dataclass(frozen=True)
class OverloadBench:
    """Call ``filled`` before use."""

    real: bool = setting(False, "Use real nodes with fake engines on this machine instead of simulated nodes.")
    loads: tuple[float, ...] = setting(
        (),
        "Prompts per second / what the nodes can answer. Repeatable; ratios are to a load of 1.  "
        "[default: 0.5, 0.8, 1, 1.5, 2 and 3; with --real 1 and 3]",
        "--load",
        least=0.05,
        most=20,
    )
    num_nodes: int = _nodes(0, 2, 256, "Number of nodes.  [default: 8; with --real 4]", shows_default=False)
    seconds: float = setting(
        0.0,
        "Length of the measured time of each run.  [default: 60; with --real 45]",
        least=5,
        most=3_600,
        shows_default=False,
    )
    seeds: int = setting(3, "Runs with different seeds; with --real there is one run.", least=1, most=100)
    kinds: tuple[str, ...] = ("retry", "leave")
    """The reaction of refused clients: to ask again at the given time, or to go away."""

    def filled(self) -> "OverloadBench":
        """This plan with a number for each option that was left open."""
        loads, num_nodes, seconds = (
            ((CAPACITY, 3.0), 4, 45.0) if self.real else ((0.5, 0.8, CAPACITY, 1.5, 2.0, 3.0), 8, 60.0)
        )
        return replace(
            self, loads=self.loads or loads, num_nodes=self.num_nodes or num_nodes, seconds=self.seconds or seconds
        )


@dataclass(frozen=True)
class ChaosSimBench:
    num_peers: int = _nodes(200, 2, 1_000, "Number of simulated nodes.")
    length_s: float = setting(
        3_600.0, "Length of the run in virtual minutes.", "--minutes", least=0.1, most=10_000, scale=60.0
    )
    rate: float = setting(5.0, "Prompts per second in the whole swarm.", least=0.001, most=1_000)
    workload: str = setting("multi-turn", "What clients ask.", choices=["multi-turn", "mmlu", "no-sharing"])
    loss: float = setting(0.1, "Share of messages that each hop loses.", least=0, most=0.9)
    session_s: float = setting(
        1_200.0, "Median time that a node stays.", "--session", least=0.1, most=100_000, metavar="MINUTES", scale=60.0
    )
    partition_every_s: float = setting(
        300.0, "Mean time between partitions.", "--partition-every", least=1, most=100_000, metavar="SECONDS"
    )
    partition_s: float = setting(
        30.0, "Length of a partition.", "--partition", least=1, most=100_000, metavar="SECONDS"
    )
    faults: tuple[str, ...] = setting(
        (),
        "kill, leave, freeze, engine, delay, loss, partition, slow-disk, full-disk, clock, storm, flap. Repeatable."
        "  [default: all]",
        "--fault",
        metavar="KIND",
    )
    seed: int = _seed("everything: equal seeds, equal runs")


@dataclass(frozen=True)
class ChaosBench:
    num_nodes: int = _nodes(4, 2, 32, "Number of real nodes.")
    num_streams: int = setting(100, "Number of answers.", "--streams", least=1, most=100_000)
    at_once: int = setting(4, "Number of clients, each with one answer at a time.", least=1, most=64)
    num_prompts: int = setting(25, "Number of different prompts.", "--prompts", least=1, most=10_000)
    max_tokens: int = setting(64, "Most tokens of an answer.", least=2, most=4_096)
    every_s: float = setting(5.0, "Time between faults.", "--every", least=0.1, most=3_600, metavar="SECONDS")
    faults: tuple[str, ...] = setting(
        (KILL,),
        "SIGKILL and a new start; SIGSTOP for 12 s; SIGKILL of the engine process; all nodes but one killed at once;"
        " one killed again and again; no file can be written for 12 s; each call that opens, syncs or moves a file"
        " takes 0.25 s longer (needs Debian's strace); the clock jumps by an hour (needs Debian's faketime); lines"
        " take 0.5 s longer, lose 0.3 of what is sent, or are cut between two parts. Repeatable.",
        "--fault",
        choices=[*FAULTS, "all"],
    )
    model: str = _model()
    threads: int = _threads()
    exact: bool = setting(True, "Run the nodes in exact mode, or not.", "--exact/--fast")
    other_version: Path | None = setting(
        None,
        "Folder with the packages of another version, as 'pip install --no-deps --target FOLDER' makes it: every second"
        " node runs that version.",
        path="folder",
        metavar="FOLDER",
    )
    seed: int = _seed("the faults and the order of the prompts")

    @property
    def options(self) -> list[str]:
        """Options of ``mycelia node`` that every node gets."""
        return ["--model", self.model, "--threads", str(self.threads), *(["--exact"] if self.exact else [])]


@dataclass(frozen=True)
class LivenessBench:
    num_nodes: int = _nodes(4, 3, 32, "Number of real nodes.")
    runs: int = _runs(5)


@dataclass(frozen=True)
class ModelsBench:
    models: tuple[str, ...] = setting(
        ("smollm2", "gemma3", "fake-third"),
        "Models to serve, at least three. Repeatable.  [default: smollm2, gemma3 and fake-third]",
        "--model",
        metavar="NAME|PATH",
        shows_default=False,
    )
    minutes: float = setting(10.0, "Length of the load on each kind of node.", least=0.1, most=1_000)
    rate: float = setting(0.3, "Requests per second on a node, and on each node of a swarm.", above=0, most=100)
    max_tokens: int = setting(16, "Most tokens of an answer.", least=1, most=512)
    groups: tuple[str, ...] = setting(
        MODEL_GROUPS,
        "Measure only these groups of rows.  [default: all]",
        "--only",
        choices=MODEL_GROUPS,
        shows_default=False,
    )
    threads: int = _threads()
    seed: int = _seed("prompts and arrivals")


@dataclass(frozen=True)
class AutoBench:
    nodes: int = _nodes(40, 4, 1_000, "Nodes of the swarm.")
    days: float = setting(3.0, "Length of the simulation.", least=0.1, most=100)
    load: float = setting(
        0.5, "Requests, as a share of what the nodes could answer with the best models.", above=0, most=10
    )
    demands: tuple[str, ...] = setting(
        SUPPLY_DEMANDS,
        "How the demand shifts. Repeatable.  [default: all]",
        "--demand",
        choices=SUPPLY_DEMANDS,
        shows_default=False,
    )
    rules: tuple[str, ...] = setting(
        SUPPLY_RULES,
        "Rules to compare. Repeatable.  [default: all]",
        "--rule",
        choices=SUPPLY_RULES,
        shows_default=False,
    )
    liars: int = setting(0, "Networks of liars, of eight nodes each.", least=0, most=16)
    runs: int = _runs(3, "Runs of each, with other seeds.")
    seed: int = _seed("machines and requests")


@dataclass(frozen=True)
class AttacksBench:
    runs: int = _runs(3, "Runs of each attack.")
    minutes: float = setting(
        2.0, "Length of the attacks that try to make honest nodes ban each other.", least=0.1, most=1_000
    )
    groups: tuple[str, ...] = setting(
        ATTACK_GROUPS,
        "Measure only these groups of rows; may be repeated.  [default: all]",
        "--only",
        choices=ATTACK_GROUPS,
        shows_default=False,
    )
    model: str = _model()


@dataclass(frozen=True)
class SwarmBench:
    num_nodes: int = _nodes(4, 2, 32, "Number of real nodes.")
    rtt_ms: float = setting(80.0, "Round trip between any two nodes.", "--rtt", least=0, most=2_000, metavar="MS")
    workload: str = setting(
        MMLU,
        "What clients ask: MMLU's questions with five examples; or dialogues of some 1,000 tokens with short answers"
        " and tools between, whose next prompt follows the answer.",
        choices=[MMLU, DIALOGUE],
    )
    zipf: float = setting(
        1.0, "Skew of the popularity of subjects or system prompts: Zipf's exponent.", least=0, most=3
    )
    num_requests: int = setting(60, "Requests under each policy per run.", "--requests", least=1, most=100_000)
    load: float | None = setting(
        None,
        "Requests per second / what all nodes could answer with nothing cached.  [default: 0.8; dialogue 2]",
        above=0,
        most=100,
    )
    rate: float | None = setting(
        None, "Requests per second in the whole swarm, instead of --load.", above=0, most=1_000
    )
    max_tokens: int = setting(4, "Most tokens of an answer of MMLU, which is one letter.", least=1, most=512)
    policies: tuple[str, ...] = setting(
        (OWN_POLICY, RANDOM, "least_load", "longest_prefix", "gorgo"),
        "Rule that chooses the serving node, see 'mycelia simulate --help'. Repeatable; rows of the first policy have"
        " no prefix.",
        "--policy",
        metavar="NAME",
    )
    model: str = _model()
    threads: int = _threads()
    cells: int = setting(8_192, "Number of KV cells of each node.", least=256, most=4_194_304)
    ram_tier_mib: int = setting(
        1_024,
        "Host memory of each node for prefixes that no request uses at the moment. 0: they stay in the KV cells.",
        "--ram-tier",
        least=0,
        most=1_048_576,
        metavar="MIB",
    )
    data: Path | None = setting(
        None,
        "Folder with mmlu.jsonl or mmlu.jsonl.gz, for MMLU.  [default: made-up texts of the same lengths]",
        metavar="DIR",
        path="folder",
    )
    runs: int = _runs(1, "Runs, each with other prompts.", 100)
    seed: int = _seed("prompts, arrivals and entry nodes")

    def rate_of(self, cold_rate: float) -> float:
        """Requests per second. cold_rate: what all nodes answer a second with nothing cached."""
        return self.rate or (self.load or LOADS[self.workload]) * cold_rate

    @property
    def rtt_s(self) -> float:
        return self.rtt_ms / 1_000
