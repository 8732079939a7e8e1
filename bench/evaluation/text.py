"""``docs/evaluation.md`` from the outcomes."""

from collections.abc import Sequence
from dataclasses import dataclass

from mycelia.bench.evaluation.bars import Measured, Result, bars, losses, ratio_of
from mycelia.bench.evaluation.plan import (
    ABLATION,
    CHURN,
    FRESHNESS,
    IMBALANCE,
    LIARS,
    NO_SHARING,
    SIZES,
    SWEEP,
    TALKS,
    command_of,
)
from mycelia.bench.report.intervals import Ratio
from mycelia.sim.outcome import Outcome
from mycelia.sim.policies import OWN

_MAX_LOSSES = 40
_TITLES = {
    SIZES: "Swarms of other sizes",
    IMBALANCE: "Balance",
    FRESHNESS: "Old digests, old load",
    NO_SHARING: "Nothing shared",
    LIARS: "Liars",
    CHURN: "Nodes that come and go",
    TALKS: "Conversations and hotspots",
    ABLATION: "Each term of the cost left out",
}
_SAYS = {
    SIZES: "The modelled or measured internet, Zipf 1.1, load 0.7.",
    IMBALANCE: "Zipf 1.5, load 0.7. Load is the utilisation of the busiest node / the mean.",
    FRESHNESS: "Mycelia alone. The first row is as fresh as anything is told.",
    NO_SHARING: "Prompts as long as those of MMLU that share nothing: caches are of no use, and must not harm.",
    LIARS: "Liars tell of every prefix anybody stores, of an idle engine with 64 slots and 200,000 tokens/s, and with"
    " each answer that all of the prompt was cached. Their machines are as others', they answer, and no prompts enter"
    " at them. Honest swarms have their prompts enter at the same nodes.",
    CHURN: "Prompts enter at a third of the nodes; the others stay for Weibull-distributed sessions with this median"
    " and come back after a minute with an empty cache. Load 0.5. Of 5 minutes with sessions of 20 the effect is"
    " small.",
    TALKS: "Multi-turn is synthetic; conversation is Mooncake's trace, and hotspot the same with a few very popular"
    " prefixes mixed in: its first requests, stretched to a load of 0.7.",
    ABLATION: "`mycelia-no-X`: without the term X, see `sim/ablations.py`. The last column is the whole rule / without:"
    " below 1 the term helps.",
}


@dataclass(frozen=True)
class Made:
    """How the numbers came about."""

    command: str
    code_version: str
    num_seeds: int
    num_peers: int
    internet: str
    scale: str
    """full, short or quick."""
    with_traces: bool


def page_of(everything: Sequence[Measured], made: Made) -> str:
    """The whole document. ``everything`` in the order of the plan."""
    parts = [_head(made), _bars(everything), _losses(everything), _sweep(everything, made)]
    for section, title in _TITLES.items():
        cells = [one for one in everything if one.cell.section == section]
        if cells:
            parts.append(f"## {title}\n\n{_SAYS[section]}\n\n" + "\n\n".join(_cell(one, made) for one in cells))
    return "\n\n".join(filter(None, parts)) + "\n"


def _head(made: Made) -> str:
    scale = {
        "quick": "\n**A quick run, to see that it works: short, small and of no weight.**\n",
        "short": "\nThe short version: some cells of the whole sweep, and runs of less than a minute. Without `--short`"
        " it takes some hours.\n",
    }.get(made.scale, "")
    traces = "" if made.with_traces else " Measured traces were not given (`--data DIR`), so they are left out."
    return f"""# Evaluation
{scale}
Simulated, every number; made by

    {made.command}

with {made.num_seeds} seeds (1 to {made.num_seeds}), code `{made.code_version}` (a hash of `proto/` and `sim/`). Equal
code, equal numbers. "internet" is {made.internet}.{traces} Each table has the command that gives one of its cells.

- **Nodes** run the protocol itself, in virtual time. Their machines differ: prefill 300 to 3,000 tokens/s, decode 10 to
  60, 1 to 8 slots, caches of 38,400 to 153,600 tokens. {made.num_peers} of them, digests 30 s and load 1 s old, unless
  said.
- **Load** is prompts a second / the swarm's capacity: what its engines could answer if every prompt found what one
  cache without limits holds and all were equally busy (`sim/capacity.py`). No rule reaches a load of 1.
- **Other rules** are re-implementations on the same peer-to-peer overlay, each node choosing by what it was told
  (`sim/policies.py`): their orderings say more than their absolutes. The oracle is Mycelia's cost without its
  observations, computed from the true state of every engine. It is no bound: it does not look ahead.
- **Ratios** are of runs on equal seeds, which share machines, homes, prompts and times of arrival: geometric mean, and
  in brackets its 95 % interval (Student's t of the logarithms). "By more than noise" means that the interval does not
  hold 1. With three seeds that is strict on whoever claims a difference, so it is also said where all seeds agree.
- **The best baseline of a cell** is chosen after the fact, for each cell and quantity anew. No system could do that.
- TTFT in seconds, p99 over the prompts of one run, means over the seeds. Whoever is overloaded has waits that grow as
  long as the run lasts: those numbers say no more than that. Prompts that are unanswered two minutes after the measured
  time (ten in slow sections) count with the time they have waited. Hit ratios are those of answered prompts, so they
  flatter whoever leaves many unanswered."""


def _bars(everything: Sequence[Measured]) -> str:
    rows = [[bar.what, bar.bar, bar.measured, "met" if bar.is_met else "**missed**"] for bar in bars(everything)]
    return "## Bars\n\n" + _table(["What", "Bar", "Measured", ""], rows)


