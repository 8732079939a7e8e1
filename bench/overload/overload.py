"""``mycelia bench overload``: a swarm that gets up to three times the prompts it can answer, simulated or real.

The behaviour of users is described in ``sim/overload.py``; for real nodes, in ``real.py``.
"""

from collections.abc import Sequence
from dataclasses import fields

from mycelia.bench.plans import CAPACITY, OverloadBench
from mycelia.bench.report.report import Progress, Report, Row, report_of, row_of
from mycelia.bench.report.runs import no_garbage_collection
from mycelia.proto.wire.errors import LocalError
from mycelia.sim.overload import OverloadOutcome, overload
from mycelia.sim.policies import OWN
from mycelia.sim.scenario import Scenario

_UNITS = {
    "offered": "prompts/s that come for the first time",
    "tries": "prompts/s, again or not",
    "answered": "requests/s",
    "answered_tokens": "tokens/s",
    "refused_share": "of the tries",
    "unfinished": "requests without an end",
    "failed": "requests, for another reason",
    "given_up": "users/s without an answer",
    "num_told": "knocking users that were told a time",
    "told_true": "of those, within a factor of 2",
    "told_p50_s": "s, Retry-After",
    "num_on_time": "tries that came when told",
    "kept": "of those, not refused",
    "most_waiting": "requests at one engine",
    "most_in_flight": "requests at one entry",
    "ttft_p50_s": "s, of accepted",
    "ttft_p99_s": "s, of accepted",
    "total_p99_s": "s, of accepted",
}
_SHARES_OF = {"told_true": "num_told", "kept": "num_on_time"}
"""Row of a share -> its denominator; the row is left out where that is 0."""
_COMPARED = ("ttft_p50_s", "ttft_p99_s", "total_p99_s")


def bench_overload(bench: OverloadBench) -> Report:
    """Every load on every seed. Raises LocalError when nothing was answered."""
    bench = bench.filled()
    rows: list[Row] = []
    with Progress(len(bench.loads) * bench.seeds * len(bench.kinds)) as progress:
        for kind in bench.kinds:
            found: dict[float, list[OverloadOutcome]] = {}
            for load in bench.loads:
                scenario = Scenario(
                    load=load,
                    num_peers=bench.num_nodes,
                    warm_s=40.0,
                    measured_s=bench.seconds,
                    tail_s=90.0 if load > CAPACITY else 0.0,
                    drain_s=120.0,
                )
                for seed in range(1, bench.seeds + 1):
                    progress.step(f"{kind}, load {load:g}, seed {seed}")
                    with no_garbage_collection():
                        outcome = overload(scenario, kind == "retry", OWN, seed, lambda what: None)
                    found.setdefault(load, []).append(outcome)
            rows += rows_of(f"{kind}_", found)
    return report_of("overload", rows)


def rows_of(prefix: str, found: dict[float, list[OverloadOutcome]]) -> list[Row]:
    """The rows of one kind of client. found: outcomes by load, by seed. Raises LocalError if nothing was answered."""
    runs = range(len(next(iter(found.values()))))
    peaks = [max(outcomes[run].answered for outcomes in found.values()) for run in runs]
    token_peaks = [max(outcomes[run].answered_tokens for outcomes in found.values()) for run in runs]
    if not min(peaks, default=0.0):
        raise LocalError("nothing was answered")
    rows: list[Row] = []
    for load, outcomes in found.items():
        name = f"{prefix}{load:g}x_"
        for one in fields(OverloadOutcome):
            known = [run for run in outcomes if one.name not in _SHARES_OF or getattr(run, _SHARES_OF[one.name])]
            if known:
                rows.append(row_of(name + one.name, _UNITS[one.name], [getattr(run, one.name) for run in known]))
        rows.append(row_of(name + "goodput", "of its peak", _ratios([run.answered for run in outcomes], peaks)))
        tokens = [run.answered_tokens for run in outcomes]
        rows.append(row_of(name + "goodput_tokens", "of its peak", _ratios(tokens, token_peaks)))
        for quantity in _COMPARED if CAPACITY in found else ():
            at_capacity = [getattr(run, quantity) for run in found[CAPACITY]]
            ratios = _ratios([getattr(run, quantity) for run in outcomes], at_capacity)
            rows.append(row_of(name + quantity.removesuffix("_s") + "_ratio", "of that at 1x", ratios))
    return rows


def _ratios(values: Sequence[float], of: Sequence[float]) -> list[float]:
    return [value / max(other, 1e-9) for value, other in zip(values, of, strict=True)]
