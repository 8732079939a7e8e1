"""``mycelia simulate --report``: one HTML file that needs no other, with plots of every quantity."""

from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from mycelia.bench.report.intervals import Measured
from mycelia.bench.report.plots import Bar, Curve, bars, curves
from mycelia.bench.simulate.simulate import PolicyRow, SimulationReport
from mycelia.sim.outcome import QUANTILES
from mycelia.sim.policies import ORACLE, OWN

_NUM_STYLES = 12
"""Colours in simulation.html."""
_LEAST_TTFT_S = 1e-3
"""Shorter ones are drawn as this: the axis is logarithmic."""


def page_of(report: SimulationReport, command: str) -> str:
    """The page as text. ``command``: what made it."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(
        files("mycelia.bench.simulate").joinpath("simulation.html").read_text(encoding="utf-8")
    )
    styles = _styles(report)
    return template.render(
        report=report,
        command=command,
        summary=summary_of(report),
        scenario={name: value for name, value in report.scenario.items() if value is not None},
        styles=styles,
        distribution=curves(
            [
                Curve(
                    row.policy,
                    styles[row.policy],
                    [(max(x, _LEAST_TTFT_S), y) for x, y in zip(row.ttft_quantiles_s, QUANTILES, strict=True)],
                )
                for row in report.rows
            ],
            "seconds to the first token",
            "share of prompts",
        ),
        plots=_plots(report, styles),
    )


def summary_of(report: SimulationReport) -> list[str]:
    """What the numbers say, a sentence each."""
    by_name = {row.policy: row for row in report.rows}
    best = min(
        (row for row in report.rows if row.policy not in (OWN, ORACLE)),
        key=lambda row: row.ttft_s.p99.value,
        default=None,
    )
    own = by_name.get(OWN)
    said = []
    if own is not None:
        share = own.hit_ratio.value / own.hit_bound.value if own.hit_bound.value else 1.0
        said.append(
            f"{OWN}: half of the first tokens within {own.ttft_s.p50.value:.2f} s, 99 % within"
            f" {own.ttft_s.p99.value:.2f} s; {own.hit_ratio.value:.1%} of prompt tokens were cached,"
            f" {share:.1%} of what one cache without limits would hold."
        )
    compared = next((one for one in report.paired if best is not None and one.policy == best.policy), None)
    if compared is not None and best is not None:
        ratio = compared.ttft_p99
        verdict = "less" if ratio.is_better else "more" if ratio.is_worse else "no clear difference"
        said.append(
            f"Best of the others by p99: {best.policy}, {best.ttft_s.p99.value:.2f} s. {OWN} / {best.policy}, seed by"
            f" seed: {ratio.value:.2f} (95 % interval {ratio.low:.2f} to {ratio.high:.2f}): {verdict}."
        )
    return said


def _styles(report: SimulationReport) -> dict[str, int]:
    """The protocol's own rule is 0 and the oracle 1, whatever else there is."""
    others = [row.policy for row in report.rows if row.policy not in (OWN, ORACLE)]
    return {OWN: 0, ORACLE: 1} | {policy: 2 + place % (_NUM_STYLES - 2) for place, policy in enumerate(others)}


def _plots(report: SimulationReport, styles: dict[str, int]) -> list[dict[str, object]]:
    rows = report.rows

    def bar(row: PolicyRow, value: Measured, text: str, mark: float | None = None) -> Bar:
        return Bar(row.policy, styles[row.policy], value.value, value.min, value.max, mark, text)

    hits = [bar(row, row.hit_ratio, f"{row.hit_ratio.value:.3f}", row.hit_bound.value) for row in rows]
    tails = [bar(row, row.ttft_s.p99, f"{row.ttft_s.p99.value:.2f} s") for row in rows]
    medians = [bar(row, row.ttft_s.p50, f"{row.ttft_s.p50.value:.2f} s") for row in rows]
    loads = [bar(row, row.load_imbalance, f"{row.load_imbalance.value:.2f}") for row in rows]
    stale = [bar(row, row.stale_share, f"{row.stale_share.value:.4f}") for row in rows]
    traffic = [bar(row, row.digest_bytes_per_s, f"{row.digest_bytes_per_s.value:,.0f}") for row in rows]
    goodput = [bar(row, row.goodput, f"{row.goodput.value:.2f}") for row in rows]
    return [
        _figure("Slowest first tokens", "p99, seconds, logarithmic. Less is better.", bars(tails, "p99", is_log=True)),
        _figure("Median first token", "p50, seconds, logarithmic. Less is better.", bars(medians, "p50", is_log=True)),
        _figure("Found in caches", "Share of prompt tokens; the tick is the bound: one cache without limits.",
                bars(hits, "hit ratio", origin=None)),
        _figure("Load imbalance", "Share of its capacity that the busiest node used / mean; 1 is even.",
                bars(loads, "load imbalance", origin=1.0)),
        _figure("Staleness", "Of the cached tokens that a node was chosen for, those it did not hold.",
                bars(stale, "stale share")),
        _figure("Digest traffic", "Bytes/s received by a node.", bars(traffic, "bytes per second")),
        _figure("Goodput", f"Answers/s whose first token came within {report.scenario.get('objective_s')} s. More is"
                " better.", bars(goodput, "goodput")),
    ]  # fmt: skip


def _figure(title: str, says: str, svg: str) -> dict[str, object]:
    return {"title": title, "says": says, "svg": svg}
