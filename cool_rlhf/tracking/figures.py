"""Charts as plotly figures, and their place in a page."""

from __future__ import annotations

import base64
import hashlib
import html
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cool_rlhf.tracking.text import visible

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

HEIGHT = 290  # pixels, with one row of names in the legend
LEGEND_ROW = 19  # pixels of each further one
NARROW = 340  # pixels that a legend has in a column of the page
SMOOTH_FROM = 40  # points in a round; fewer are shown as they are, with dots
OUTLIERS_FROM = 50  # points; among fewer, all are in view
LONGEST_NAME = 40  # characters in a legend
# Read well on white and on black; the page's style sheet colours what is not a curve.
COLOURS = ("#3b82d6", "#e07b1a", "#1fa187", "#cf4f8c", "#8c6fe0", "#a3911c", "#4fb0d8", "#9a6b4b", "#7d8896", "#c94a3f")
SCRIPT = re.compile(r"<script[^>]*>(.*?)</script>", re.DOTALL)


@dataclass(frozen=True)
class Curve:
    """``y[i]`` was measured at ``x[i]``, in round ``rounds[i]``; no line runs from one round to the next."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    rounds: Sequence[int]
    group: str = ""  # curves of one group share its colour and its place in the legend, which names the group
    dash: str = "solid"  # as plotly calls it; "dot" is for what was not measured: it is drawn thin and without points

    @property
    def entry(self) -> str:
        """What the legend calls it."""
        return self.group or self.name


@dataclass(frozen=True)
class Chart:
    """``dividers`` mark where a round begins, ``shaded`` the steps of critic warm-up; both in x."""

    title: str
    explanation: str
    x_axis: str
    y_axis: str
    curves: Sequence[Curve]
    stacked: bool = False
    zero: bool = False  # the y axis includes 0
    dividers: Sequence[tuple[float, str]] = ()
    shaded: Sequence[tuple[float, float]] = ()
    whole: bool = True  # x counts what the axis names


def figure(chart: Chart) -> Figure:
    """Stacked bars, or lines: single steps thin and their running mean thick where there are many."""
    import plotly.graph_objects as go

    make = _bars if chart.stacked else _lines
    entries = list(dict.fromkeys(curve.entry for curve in chart.curves))
    colours = {entry: COLOURS[place % len(COLOURS)] for place, entry in enumerate(entries)}
    traces = [trace for curve in chart.curves for trace in make(curve, colours[curve.entry])]
    _name_once(traces)
    first, last = min(curve.x[0] for curve in chart.curves), max(curve.x[-1] for curve in chart.curves)
    layout = go.Layout(plain_layout(chart.x_axis, chart.y_axis))
    layout.update(
        height=HEIGHT + LEGEND_ROW * (_legend_rows(entries) - 1),
        hovermode="x unified",
        barmode="stack",
        bargap=0,
        showlegend=len(entries) > 1,
        shapes=[*map(_shade, chart.shaded), *(_divider(x) for x, _ in chart.dividers)],
        annotations=[_round_label(x, label) for x, label in chart.dividers],
    )
    if chart.dividers:  # their labels stand between the plot and the legend
        layout.margin.t, layout.legend.y = 20, 1.1
    counted = chart.x_axis.partition(",")[0]
    layout.xaxis.update(
        unifiedhovertitle={"text": f"{counted} %{{x}}" if chart.whole else f"{counted} %{{x:.3g}}"},
        dtick=1 if chart.whole and last - first < 8 else None,
    )
    layout.yaxis.update(
        rangemode="tozero" if chart.zero or chart.stacked else "normal", range=None if chart.stacked else _range(chart)
    )
    return go.Figure(traces, layout)


def plain_layout(x_axis: str, y_axis: str) -> dict[str, Any]:
    """What all figures share. Without template and title: the page has the title, and its style sheet the colours of
    either theme."""
    return {
        "template": "none",
        "height": HEIGHT,
        "margin": {"l": 48, "r": 14, "t": 10, "b": 42},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "legend": {
            "orientation": "h",
            "x": 0,
            "y": 1.02,
            "yanchor": "bottom",
            "traceorder": "normal",
            "font": {"size": 12},
        },
        "xaxis": {
            "title": {"text": x_axis, "standoff": 6},
            "showgrid": False,
            "zeroline": False,
            "nticks": 8,
        },
        "yaxis": {
            "title": {"text": y_axis, "standoff": 6},
            "automargin": True,
            "gridcolor": "rgba(128,136,146,0.22)",
            "zerolinecolor": "rgba(128,136,146,0.5)",
            "exponentformat": "power",
            "ticks": "outside",
            "ticklen": 5,
            "tickcolor": "rgba(0,0,0,0)",
            "nticks": 6,
        },
        "font": {"size": 12},
    }


def figure_html(drawn: Figure, identity: str) -> str:
    """The figure as a piece of a page that has loaded plotly.js; ``identity`` is its element's id in that page."""
    config = {"responsive": True, "displaylogo": False, "displayModeBar": False}
    page: str = drawn.to_html(config, full_html=False, include_plotlyjs=False, div_id=identity)
    return page


