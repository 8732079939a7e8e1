"""``mycelia simulate --report``: one self-contained HTML file, with plots of every quantity."""

from collections.abc import Iterator
from importlib.resources import files
from operator import attrgetter

from jinja2 import Environment, StrictUndefined

from mycelia.bench.report.plots import NUM_STYLES, Bar, Curve, bars, curves
from mycelia.bench.simulate.simulate import SimulationReport
from mycelia.sim.outcome import QUANTILES
from mycelia.sim.policies import ORACLE, ORACLES, OWN

_LEAST_TTFT_S = 1e-3
"""Shorter times are drawn as this one: the axis is logarithmic."""
_PLOTS: tuple[tuple[str, str, str, str, dict[str, object]], ...] = (
    ("Slowest first tokens", "p99, seconds, logarithmic. Less is better.", "ttft_s.p99", "{:.2f} s", {"is_log": True}),
    ("Median first token", "p50, seconds, logarithmic. Less is better.", "ttft_s.p50", "{:.2f} s", {"is_log": True}),
    (
        "Found in caches",
        "Share of prompt tokens; the tick is the bound: one cache without limits.",
        "hit_ratio",
        "{:.3f}",
        {"origin": None},
    ),
    (
        "Load imbalance",
        "Utilisation of the busiest node / mean of all nodes; 1 is even.",
        "load_imbalance",
        "{:.2f}",
        {"origin": 1.0},
    ),
    (
        "Staleness",
        "Share of cached tokens that the chosen node was expected to hold and did not hold.",
        "stale_share",
        "{:.4f}",
        {},
    ),
    ("Digest traffic", "Bytes/s that a node receives.", "digest_bytes_per_s", "{:,.0f}", {}),
    ("Goodput", "Answers/s whose first token came within 2 s. More is better.", "goodput_2s", "{:.2f}", {}),
    ("Goodput, 5 s", "Answers/s whose first token came within 5 s. More is better.", "goodput_5s", "{:.2f}", {}),
)
"""Title, caption, quantity of a row, format of its value, and options of ``bars``."""


def page_of(report: SimulationReport, command: str) -> str:
    """The page as text. command: the command that made it."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(
        files("mycelia.bench.simulate").joinpath("simulation.html").read_text(encoding="utf-8")
    )
    styles = _styles(report)
    distribution = [
        Curve(
            row.policy,
            styles[row.policy],
            [(max(x, _LEAST_TTFT_S), y) for x, y in zip(row.ttft_quantiles_s, QUANTILES, strict=True)],
        )
        for row in report.rows
    ]
    return template.render(
        report=report,
        command=command,
        summary=summary_of(report),
        scenario={name: value for name, value in report.scenario.items() if value is not None},
        distribution=curves(distribution, "seconds to the first token", "share of prompts"),
        plots=list(_plots(report, styles)),
    )


def summary_of(report: SimulationReport) -> list[str]:
    """The conclusions from the numbers, a sentence for each."""
    by_name = {row.policy: row for row in report.rows}
    best = min(
        (row for row in report.rows if row.policy not in (OWN, *ORACLES)),
        key=lambda row: row.ttft_s.p99.value,
        default=None,
    )
    own = by_name.get(OWN)
    sentences = []
    if own is not None:
        share = own.hit_ratio.value / own.hit_bound.value if own.hit_bound.value else 1.0
        sentences.append(
            f"{OWN}: half of the first tokens within {own.ttft_s.p50.value:.2f} s, 99 % within"
            f" {own.ttft_s.p99.value:.2f} s; {own.hit_ratio.value:.1%} of prompt tokens were cached,"
            f" {share:.1%} of what one cache without limits would hold."
        )
    compared = next((one for one in report.paired if best is not None and one.policy == best.policy), None)
    if compared is not None and best is not None:
        ratio = compared.ttft_p99
        verdict = "less" if ratio.is_better else "more" if ratio.is_worse else "no clear difference"
        sentences.append(
            f"Best of the others by p99: {best.policy}, {best.ttft_s.p99.value:.2f} s. {OWN} / {best.policy}, seed by"
            f" seed: {ratio.value:.2f} (95 % interval {ratio.low:.2f} to {ratio.high:.2f}): {verdict}."
        )
    return sentences


def _styles(report: SimulationReport) -> dict[str, int]:
    """Policy -> number of its colour: the protocol's own policy has 0 and the oracle 1 in every report."""
    others = [row.policy for row in report.rows if row.policy not in (OWN, ORACLE)]
    return {OWN: 0, ORACLE: 1} | {policy: 2 + place % (NUM_STYLES - 2) for place, policy in enumerate(others)}


def _plots(report: SimulationReport, styles: dict[str, int]) -> Iterator[dict[str, str]]:
    for title, caption, quantity, form, options in _PLOTS:
        rows = []
        for row in report.rows:
            value = attrgetter(quantity)(row)
            mark = row.hit_bound.value if quantity == "hit_ratio" else None
            rows.append(
                Bar(row.policy, styles[row.policy], value.value, value.min, value.max, mark, form.format(value.value))
            )
        yield {"title": title, "caption": caption.format_map(report.scenario), "svg": bars(rows, title, **options)}  # type: ignore[arg-type]
