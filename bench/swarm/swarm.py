"""``mycelia bench swarm``: real nodes with a real model and distance between them, beside the simulator's prediction.

Both get the same requests: the same tokens, at the same times, at the same entry nodes, under the same policy. The
simulator also gets the speed of this machine, but nothing of the run itself. That speed is measured before and after
each policy's turn, because other work on the machine changes it. Each policy starts with a new swarm and empty caches,
and everything counts from the first request on.
"""

import random
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mycelia.bench.plans import SwarmBench
from mycelia.bench.report.report import Progress, Report, Row, report_of, row_of
from mycelia.bench.swarm.calibrate import Machine, calibrate, num_steps
from mycelia.bench.swarm.prompts import Asked, flat, prompts_of
from mycelia.bench.swarm.real_swarm import Question, Run, open_real_swarm
from mycelia.node.engine.models import FAKE_MODEL, resolve_model
from mycelia.node.engine.settings import EngineSettings
from mycelia.node.local_swarm.distance import SwarmSettings
from mycelia.proto.wire.errors import LocalError
from mycelia.sim.outcome import percentile
from mycelia.sim.prompts import Prompt
from mycelia.sim.replay import Request, Swarm, replay
from mycelia.sim.sessions import arrivals, hit_bound

STEPS_A_RUN = 10
"""Steps of the progress line while requests are answered."""
MAX_OTHERS_CORES = 0.25
"""Most cores that other programs may use before the table warns that the prediction means nothing."""
_PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
_ANSWER = 1 << 30
"""The first of the tokens that stand for answers: no model has them."""


@dataclass(frozen=True)
class Measures:
    """The results of one swarm, real or simulated, under one policy."""

    hit_ratio: float
    """Prompt tokens that were cached where they were answered / all prompt tokens, of answered requests."""
    waits_s: list[float]
    """Times to the first token, sorted."""
    num_failed: int

    def ttft_s(self, name: str) -> float:
        return percentile(self.waits_s, _PERCENTILES[name])


@dataclass(frozen=True)
class Pair:
    """One policy of one run, measured and predicted."""

    policy: str
    real: Measures
    simulated: Measures
    run: Run

    @property
    def hit_error(self) -> float:
        return _error(self.simulated.hit_ratio, self.real.hit_ratio)

    def ttft_error(self, name: str) -> float:
        return _error(self.simulated.ttft_s(name), self.real.ttft_s(name))


@dataclass(frozen=True)
class Round:
    """One run: every policy on the same requests."""

    bound: float
    """Hit ratio of one cache without limits."""
    pairs: list[Pair]


async def bench_swarm(bench: SwarmBench) -> tuple[Report, list[Round]]:
    """Run the benchmark. Raises LocalError when a measurement fails."""
    asked = [prompts_of(bench, run) for run in range(bench.runs)]
    num_turns, a_calibration = bench.runs * len(bench.policies), num_steps(bench.num_nodes)
    progress = Progress(a_calibration + num_turns * (1 + STEPS_A_RUN + a_calibration))
    settings = _engine_settings(bench)

    async def measure() -> Machine:
        return await calibrate(settings, bench.num_nodes, flat(asked), bench.seed, progress)

    machines = [await measure()]

    async def since_last() -> Machine:
        machines.append(await measure())
        return machines[-2].halfway_to(machines[-1])

    rate = bench.rate_of(machines[0].cold_rate())
    rounds = []
    for run, of_run in enumerate(asked):
        first = run * bench.num_requests
        prompts = machines[0].prompts[first : first + bench.num_requests]
        rounds.append(await _one_run(bench, run, of_run, prompts, since_last, rate, progress))
    progress.close()
    return report_of("swarm", rows_of(rounds, machines, rate)), rounds


