"""Two plots as inline SVG: curves over a logarithmic axis, and a value with its interval for each of a few names.

Colours come from the page's style sheet: classes ``s0``, ``s1``, ... for series, ``axis`` and ``grid`` for the rest, so
that a page can be light or dark. All text is escaped.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

_WIDTH, _HEIGHT = 460, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 14, 12, 40
_ROW = 22
_LETTER = 6.8
"""Width, about: the names beside rows get as much as the longest of them needs."""
_TEXT = 12
"""Height of a line of text."""
_FILE_COLOURS = ("#0b6e99", "#d9730d", "#0f7b6c", "#ad1a72", "#6940a5", "#937264", "#e03e3e", "#787774")
_VALUES = 62
"""Of the values beside them."""


@dataclass(frozen=True)
class Curve:
    """One series. ``style``: number of its class."""

    name: str
    style: int
    points: Sequence[tuple[float, float]]
    """(x > 0, share from 0 to 1), x never falling."""


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
    """The value as it is to be read."""


def curves(series: Sequence[Curve], x_label: str, y_label: str) -> Markup:
    """Shares over a logarithmic x. Raises ValueError without a point."""
    values = [x for one in series for x, _ in one.points]
    low, high = min(values), max(values)
    low, high = low / 1.1, max(high, low * 2) * 1.1
    span = math.log(high / low)

    def x_of(value: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * math.log(value / low) / span

    def y_of(share: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - share)

    parts = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(_line(_LEFT, y_of(share), _WIDTH - _RIGHT, y_of(share), "grid"))
        parts.append(_text(_LEFT - 5, y_of(share) + 4, f"{share:.0%}", "end"))
    for tick in log_ticks(low, high):
        parts.append(_line(x_of(tick), _TOP, x_of(tick), _HEIGHT - _BOTTOM, "grid"))
        parts.append(_text(x_of(tick), _HEIGHT - _BOTTOM + 15, f"{tick:g}", "middle"))
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 6, x_label, "middle"))
    for one in sorted(series, key=lambda curve: -curve.style):  # the first lies on top
        path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in one.points)
        title = Markup("<title>{}</title>").format(one.name)
        parts.append(Markup('<polyline class="line s{}" points="{}">{}</polyline>').format(one.style, path, title))
    return _svg(_HEIGHT, f"{y_label} over {x_label}", parts)


@dataclass(frozen=True)
class Series:
    """One line. ``style``: number of its class."""

    name: str
    style: int
    points: Sequence[tuple[float, float]]
    """x never falling."""


def lines(series: Sequence[Series], x_label: str, y_label: str) -> Markup:
    """Values from 0 over a linear x, each line with its name at its end. Raises ValueError without a point."""
    xs = [x for one in series for x, _ in one.points]
    low, high = min(xs), max(max(xs), min(xs) + 1e-9)
    top = 1.1 * max(max(y for one in series for _, y in one.points), 1e-9)
    right = _WIDTH - _RIGHT - _LETTER * max(len(one.name) for one in series)

    def x_of(x: float) -> float:
        return _LEFT + (right - _LEFT) * (x - low) / (high - low)

    def y_of(y: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - y / top)

    parts = []
    for tick in ticks(0.0, top):
        parts.append(_line(_LEFT, y_of(tick), right, y_of(tick), "grid"))
        parts.append(_text(_LEFT - 5, y_of(tick) + 4, f"{tick:g}", "end"))
    parts += [_text(x_of(tick), _HEIGHT - _BOTTOM + 15, f"{tick:g}", "middle") for tick in ticks(low, high)]
    parts.append(_text((_LEFT + right) / 2, _HEIGHT - 6, f"{x_label}; {y_label}", "middle"))
    for one in series:
        path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in one.points)
        parts.append(Markup('<polyline class="line s{}" points="{}"/>').format(one.style, path))
    below = -math.inf
    for one in sorted(series, key=lambda line: y_of(line.points[-1][1])):  # (names must not lie on each other)
        below = max(y_of(one.points[-1][1]) + 4, below + _TEXT)
        parts.append(_text(right + 4, below, one.name, "start", f"axis s{one.style}"))
    return _svg(_HEIGHT, f"{y_label} over {x_label}", parts)


def svg_file(plot: Markup) -> str:
    """``plot`` as a file of its own, with the colours that a page would give it."""
    styles = "".join(f".s{number}{{stroke:{colour};fill:{colour}}}" for number, colour in enumerate(_FILE_COLOURS))
    sheet = (
        "svg{background:#fff}text{font:11px sans-serif;stroke:none}.axis{fill:#555}"
        ".grid{stroke:#ddd}.line{stroke-width:1.5}polyline.line{fill:none !important}" + styles
    )
    opening = '<svg xmlns="http://www.w3.org/2000/svg" '
    return str(plot).replace("<svg ", opening, 1).replace(">", f"><style>{sheet}text{{stroke:none}}</style>", 1) + "\n"


def bars(rows: Sequence[Bar], title: str, is_log: bool = False, origin: float | None = 0.0) -> Markup:
    """A row a name: a dot, a line from the least to the largest, a tick at its mark. ``is_log``: values above 0 only.
    ``origin``: where the axis begins otherwise; None: near the least. Raises ValueError without a row."""
    shown = [value for row in rows for value in (row.low, row.high, row.mark) if value is not None]
    low, high = min(shown), max(shown)
    if is_log:
        floor = min((value for value in shown if value > 0), default=1.0) / 1.2
        low, high = floor, max(high, floor * 2) * 1.05
    else:
        low = low - 0.1 * (high - low) if origin is None else min(origin, low)
        high = high + 0.05 * (high - low) if high > low else low + 1.0
    left, right = 14 + _LETTER * max(len(row.name) for row in rows), _WIDTH - _VALUES

    def x_of(value: float) -> float:
        if is_log:
            return left + (right - left) * math.log(max(value, low) / low) / math.log(high / low)
        return left + (right - left) * (value - low) / (high - low)

    bottom = _TOP + _ROW * len(rows)
    parts = []
    for tick in log_ticks(low, high) if is_log else ticks(low, high):
        parts.append(_line(x_of(tick), _TOP, x_of(tick), bottom, "grid"))
        parts.append(_text(x_of(tick), bottom + 15, f"{tick:g}", "middle"))
    for place, row in enumerate(rows):
        y = _TOP + _ROW * (place + 0.5)
        parts.append(_text(left - 8, y + 4, row.name, "end", f"name s{row.style}"))
        parts.append(_line(x_of(row.low), y, x_of(row.high), y, f"whisker s{row.style}"))
        parts.append(
            Markup('<circle class="dot s{}" cx="{:.1f}" cy="{}" r="4"/>').format(row.style, x_of(row.value), y)
        )
        if row.mark is not None:
            parts.append(_line(x_of(row.mark), y - 8, x_of(row.mark), y + 8, "mark"))
        parts.append(_text(_WIDTH - 4, y + 4, row.text, "end"))
    return _svg(bottom + 24, title, parts)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers in [low, high], at most ``most`` + 1."""
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= most)
    return [round(number * step, 10) for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten in [low, high], and between them 3 times those, or 2 and 5 times where there are few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if high / low < 100 else (1, 3) if high / low < 10_000 else (1,)
    return [tick for power in decades for factor in factors if low <= (tick := factor * 10.0**power) <= high]


def _svg(height: float, label: str, parts: Sequence[Markup]) -> Markup:
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        _WIDTH, height, label, Markup("").join(parts)
    )


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(style, x1, y1, x2, y2)


def _text(x: float, y: float, text: str, anchor: str, style: str = "axis") -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        style, x, y, anchor, escape(text)
    )