def script_hashes(pieces: Iterable[str]) -> list[str]:
    """What a content security policy calls the scripts of these pieces of a page: ``'sha256-…'`` of each."""
    scripts = (script for piece in pieces for script in SCRIPT.findall(piece))
    return [f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts]


def last_value(chart: Chart) -> float | None:
    """The newest value of a chart that has one curve."""
    return chart.curves[0].y[-1] if len(chart.curves) == 1 else None


def running_mean(values: Sequence[float]) -> list[float]:
    """A centred mean over a twelfth of the values; (N,) to (N,)."""
    reach = min(max(1, len(values) // 24), (len(values) - 1) // 2)  # NumPy gives as many as the longer of the two has
    window = np.ones(2 * reach + 1)
    counts = np.convolve(np.ones(len(values)), window, "same")
    means: list[float] = (np.convolve(values, window, "same") / counts).tolist()
    return means


def _name_once(traces: Sequence[dict[str, Any]]) -> None:
    """The legend has one entry for all traces of one name."""
    named: set[str] = set()
    for trace in traces:
        if trace.get("showlegend", True):
            trace["showlegend"] = trace["name"] not in named
            named.add(trace["name"])


def _legend_rows(entries: Sequence[str]) -> int:
    """About how many there are in one column of the page: names stand in columns as wide as the longest."""
    column = 45 + 7 * min(LONGEST_NAME, max(map(len, entries)))
    return math.ceil(len(entries) / max(1, NARROW // column))


def _lines(curve: Curve, colour: str) -> list[dict[str, Any]]:
    name = label_text(curve.entry)
    measured = curve.dash != "dot"
    smooth = measured and max(Counter(curve.rounds).values()) >= SMOOTH_FROM
    x, raw = _broken(curve, curve.x), _broken(curve, curve.y)
    common = {"type": "scatter", "name": name, "legendgroup": name, "x": x}
    main = {
        **common,
        "y": _broken(curve, _mean_by_round(curve)) if smooth else raw,
        "customdata": raw,
        "hovertemplate": f"%{{customdata:.4~g}}<extra>{label_text(curve.name)}</extra>",
        "mode": "lines+markers" if measured and not smooth else "lines",
        "line": {"color": colour, "width": 2 if measured else 1.2, "dash": curve.dash},
        "marker": {"size": 5},
    }
    if not smooth:
        return [main]
    thin = {**common, "y": raw, "mode": "lines", "line": {"color": colour, "width": 1}, "opacity": 0.25}
    return [{**thin, "showlegend": False, "hoverinfo": "skip"}, main]


def _bars(curve: Curve, colour: str) -> list[dict[str, Any]]:
    marker = {"color": colour, "line": {"width": 0}}
    return [
        {
            "type": "bar",
            "name": label_text(curve.name),
            "x": list(curve.x),
            "y": _short(curve.y),
            "marker": marker,
            "hovertemplate": "%{y:.3~g}",
        }
    ]


def label_text(name: str) -> str:
    """A name from data as plain text: plotly reads tags in names."""
    short = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
    return html.escape(visible(short), quote=False)


def _broken(curve: Curve, values: Sequence[float]) -> list[float | None]:
    """The values with a gap before each further round."""
    broken: list[float | None] = []
    for i, value in enumerate(_short(values)):
        if i and curve.rounds[i] != curve.rounds[i - 1]:
            broken.append(None)
        broken.append(value)
    return broken


def _mean_by_round(curve: Curve) -> list[float]:
    owners = np.array(curve.rounds)
    return [m for n in dict.fromkeys(curve.rounds) for m in running_mean(np.array(curve.y)[owners == n].tolist())]


def _short(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.6g}") for value in values]


def _range(chart: Chart) -> list[float] | None:
    """Room for all but the wildest 2 % of long curves, so that one step does not flatten the rest; None: for all."""
    values = np.concatenate([np.asarray(curve.y, dtype=float) for curve in chart.curves])
    if len(values) < OUTLIERS_FROM:
        return None
    low, high = np.quantile(values, [0.01, 0.99])
    span = high - low
    if span == 0 or (low - values.min() < span and values.max() - high < span):
        return None
    low = min(low, 0.0) if chart.zero else low
    return [float(low - 0.05 * span), float(high + 0.05 * span)]


def _shade(span: tuple[float, float]) -> dict[str, Any]:
    return {
        "type": "rect",
        "x0": span[0],
        "x1": span[1],
        "y0": 0,
        "y1": 1,
        "yref": "paper",
        "fillcolor": "rgba(128,136,146,0.14)",
        "line": {"width": 0},
        "layer": "below",
    }


def _divider(x: float) -> dict[str, Any]:
    line = {"color": "rgba(128,136,146,0.8)", "width": 1, "dash": "dot"}
    return {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper", "line": line}


def _round_label(x: float, label: str) -> dict[str, Any]:
    place = {"x": x, "y": 1, "yref": "paper", "xanchor": "left", "yanchor": "bottom"}
    return {**place, "text": label, "showarrow": False, "font": {"size": 11}}