async def _one_run(
    bench: SwarmBench,
    run: int,
    asked: Sequence[Asked],
    prompts: Sequence[Sequence[int]],
    since_last: Callable[[], Awaitable[Machine]],
    rate: float,
    progress: Progress,
) -> Round:
    """since_last: measures the machine's mean speed between the last measurement and now."""
    seed = bench.seed + run
    questions = questions_of(asked, rate, bench.num_nodes, seed)
    requests = requests_of(questions, prompts)
    pairs = []
    # Alternating order, so that changes of the machine favour no policy in the median.
    for policy in bench.policies if run % 2 == 0 else reversed(bench.policies):
        measured = await _ask_real_swarm(bench, policy, questions, progress)
        machine = await since_last()
        swarm = Swarm([machine.spec] * bench.num_nodes, bench.rtt_s, machine.speeds)
        pairs.append(compare(policy, measured, requests, swarm, seed))
    pairs.sort(key=lambda pair: bench.policies.index(pair.policy))
    return Round(bound_of(prompts), pairs)


def questions_of(asked: Sequence[Asked], rate: float, num_nodes: int, seed: int) -> list[Question]:
    """Clients come as a Poisson process, so that about ``rate`` prompts come a second, each to a node of its own."""
    num_clients = sum(one.after is None for one in asked)
    times = arrivals(rate * num_clients / len(asked), random.Random(f"arrivals {seed}"))  # noqa: S311  no secret
    clients = random.Random(f"clients {seed}")  # noqa: S311  no secret
    questions: list[Question] = []
    for one in asked:
        if one.after is None:
            at_s, entry = next(times), clients.randrange(num_nodes)
        else:
            at_s, entry = one.pause_s, questions[one.after].entry
        questions.append(Question(at_s, entry, one.messages, one.max_tokens, one.after))
    return questions


async def _ask_real_swarm(bench: SwarmBench, policy: str, questions: Sequence[Question], progress: Progress) -> Run:
    progress.step(f"{policy}: starting {bench.num_nodes} nodes")
    sizes = ("--threads", bench.threads, "--cells", bench.cells, "--ram-tier", bench.ram_tier_mib)
    options = ("--model", bench.model, *map(str, sizes), "--policy", policy)
    settings = SwarmSettings(bench.num_nodes, bench.rtt_s, options)
    num_answered = 0

    def on_answer() -> None:
        nonlocal num_answered
        before, num_answered = num_answered, num_answered + 1
        tenth, last = num_answered * STEPS_A_RUN // len(questions), before * STEPS_A_RUN // len(questions)
        for _ in range(tenth - last):
            progress.step(f"{policy}: {num_answered} of {len(questions)} requests")

    async with open_real_swarm(settings) as swarm:
        return await swarm.ask(questions, on_answer)


def _engine_settings(bench: SwarmBench) -> EngineSettings:
    fake = bench.model == FAKE_MODEL
    path = Path(FAKE_MODEL) if fake else resolve_model(bench.model)
    return EngineSettings(path, threads=bench.threads, cells=bench.cells, ram_tier_mib=bench.ram_tier_mib, fake=fake)


# --- what is compared -----------------------------------------------------------------------------------------------


def requests_of(questions: Sequence[Question], prompts: Sequence[Sequence[int]]) -> list[Request]:
    """The questions for the simulator. Answers have the greatest allowed length, and share no tokens."""
    return [
        Request(
            question.at_s,
            question.entry,
            Prompt(tuple(prompt), (_ANSWER + place,) * question.max_tokens),
            question.after,
        )
        for place, (question, prompt) in enumerate(zip(questions, prompts, strict=True))
    ]


def bound_of(prompts: Sequence[Sequence[int]]) -> float:
    """The hit ratio that one cache without limits would have, token by token, in order of arrival."""
    numbers: dict[tuple[int, int], int] = {}
    chains = []
    for prompt in prompts:
        chain, before = [], 0
        for token in prompt:  # (the number of a prefix is that of its parent prefix and its last token)
            before = numbers.setdefault((before, token), len(numbers) + 1)
            chain.append(before)
        chains.append((chain, len(prompt), len(prompt)))
    return hit_bound(chains, [True] * len(chains), 1)


