"""Plots as SVG, drawn by matplotlib, which is in the extra ``bench``.

``curves`` and ``bars`` are parts of a page with a light or dark theme: their colours are the page's CSS variables
``--s0``, ``--s1``, ... for series, ``--ink``, ``--soft`` and ``--edge``. ``lines`` makes a separate file.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

_WIDTH, _HEIGHT, _ROW, _FRAME = 460, 300, 22, 48
_DPI = 72
"""With it, a point is a unit of the SVG."""
NUM_STYLES = 12
"""Number of colours for series on a page."""
_VARIABLES = {f"#ab{number:02x}cd": f"var(--s{number})" for number in range(NUM_STYLES)}
_INK, _SOFT, _EDGE = "#abcd01", "#abcd02", "#abcd03"
_VARIABLES |= {_INK: "var(--ink)", _SOFT: "var(--soft)", _EDGE: "var(--edge)"}
"""matplotlib knows no CSS, so each colour on the left is replaced by the variable on the right."""
_STYLES = list(_VARIABLES)[:NUM_STYLES]
_DASHES = ("solid", (0, (5, 3)), (0, (9, 2)), (0, (2, 2)))
_RC: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mycelia",
    "font.size": 11,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.spines.bottom": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "xtick.bottom": False,
    "ytick.left": False,
}
_THEMED = _RC | dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), _SOFT)
_THEMED |= {"grid.color": _EDGE}


@dataclass(frozen=True)
class Curve:
    """One series. style: number of its colour on a page."""

    name: str
    style: int
    points: Sequence[tuple[float, float]]
    """(x, y), x never falling."""


@dataclass(frozen=True)
class Bar:
    """One name's value between the least and the largest, and a mark to compare with."""

    name: str
    style: int
    value: float
    low: float
    high: float
    mark: float | None = None
    text: str = ""


def curves(series: Sequence[Curve], x_label: str, y_label: str) -> Markup:
    """Shares from 0 to 1 over a logarithmic x. Raises ValueError without a point."""
    if not any(one.points for one in series):
        raise ValueError("a plot without a point")
    with rc_context(_THEMED):
        figure, axes = _figure(_HEIGHT + 16 * ((len(series) + 2) // 3))
        for one in series:
            x, y = zip(*one.points, strict=True)
            dashes = _DASHES[one.style if one.style < 2 else 2 + (one.style + 1) % 3 % 2]
            width, order = (3.0, 3) if not one.style else (1.6, 2)  # (the first lies on top)
            axes.plot(x, y, color=_STYLES[one.style], linestyle=dashes, linewidth=width, zorder=order, label=one.name)
        _make_logarithmic(axes, axes.xaxis)
        axes.set(xlabel=x_label, ylim=(0, 1))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.0%}"))
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncol=3)
        return _themed(_svg(figure), f"{y_label} over {x_label}")


def bars(rows: Sequence[Bar], title: str, is_log: bool = False, origin: float | None = 0.0) -> Markup:
    """A row for each name: a dot, a line from the least to the largest, a tick at the mark. is_log: values above 0
    only. origin: start of a linear axis; None: near the least. Raises ValueError without a row."""
    shown = [value for row in rows for value in (row.low, row.high, row.mark) if value is not None]
    if not shown:
        raise ValueError("a plot without a row")
    floor = min((value for value in shown if value > 0), default=1.0) if is_log else -float("inf")
    with rc_context(_THEMED):
        figure, axes = _figure(_FRAME + _ROW * len(rows))
        for place, row in enumerate(rows):
            colour, dashes = _STYLES[row.style], _DASHES[int(row.style == 1)]
            axes.hlines(place, max(row.low, floor), max(row.high, floor), color=colour, linestyle=dashes, linewidth=2)
            axes.plot(max(row.value, floor), place, "o", color=colour, markersize=7, clip_on=False)
            if row.mark is not None:
                axes.plot(max(row.mark, floor), place, "|", color=_INK, markersize=15, markeredgewidth=2)
            axes.text(1.01, place, row.text, transform=axes.get_yaxis_transform(), va="center")
        axes.set_yticks(range(len(rows)), [row.name for row in rows])
        for label, row in zip(axes.get_yticklabels(), rows, strict=True):
            label.set(color=_STYLES[row.style], fontweight="normal" if row.style else "bold")
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        if is_log:
            _make_logarithmic(axes, axes.xaxis)
        elif origin is not None:
            axes.set_xlim(left=min(origin, *shown))
        return _themed(_svg(figure), title)


def lines(series: Sequence[Curve], x_label: str, y_label: str) -> str:
    """An SVG file: values from 0 over a linear x. Raises ValueError without a point."""
    if not any(one.points for one in series):
        raise ValueError("a plot without a point")
    with rc_context(_RC):
        figure, axes = _figure(_HEIGHT)
        for one in series:
            axes.plot(*zip(*one.points, strict=True), label=one.name)
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.set_ylim(bottom=0)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        return _svg(figure)


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH / _DPI, height / _DPI), dpi=_DPI, layout="constrained")
    return figure, figure.add_subplot()


def _make_logarithmic(axes: Axes, axis: Axis) -> None:
    axes.set_xscale("log")
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _svg(figure: Figure) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return file.getvalue()


def _themed(svg: str, label: str) -> Markup:
    """``svg`` as an element of a page, without a background of its own."""
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    element = svg[svg.index("<svg ") :].replace("#ffffff", "none")
    return Markup('<svg role="img" aria-label="{}" ').format(label) + Markup(element.removeprefix("<svg "))  # noqa: S704
