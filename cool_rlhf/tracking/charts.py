"""Line and area charts as static SVG: where everything stands. The template draws it.

Static, because a report must open offline, at once, in ten years: a page of these charts is some
hundred kilobytes, where an inlined plotting library alone is five megabytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

WIDTH, HEIGHT = 460, 210
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 12, 24
MAX_POINTS = 400
SMOOTH_FROM = 24  # points; fewer are shown as they are
FEW_POINTS = 30  # shown as dots too
COLOURS = 8  # in the style sheet; further series repeat them dashed

Values = Sequence[float | None]


@dataclass(frozen=True)
class Series:
    name: str
    values: Values  # one for each x; None where nothing was measured


@dataclass(frozen=True)
class Chart:
    """``dividers`` mark where a round begins, ``shaded`` the steps of critic warm-up; both in x."""

    title: str
    explanation: str
    x: Sequence[float]
    x_labels: Sequence[str]
    series: Sequence[Series]
    stacked: bool = False
    zero: bool = False  # the y axis includes 0
    dividers: Sequence[tuple[float, str]] = ()
    pieces: Sequence[int] = ()  # for each x the round it belongs to; no curve runs across; empty: all one piece
    shaded: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True)
class Line:
    name: str
    colour: int
    dashed: bool
    path: str  # SVG path data of the main line, or of the area
    raw: str  # of the unsmoothed values, empty where the main line shows them
    dots: list[tuple[float, float]]
    last: str  # the newest value, for the legend


@dataclass(frozen=True)
class Tick:
    at: float
    label: str


@dataclass(frozen=True)
class Drawing:
    chart: Chart
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    dividers: list[Tick]
    shaded: list[tuple[float, float]]  # x and width
    hover: dict[str, object] = field(default_factory=dict)  # for the pointer: positions, labels, values


def draw(chart: Chart) -> Drawing:
    """Lay a chart out in a WIDTH × HEIGHT box. Long curves are averaged into at most MAX_POINTS points."""
    x, labels, columns, pieces = _thin(chart)
    drawn = _stack(columns) if chart.stacked else [_smooth(column, pieces) for column in columns]
    low, high = _range(columns if not chart.stacked else drawn, drawn, zero=chart.zero or chart.stacked)
    y_ticks = nice_ticks(low, high, 5)
    low, high = min(low, y_ticks[0]), max(high, y_ticks[-1])
    x_low, x_high = min(x), max(max(x), min(x) + 1)

    def at_x(value: float) -> float:
        return round(LEFT + (value - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT), 1)

    def at_y(value: float) -> float:
        return round(HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    lines = []
    below: Values = [0.0] * len(x)
    for index, (series, column, main) in enumerate(zip(chart.series, columns, drawn, strict=True)):
        points, floor, raw = (
            [[(at_x(x[i]), at_y(value)) for i in piece if (value := values[i]) is not None] for piece in pieces]
            for values in (main, below, column)
        )
        known = [value for value in column if value is not None]
        dots = [point for piece in points for point in piece]
        lines.append(
            Line(
                name=series.name,
                colour=index % COLOURS,
                dashed=index >= COLOURS,
                path="".join(map(_area, points, floor)) if chart.stacked else "".join(map(_path, points)),
                raw="".join(map(_path, raw)) if not chart.stacked and main is not column else "",
                dots=dots if len(dots) <= FEW_POINTS and not chart.stacked else [],
                last=number_text(known[-1]) if known else "",
            )
        )
        if chart.stacked:
            below = main
    hover: dict[str, object] = {
        "x": [at_x(value) for value in x],
        "labels": labels,
        "values": [[None if v is None else number_text(v) for v in column] for column in columns],
    }
    return Drawing(
        chart=chart,
        lines=lines,
        x_ticks=[Tick(at_x(t), number_text(t)) for t in nice_ticks(x_low, x_high, 6) if x_low <= t <= x_high],
        y_ticks=[Tick(at_y(t), number_text(t)) for t in y_ticks],
        dividers=[Tick(at_x(a), label) for a, label in chart.dividers],
        shaded=[(at_x(a), round(at_x(b) - at_x(a), 1)) for a, b in chart.shaded],
        hover=hover,
    )


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """About ``count`` round numbers that span ``low`` to ``high``."""
    if high <= low:
        high = low + (abs(low) * 0.1 or 1.0)
    rough = (high - low) / max(count - 1, 1)
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def number_text(value: float) -> str:
    """Three significant figures, without exponents where a person would not write them."""
    if value == 0:
        return "0"
    if abs(value) >= 1e6 or abs(value) < 1e-4:
        return f"{value:.2e}".replace("e-0", "e-").replace("e+0", "e")
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def _thin(chart: Chart) -> tuple[list[float], list[str], list[Values], list[range]]:
    """x, labels and values averaged over neighbours of one piece, and the range of points that each piece became."""
    size = max(1, math.ceil(len(chart.x) / MAX_POINTS))
    owners = chart.pieces or [0] * len(chart.x)
    cuts: list[slice] = []
    pieces: list[range] = []
    for owner in dict.fromkeys(owners):
        own = [i for i, other in enumerate(owners) if other == owner]
        begin = len(cuts)
        cuts += [slice(i, min(i + size, own[-1] + 1)) for i in range(own[0], own[-1] + 1, size)]
        pieces.append(range(begin, len(cuts)))
    x = [sum(chart.x[cut]) / (cut.stop - cut.start) for cut in cuts]
    labels = [chart.x_labels[cut.start] + (" ff." if cut.stop - cut.start > 1 else "") for cut in cuts]
    return x, labels, [[_mean(series.values[cut]) for cut in cuts] for series in chart.series], pieces


def _mean(values: Values) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _smooth(values: Values, pieces: Sequence[range]) -> Values:
    """A centred mean over a twelfth of the curve, within its piece; the values themselves where they are few."""
    if sum(value is not None for value in values) < SMOOTH_FROM:
        return values
    half = max(1, len(values) // 24)
    smooth: list[float | None] = []
    for piece in pieces:
        for i in piece:
            near = values[max(piece.start, i - half) : min(piece.stop, i + half + 1)]
            smooth.append(None if values[i] is None else _mean(near))
    return smooth


def _stack(columns: Sequence[Values]) -> list[Values]:
    stacked: list[Values] = []
    total = [0.0] * len(columns[0])
    for column in columns:
        total = [a + (b or 0.0) for a, b in zip(total, column, strict=True)]
        stacked.append(total)
    return stacked


def _range(columns: Sequence[Values], drawn: Sequence[Values], zero: bool) -> tuple[float, float]:
    """Room for every main line and all but the wildest 2 % of raw values at either end."""
    raw = sorted(value for column in columns for value in column if value is not None)
    main = [value for column in drawn for value in column if value is not None]
    cut = len(raw) // 50
    low = min(raw[cut], *main, *([0.0] if zero else []), math.inf)
    high = max(raw[-1 - cut], *main, *([0.0] if zero else []), -math.inf)
    return low, high


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points) if points else ""


def _area(edge: Sequence[tuple[float, float]], floor: Sequence[tuple[float, float]]) -> str:
    return _path([*edge, *reversed(floor)]) + "Z" if edge else ""