def compare(policy: str, run: Run, requests: Sequence[Request], swarm: Swarm, seed: int) -> Pair:
    """The measurement and the simulator's prediction for its requests. Raises LocalError if nothing was answered."""
    return Pair(policy, _real(run), _simulated(requests, swarm, policy, seed), run)


def _real(run: Run) -> Measures:
    answered = [outcome for outcome in run.outcomes if not outcome.failure]
    failures = [outcome.failure for outcome in run.outcomes if outcome.failure]
    if not answered:
        raise LocalError(f"no request was answered: {failures[0]}")
    hits, tokens = sum(one.cached_tokens for one in answered), sum(one.prompt_tokens for one in answered)
    return Measures(hits / max(tokens, 1), sorted(one.ttft_s for one in answered), len(failures))


def _simulated(requests: Sequence[Request], swarm: Swarm, policy: str, seed: int) -> Measures:
    records = replay(requests, swarm, policy, seed)
    answered = [record for record in records if record.done_s]
    hits, tokens = sum(one.cached_tokens for one in answered), sum(one.num_prompt for one in answered)
    waits_s = sorted(one.first_token_s - one.submitted_s for one in answered)
    return Measures(hits / max(tokens, 1), waits_s, len(records) - len(answered))


def _error(predicted: float, measured: float) -> float:
    """The relative error. If 0 was measured: 0 or 1."""
    return abs(predicted - measured) / measured if measured else float(predicted != 0)


# --- what is shown --------------------------------------------------------------------------------------------------


def rows_of(rounds: Sequence[Round], machines: Sequence[Machine], rate: float) -> list[Row]:
    """All rows; those of the first policy have no prefix. machines: every measurement."""
    policies = [pair.policy for pair in rounds[0].pairs]
    of = {name: [pair for one in rounds for pair in one.pairs if pair.policy == name] for name in policies}
    rows = [row_of("hit_bound", "of the prompt tokens", [one.bound for one in rounds])]
    for policy in policies:
        prefix = "" if policy == policies[0] else f"{policy}_"
        bounds = [one.bound for one in rounds]
        rows += _policy_rows(prefix, of[policy], bounds)
    rows += _ratio_rows(of[policies[0]], {name: of[name] for name in policies[1:]})
    runs = [pair.run for one in rounds for pair in one.pairs]
    specs = [machine.spec for machine in machines]
    rows += [
        row_of("rtt_ms_min", "ms", [1000 * min(run.rtts_s, default=0.0) for run in runs]),
        row_of("rtt_ms_p50", "ms", [1000 * median(run.rtts_s or [0.0]) for run in runs]),
        row_of("requests", "", [float(len(run.outcomes)) for run in runs]),
        row_of("rate", "requests/s", [rate]),
        row_of("others_cores", "cores busy with other things", [run.others_cores for run in runs]),
        row_of("cold_rate", "requests/s with nothing cached", [machine.cold_rate() for machine in machines]),
        row_of("prefill_rate", "tokens/s, one engine alone", [spec.prefill_rate for spec in specs]),
        row_of("prefill_depth_us", "us a token and token before it", [spec.depth_s * 1e6 for spec in specs]),
        row_of("prefill_start_ms", "ms", [spec.start_s * 1e3 for spec in specs]),
        row_of("decode_rate", "tokens/s, one engine alone", [spec.decode_rate for spec in specs]),
        row_of(
            "speed_shared",
            f"of an engine, {len(machines[0].speeds)} at once",
            [machine.speeds[-1] for machine in machines],
        ),
    ]
    return rows


