"""Charts of a benchmark as SVG, ready for ``<img>``.

An SVG inside ``<img>`` runs no script and loads nothing, so no name in it can do harm.
"""

from __future__ import annotations

import base64
import functools
import io
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from satunet.evaluation.benchmark.conclusions.results import BenchmarkTables, ClassRow, GroupRow, Results
from satunet.evaluation.benchmark.conclusions.statistics import NO_INTERVAL

if TYPE_CHECKING:
    from matplotlib.figure import Figure

P = ParamSpec("P")
T = TypeVar("T")

COLOURS = ("#2563a8", "#e08a2c", "#4a9d6f", "#9b5fb5", "#c0504d", "#6b7785")
"""Colours of the competitors, in their order."""

MOST_BARS = 40
"""Largest number of classes in a bar chart; more would not be readable."""

_MANY_POINTS = 3000
"""Number of points above which they are drawn as pixels: a file of their outlines would be large."""

_INK, _LINE = "#3b4652", "#d9dee5"


def colour_of(competitor: str, competitors: Sequence[str]) -> str:
    """CSS colour of a competitor, the same everywhere in a report."""
    return COLOURS[list(competitors).index(competitor) % len(COLOURS)]


def _default_style(draw: Callable[P, T]) -> Callable[P, T]:
    """Draw in matplotlib's own style: nnunetv2 leaves fonts of 30 points behind when it plots a training's progress."""

    @functools.wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> T:
        import matplotlib.style

        with matplotlib.style.context("default", after_reset=True):
            return draw(*args, **kwargs)

    return styled


@_default_style
def scatter(tables: BenchmarkTables, first: str, second: str, *, metric: str = "dsc") -> str | None:
    """Scatter plot of two competitors, one point per class of a dataset; ``None`` if they share no class."""
    points = [
        (100 * r.scores[second][metric], 100 * r.scores[first][metric], r.scored.lesion)
        for r in tables.classes
        if not (math.isnan(r.scores[second][metric]) or math.isnan(r.scores[first][metric]))
    ]
    if not points:
        return None
    figure, axes = _figure(4.4, 4.4)
    low = max(0.0, min(min(p[:2]) for p in points) - 6)
    axes.plot([low, 101], [low, 101], color="#8a94a1", linewidth=0.9, zorder=1)
    for lesion, label, colour in ((False, "anatomy", COLOURS[0]), (True, "lesions", COLOURS[4])):
        own = [p for p in points if p[2] == lesion]
        if own:
            x, y = [p[0] for p in own], [p[1] for p in own]
            axes.scatter(x, y, s=22, color=colour, alpha=0.6, linewidths=0, label=label, zorder=2,
                         rasterized=len(own) > _MANY_POINTS)  # fmt: skip
    axes.set_xlim(low, 101)
    axes.set_ylim(low, 101)
    axes.set_aspect("equal")
    axes.set_xlabel(f"{metric.upper()} of {second}, %")
    axes.set_ylabel(f"{metric.upper()} of {first}, %")
    axes.grid(color=_LINE, linewidth=0.6)
    if any(p[2] for p in points):
        axes.legend(loc="upper left", frameon=False)
    return _svg(figure)


@_default_style
def dataset_bars(tables: BenchmarkTables, *, metric: str = "dsc") -> str | None:
    """Bar chart with a group for each dataset; ``None`` if there are no datasets or too many to tell apart."""
    if not tables.datasets or len(tables.datasets) > MOST_BARS:
        return None
    return _bars(tables, [(g.name, g) for g in tables.datasets], metric, width=6.0)


@_default_style
def class_bars(tables: BenchmarkTables, dataset: str, *, metric: str = "dsc") -> tuple[str, int] | None:
    """Bar chart with a group for each class of a dataset, and the number of classes left out: the best ones, if
    there are too many.
    """
    rows = [r for r in tables.classes if r.dataset == dataset]
    if not rows:
        return None
    left_out = max(0, len(rows) - MOST_BARS)
    if left_out:
        worst = sorted(rows, key=lambda r: _lowest(r, metric))[:MOST_BARS]
        rows = [r for r in rows if r in worst]
    return _bars(tables, [(r.class_name, r) for r in rows], metric), left_out