def _losses(everything: Sequence[Measured]) -> str:
    found = losses(everything)
    clear = [loss for loss in found if loss[3].is_worse]
    says = (
        f"Wherever the best baseline's p99 or p50 is lower on average: {len(found)} places, in {len(clear)} by more"
        " than noise (bold). Bars that were missed are in the table above."
    )
    rows = []
    for one, quantity, best, ratio in sorted(found, key=lambda loss: not loss[3].is_worse)[:_MAX_LOSSES]:
        told = f"**{_told(ratio)}**" if ratio.is_worse else _told(ratio)
        values = f"{one.mean(quantity):.2f} / {one.mean(quantity, best):.2f}"
        rows.append([one.name, quantity.split("_")[1], best, values, told])
    if len(found) > len(rows):
        says += f" The {len(rows)} largest are shown."
    table = "\n\n" + _table(["Where", "TTFT", "Better", "s", "mycelia / that"], rows) if rows else ""
    return f"## Where Mycelia does not win\n\n{says}{table}"


def _sweep(everything: Sequence[Measured], made: Made) -> str:
    cells = [one for one in everything if one.cell.section == SWEEP]
    if not cells:
        return ""
    parts = [
        "## The sweep",
        """\
p50 / p99 TTFT in seconds. The last columns: Mycelia's p99 / that of the best baseline of the row, and Mycelia's share
of tokens found in caches / the bound.""",
    ]
    for delay in dict.fromkeys(one.cell.label("rtt") for one in cells):
        of_delay = [one for one in cells if one.cell.label("rtt") == delay]
        policies = list(of_delay[0].result)
        rows = []
        for one in of_delay:
            best = one.best_baseline("ttft_p99_s")
            ratio = _told(one.ratio("ttft_p99_s", best)) if best else ""
            hits = f"{one.mean('hit_ratio'):.3f} / {one.mean('hit_bound'):.3f}"
            waits = [f"{_s(one.mean('ttft_p50_s', name))} / {_s(one.mean('ttft_p99_s', name))}" for name in policies]
            rows.append([one.cell.label("zipf"), one.cell.label("load"), *waits, ratio, hits])
        told = f"{delay} ms between all" if delay.isdigit() else f"the {delay}"
        parts.append(f"### Round trips: {told}")
        parts.append(_table(["Zipf", "load", *policies, "p99 ratio", "hit / bound"], rows))
    parts.append(f"    {command_of(cells[-1].cell, made.num_seeds)}")
    for title, quantity in (("Hit ratio", "hit_ratio"), ("Load imbalance", "load_imbalance")):
        parts += [f"### {title}", _means(cells, quantity)]
    return "\n\n".join(parts)


def _means(cells: Sequence[Measured], quantity: str) -> str:
    policies = list(cells[0].result)
    rows = [
        [*(value for _, value in one.cell.labels), *(f"{one.mean(quantity, name):.3f}" for name in policies)]
        for one in cells
    ]
    return _table([*(name for name, _ in cells[0].cell.labels), *policies], rows)


def _cell(one: Measured, made: Made) -> str:
    title = ", ".join(f"{name} {value}" for name, value in one.cell.labels)
    rows = [_row(policy, one.result) for policy in one.result]
    names = ["policy", "hit / bound", "p50", "p90", "p99 (seeds)", "load", "stale", "digest B/s", "goodput/s"]
    if any(outcome.num_failed for of_seeds in one.result.values() for outcome in of_seeds):
        names.append("unanswered")
        shares = (one.mean("num_failed", policy) / one.mean("num_requests", policy) for policy in one.result)
        rows = [[*row, f"{share:.1%}"] for row, share in zip(rows, shares, strict=True)]
    if one.cell.scenario.liars:
        names.append("by liars")
        rows = [[*row, f"{one.mean('liar_share', policy):.2f}"] for row, policy in zip(rows, one.result, strict=True)]
    if len(one.result) > 1:
        names.append("p99 of mycelia / this")
        rows = [[*row, _against(policy, one.result)] for row, policy in zip(rows, one.result, strict=True)]
    rate = f"{one.mean('rate'):.1f} prompts/s"
    return "\n\n".join(
        [
            f"**{title}** ({rate})" if title else f"({rate})",
            _table(names, rows),
            f"    {command_of(one.cell, made.num_seeds)}",
        ]
    )


def _row(policy: str, result: Result) -> list[str]:
    of_seeds: Sequence[Outcome] = result[policy]

    def mean(quantity: str) -> float:
        return float(sum(getattr(one, quantity) for one in of_seeds)) / len(of_seeds)

    tails = [one.ttft_p99_s for one in of_seeds]
    return [
        policy,
        f"{mean('hit_ratio'):.3f} / {mean('hit_bound'):.3f}",
        _s(mean("ttft_p50_s")),
        _s(mean("ttft_p90_s")),
        f"{_s(mean('ttft_p99_s'))} ({_s(min(tails))}-{_s(max(tails))})",
        f"{mean('load_imbalance'):.2f}",
        f"{mean('stale_share'):.4f}",
        f"{mean('digest_bytes_per_s'):,.0f}",
        f"{mean('goodput'):.2f}",
    ]


def _against(policy: str, result: Result) -> str:
    return "" if policy == OWN else _told(ratio_of("ttft_p99_s", result[OWN], result[policy]))


def _told(ratio: Ratio) -> str:
    high = f"{ratio.high:.2f}" if ratio.high < 1_000 else "any"
    return f"{ratio.value:.2f} ({ratio.low:.2f}-{high})"


def _s(seconds: float) -> str:
    return f"{seconds:.2f}" if seconds < 10 else f"{seconds:.0f}"


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