def _policy_rows(prefix: str, pairs: Sequence[Pair], bounds: Sequence[float]) -> list[Row]:
    share = "of the prompt tokens"
    rows = [
        row_of(f"{prefix}hit_ratio", share, [pair.real.hit_ratio for pair in pairs]),
        row_of(
            f"{prefix}cached_over_bound",
            "ratio",
            [pair.real.hit_ratio / bound if bound else 1.0 for pair, bound in zip(pairs, bounds, strict=True)],
        ),
    ]
    rows += [row_of(f"{prefix}ttft_{name}_s", "s", [pair.real.ttft_s(name) for pair in pairs]) for name in _PERCENTILES]
    rows.append(row_of(f"{prefix}sim_hit_ratio", share, [pair.simulated.hit_ratio for pair in pairs]))
    rows += [
        row_of(f"{prefix}sim_ttft_{name}_s", "s", [pair.simulated.ttft_s(name) for pair in pairs])
        for name in _PERCENTILES
    ]
    rows += [
        row_of(f"{prefix}sim_error_hit", "of the measured", [pair.hit_error for pair in pairs]),
        *(
            row_of(f"{prefix}sim_error_ttft_{name}", "of the measured", [pair.ttft_error(name) for pair in pairs])
            for name in _PERCENTILES
        ),
        row_of(f"{prefix}failed", "requests", [float(pair.real.num_failed) for pair in pairs]),
    ]
    return rows


def _ratio_rows(own: Sequence[Pair], others: Mapping[str, Sequence[Pair]]) -> list[Row]:
    """The first policy's waits / those of each other one, and of the best other one of each run."""
    rows = []
    for name in ("p50", "p99"):
        ratios = {
            other: [ours.real.ttft_s(name) / theirs.real.ttft_s(name) for ours, theirs in zip(own, pairs, strict=True)]
            for other, pairs in others.items()
        }
        rows += [row_of(f"ttft_{name}_vs_{other}", "ratio", of_runs) for other, of_runs in ratios.items()]
        if len(ratios) > 1:
            rows.append(row_of(f"ttft_{name}_vs_best", "ratio", list(map(max, zip(*ratios.values(), strict=True)))))
    return rows


def show_swarm(report: Report, rounds: Sequence[Round], as_json: bool) -> None:
    """Print to stdout: one JSON object, or a table with prediction and measurement."""
    if as_json:
        sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
        return
    value = {row.name: row.value for row in report.rows}
    table = Table(title=f"swarm on {report.machine}", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("policy", no_wrap=True)
    for name in ("hit ratio", "simulated", "TTFT p50", "simulated", "p90", "simulated", "p99 s", "simulated"):
        table.add_column(name, justify="right", no_wrap=True)
    for pair in rounds[0].pairs:
        prefix = "" if pair is rounds[0].pairs[0] else f"{pair.policy}_"
        names = [
            f"{kind}{name}" for name in ("hit_ratio", *(f"ttft_{p}_s" for p in _PERCENTILES)) for kind in ("", "sim_")
        ]
        table.add_row(pair.policy, *(f"{value[prefix + name]:.3f}" for name in names))
    console = Console(highlight=False)
    console.width = max(console.width, 104)
    console.print(table)
    own = rounds[0].pairs[0].policy
    versus = "".join(
        f", TTFT {name} {value[f'ttft_{name}_vs_best']:.2f} of the best other policy's"
        for name in ("p50", "p99")
        if f"ttft_{name}_vs_best" in value
    )
    console.print(
        f"{own}: {value['cached_over_bound']:.3f} of the bound {value['hit_bound']:.3f}{versus}\n"
        f"prediction off by {value['sim_error_hit']:.1%} of the hit ratio,"
        f" {value['sim_error_ttft_p50']:.1%} of TTFT p50, {value['sim_error_ttft_p99']:.1%} of p99\n"
        f"{value['requests']:.0f} requests a policy at {value['rate']:.2f}/s, {len(rounds)} runs, {value['failed']:.0f}"
        f" failed; round trips of {value['rtt_ms_min']:.1f} ms or more",
        soft_wrap=True,
    )
    if value["others_cores"] > MAX_OTHERS_CORES:
        console.print(
            f"{value['others_cores']:.2f} cores were busy with other things, of which the prediction knows nothing:"
            " measure again when they are idle",
            soft_wrap=True,
        )
