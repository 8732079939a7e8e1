"""Writes ``docs/evaluation.md``: the template ``evaluation.md.j2`` with the numbers of the outcomes."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from mycelia.bench.evaluation.bars import Measured, bars, losses
from mycelia.bench.evaluation.plan import SECTIONS, SWEEP, command_of

_MAX_LOSSES = 40
_TEMPLATE = files("mycelia.bench.evaluation").joinpath("evaluation.md.j2")


@dataclass(frozen=True)
class Made:
    command: str
    code_version: str
    num_seeds: int
    num_peers: int
    internet: str
    scale: str
    """full, short or quick."""
    with_traces: bool


def page_of(everything: Sequence[Measured], made: Made) -> str:
    """The whole document. everything: in the order of the plan."""
    sections = {name: [one for one in everything if one.cell.section == name] for name in SECTIONS}
    delays: dict[str, list[Measured]] = {}
    for one in sections[SWEEP]:
        delays.setdefault(one.cell.label("rtt"), []).append(one)
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)  # noqa: S701  Markdown
    environment.filters["seconds"] = _seconds
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        made=made,
        bars=bars(everything),
        losses=losses(everything),
        max_losses=_MAX_LOSSES,
        sections=sections,
        delays=delays,
        command_of=command_of,
    )


def _seconds(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"
