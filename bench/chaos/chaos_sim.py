"""``mycelia bench chaos-sim``: a simulated swarm of volunteers under every kind of fault, see ``sim/faults.py``."""

import gc
import itertools

from mycelia.bench.chaos.chaos import compare
from mycelia.bench.plans import ChaosSimBench
from mycelia.bench.report.report import Progress, Report, Row, report_of, rows_of
from mycelia.bench.report.runs import no_garbage_collection
from mycelia.proto.wire.errors import LocalError
from mycelia.sim.chaos import ChaosOutcome, ChaosScenario, chaos
from mycelia.sim.faults import FAULTS, FaultPlan
from mycelia.sim.outcome import percentile

_COLLECTED_STEPS = 10


def bench_chaos_sim(bench: ChaosSimBench) -> Report:
    """Run the benchmark once. Raises LocalError when no prompt was asked."""
    plan = FaultPlan(bench.faults or FAULTS, bench.session_s, bench.partition_every_s, bench.partition_s)
    scenario = ChaosScenario(bench.num_peers, bench.loss, bench.length_s, bench.rate, bench.workload, plan)
    steps = itertools.count(1)

    def step(what: str) -> None:
        progress.step(what)
        if not next(steps) % _COLLECTED_STEPS:
            gc.collect()  # (each node that stopped takes some megabytes)

    with Progress(scenario.num_steps) as progress:
        with no_garbage_collection():
            outcome = chaos(scenario, bench.seed, step)
        for reason, count in outcome.failures.items():
            progress.show(f"{count} lost: {reason}")
    if not outcome.answers:
        raise LocalError("no prompt was asked: use more --minutes, or a higher --rate")
    return report_of("chaos-sim", _rows(outcome))


def _rows(outcome: ChaosOutcome) -> list[Row]:
    answers = outcome.answers
    finished = [answer for answer in answers if answer.is_finished]
    differences = [compare(answer.prompt.answer, answer.tokens) for answer in finished if not answer.is_exact]
    moved = [answer for answer in answers if answer.num_moves or answer.num_rejoins]
    gaps_s = sorted(answer.gap_s for answer in moved if answer.tokens) or [0.0]
    ttfts_s = sorted(answer.first_s - answer.asked_s for answer in answers if answer.tokens) or [0.0]
    rows: list[tuple[str, str, float]] = [
        ("requests", "requests", len(answers)),
        ("lost_requests", "requests", len(answers) - len(finished)),
        ("lost_tokens", "tokens", sum(one.num_lost for one in differences)),
        ("repeated_tokens", "tokens", sum(one.num_repeated for one in differences)),
        ("wrong_tokens", "tokens", sum(one.num_wrong for one in differences)),
        ("moved", "requests", sum(1 for answer in answers if answer.num_moves)),
        ("rejoined", "requests", sum(1 for answer in answers if answer.num_rejoins)),
        ("turned_away", "requests", sum(1 for answer in answers if answer.num_turned_away)),
        ("retried", "requests", sum(1 for answer in answers if answer.num_retries)),
        ("gap_s_p50", "s", percentile(gaps_s, 0.5)),
        ("gap_s_p99", "s", percentile(gaps_s, 0.99)),
        ("ttft_s_p50", "s", percentile(ttfts_s, 0.5)),
        ("ttft_s_p99", "s", percentile(ttfts_s, 0.99)),
        ("faults", "faults", outcome.faults.total()),
    ]
    rows += [(f"faults_{kind}", "faults", outcome.faults[kind]) for kind in FAULTS if outcome.faults[kind]]
    return rows_of(rows)