@_default_style
def bland_altman(results: Results, competitor: str, competitors: Sequence[str]) -> str | None:
    """Bland–Altman plot of volumes, with a point for each class of a scan; ``None`` if the competitor has none.

    It shows the difference from the reference, in percent of the mean of both, over this mean, with the mean difference
    and its limits of agreement (1.96 standard deviations; Bland and Altman 1986). Failed predictions are left out: they
    have no volume.
    """
    import numpy as np

    pairs = np.array([
        (row.reference_ml, row.prediction_ml)
        for found in results.values()
        if competitor in found.evaluations
        for row in found.evaluations[competitor].rows
        if row.reference_ml > 0 and not row.error
    ]).reshape(-1, 2)  # fmt: skip
    if len(pairs) < 2:
        return None
    means = pairs.mean(axis=1)
    percent = 100 * (pairs[:, 1] - pairs[:, 0]) / means
    figure, axes = _figure(4.6, 3.6)
    axes.scatter(means, percent, s=12, color=colour_of(competitor, competitors), alpha=0.5, linewidths=0,
                 rasterized=len(pairs) > _MANY_POINTS)  # fmt: skip
    bias, spread = float(percent.mean()), 1.96 * float(percent.std(ddof=1))
    axes.axhline(0, color="#8a94a1", linewidth=0.7)
    for value, style in ((bias, "-"), (bias - spread, "--"), (bias + spread, "--")):
        axes.axhline(value, color=_INK, linewidth=0.9, linestyle=style)
        axes.annotate(f"{value:+.1f} %", (1, value), xycoords=("axes fraction", "data"), xytext=(2, 0),
                      textcoords="offset points", fontsize=7, color=_INK, va="center", annotation_clip=False)  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda value, _: "")
    edge = max(abs(float(percent.min())), abs(float(percent.max())), abs(bias) + spread, 10.0) * 1.08
    axes.set_ylim(-edge, edge)
    axes.set_xlabel("mean of both volumes, ml")
    axes.set_ylabel("prediction − reference, % of the mean")
    axes.grid(color=_LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    return _svg(figure)


def _lowest(row: ClassRow, metric: str) -> float:
    return min((v for s in row.scores.values() if not math.isnan(v := s[metric])), default=math.inf)


def _bars(
    tables: BenchmarkTables, groups: Sequence[tuple[str, ClassRow | GroupRow]], metric: str, *, width: float = 9.2
) -> str:
    names = tables.competitors
    thickness = 0.74 / len(names)
    figure, axes = _figure(width, 0.62 + len(groups) * (0.14 + 0.15 * len(names)))
    for i, competitor in enumerate(names):
        values = [100 * g.scores[competitor][metric] for _, g in groups]
        places = [n - 0.37 + (i + 0.5) * thickness for n in range(len(groups))]
        heights = [0.0 if math.isnan(v) else v for v in values]
        axes.barh(places, heights, height=thickness * 0.9, color=colour_of(competitor, names))
        for place, value, (_, group) in zip(places, values, groups, strict=True):
            low, high = group.intervals.get(competitor, {}).get(metric, NO_INTERVAL)
            end = 0.0 if math.isnan(value) else value
            if not math.isnan(low):
                axes.plot([100 * low, 100 * high], [place, place], color=_INK, linewidth=0.9, solid_capstyle="butt")
                end = max(end, 100 * high)
            text = "–" if math.isnan(value) else f"{value:.1f}"
            axes.text(end + 0.6, place, text, va="center", fontsize=7, color=_INK)
    axes.set_yticks(range(len(groups)), [_short(name) for name, _ in groups])
    axes.set_ylim(len(groups) - 0.45, -0.55)
    axes.set_xlim(0, 106)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel(f"{metric.upper()}, %")
    axes.grid(axis="x", color=_LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    return _svg(figure)


def _short(name: str) -> str:
    return name if len(name) <= 44 else f"{name[:42]}…"


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#9aa4b0")
    axes.tick_params(colors=_INK, labelsize=8, width=0.6)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)
    return figure, axes


def _svg(figure: Figure) -> str:
    import matplotlib as mpl

    # Text stays text, in the reader's own font. A name such as "a$b$" is no formula. The salt makes files repeatable.
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "satunet", "font.family": "sans-serif"}
    for text in figure.findobj(lambda artist: hasattr(artist, "set_parse_math")):
        text.set_parse_math(False)  # type: ignore[attr-defined]
    stream = io.BytesIO()
    with mpl.rc_context(settings):
        figure.savefig(stream, format="svg", metadata={"Date": None}, transparent=True)
    return f"data:image/svg+xml;base64,{base64.b64encode(stream.getvalue()).decode()}"
