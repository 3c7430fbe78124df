"""The report of a benchmark: an HTML file that opens offline, the same text as Markdown, and the tables as CSV."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from satunet import __version__
from satunet.evaluation.benchmark.conclusions.differences import TIE_MARGIN
from satunet.evaluation.benchmark.conclusions.published import SOURCE, PublishedMean
from satunet.evaluation.benchmark.conclusions.results import (
    BenchmarkTables,
    Comparison,
    GroupRow,
    Intervals,
    Results,
    Scores,
)
from satunet.evaluation.benchmark.conclusions.statistics import FEWEST_FOR_INTERVALS, FEWEST_PATIENTS, NO_INTERVAL
from satunet.evaluation.report import charts as draw
from satunet.evaluation.report.overlays import Overlay
from satunet.evaluation.report.tables import (
    COST_COLUMNS,
    METRIC_NAMES,
    NONE,
    cost_cells,
    escape,
    interval,
    markdown,
    metric_name,
    number,
    percent,
    probability,
    shown_metrics,
    text_tables,
    write_tables,
)
from satunet.evaluation.scoring.scores import HEADLINE, LOWER_IS_BETTER
from satunet.jobs.files import write_text

_OPEN_DETAILS = 3
_SIGNIFICANT = 0.05
_MOST_TELLING = 100
_POLICIES = {
    "sat": "A class that is absent in reference and prediction scores 1; absent in one of them, 0.",
    "nnunet": "A class that is absent in reference and prediction is left out; absent in one of them, it scores 0.",
    "brats": "A class that is absent in reference and prediction scores 1, with distances of 0; absent in one of them, "
    "0, with distances of 374 mm.",
}
_ORGANS = {
    "whole": "An organ includes the ids of the lesions in it.",
    "listed": "An organ has the ids that dataset.json lists for it, without the lesions in it.",
}
_WHERE = {
    "total": "all datasets: other patients",
    "total: datasets": "all datasets: other datasets",
    "external": "external datasets: other patients",
    "external: datasets": "external datasets: other datasets",
}
_CORRECTIONS = {
    "holm": "adjusted by Holm’s method",
    "bh": "adjusted by the method of Benjamini and Hochberg",
    "none": "not adjusted",
}


def write_report(
    output: Path,
    tables: BenchmarkTables,
    *,
    overlays: Sequence[Overlay] = (),
    results: Results | None = None,
    title: str = "satunet benchmark",
    charts: bool = True,
) -> Path:
    """Write ``report.html``, ``report.md`` and the tables of :func:`~satunet.evaluation.report.tables.write_tables`.

    Args:
        output: Folder.
        tables: The numbers.
        overlays: Pictures, a few for each dataset.
        results: Results that the numbers were made from, for every single score and the plots of volumes.
        title: Heading.
        charts: Whether to draw charts.

    Returns:
        The HTML file.
    """
    write_tables(tables, output, results=results)
    write_text(output / "report.md", report_markdown(tables, title=title))
    html = output / "report.html"
    write_text(html, report_html(tables, overlays=overlays, results=results, title=title, charts=charts))
    return html


def report_html(
    tables: BenchmarkTables,
    *,
    overlays: Sequence[Overlay] = (),
    results: Results | None = None,
    title: str = "satunet benchmark",
    charts: bool = True,
) -> str:
    """The report as one HTML page that links to nothing but its own pictures; every name in it is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = tables.competitors
    metrics = shown_metrics(tables)
    chart = draw.scatter(tables, *names[:2]) if charts and len(names) > 1 else None
    volumes = [(c, v) for c in names if charts and (v := draw.bland_altman(results or {}, c, names))]
    content = {
        "title": title,
        "version": __version__,
        "date": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "subtitle": _subtitle(tables),
        "tiles": [_tile(c, tables) for c in names],
        "sentences": sentences(tables),
        "notes": tables.notes,
        "waiting": tables.waiting,
        "problems": len(_failures(tables)),
        "competitors": names,
        "colours": {c: draw.colour_of(c, names) for c in names},
        "metrics": [{"key": m, "name": metric_name(m), "short": METRIC_NAMES[m], "on": m in HEADLINE} for m in metrics],
        "totals": [row for g in tables.totals for row in _total_rows(g, names, metrics)],
        "published": [_published(p, names, metrics) for p in tables.published],
        "source": SOURCE,
        "left_out": tables.totals[0].left_out if tables.totals else 0,
        "costs": [(c, *cost_cells(tables.costs[c])) for c in names if c in tables.costs],
        "cost_columns": COST_COLUMNS,
        "dataset_chart": draw.dataset_bars(tables) if charts else None,
        "scatter_chart": chart,
        "volume_charts": [{"name": c, "chart": v} for c, v in volumes],
        "groups": [_group(g, names, metrics) for g in tables.groups],
        "datasets": [_group(g, names, metrics) for g in tables.datasets],
        "comparisons": _comparisons([c for c in tables.comparisons if c.kind != "class"]),
        "class_comparisons": _comparisons(_telling(tables)),
        "class_tests": sum(c.kind == "class" and not math.isnan(c.p_value) for c in tables.comparisons),
        "correction": _CORRECTIONS[tables.correction],
        "margin": f"{100 * TIE_MARGIN:g}",
        "fewest": FEWEST_PATIENTS,
        "fewest_for_intervals": FEWEST_FOR_INTERVALS,
        "details": [_details(g, tables, overlays, charts=charts) for g in tables.datasets],
        "open_details": _OPEN_DETAILS,
        "classes": [
            {
                "name": r.class_name,
                "dataset": r.dataset,
                "scans": r.scans,
                "cells": _cells(r.scores, names, metrics, r.intervals),
            }
            for r in tables.classes
        ],
        "failures": _failures(tables),
        "tolerance": _tolerance(tables),
        "distances": "hd95_mm" in metrics,
        "lesions": "lesion_f1" in metrics,
        "policy": _POLICIES[tables.rules["policy"]],
        "organs": _ORGANS[tables.rules["organs"]],
    }
    return environment.get_template("report.jinja").render(content)


def report_markdown(tables: BenchmarkTables, *, title: str = "satunet benchmark") -> str:
    """The report as Markdown."""
    parts = [f"# {escape(title)}", escape(_subtitle(tables))]
    if tables.waiting:
        parts.append(f"**Partial:** still missing are {escape(', '.join(tables.waiting))}.")
    parts += [escape(s) for s in (*sentences(tables), *tables.notes)]
    for table in text_tables(tables):
        parts += [f"## {table.title}", markdown(table)]
    failures = _failures(tables)
    parts.append("## Failures")
    lines = [f"{f['competitor']}, {f['dataset']}, {f['scan']}: {f['reason']}" for f in failures]
    parts.append("\n".join(f"- {escape(line)}" for line in lines) or "None.")
    return "\n\n".join(parts) + "\n"


def sentences(tables: BenchmarkTables) -> list[str]:
    """Results of the benchmark, with a sentence for each pair of competitors."""
    said = []
    for c in tables.comparisons:
        if c.kind not in ("total", "external") or c.metric != "dsc":
            continue
        better = "above" if c.difference > 0 else "below"
        where = "of external datasets and their classes" if c.kind == "external" else "of dataset and class"
        if c.kind == "total" and tables.trained_on:  # no claim about new patients without this
            known = len(tables.trained_on)
            where += f", {known} {_count('dataset', known)} with cases that were trained on"
        p = "" if math.isnan(c.p_value) else f"p {_with_sign(probability(c.p_value))} over {c.units} patients"
        between = "" if math.isnan(c.low) else f"95 % interval {interval(c.low, c.high)}"
        behind = "; ".join(text for text in (between, p) if text)
        few = f"too few patients ({c.units}) for a test" if math.isnan(c.p_value) and c.units < FEWEST_PATIENTS else ""
        said.append(
            f"Over {c.pairs} {_count('pair', c.pairs)} {where}, {c.first} is better than {c.second} in "
            f"{c.wins}, on par in {c.ties} and worse in {c.losses}; its mean DSC is {abs(100 * c.difference):.2f} points "
            f"{better}{f' ({behind or few})' if behind or few else ''}."
        )
    return said


def _subtitle(tables: BenchmarkTables) -> str:
    classes = len({r.class_name for r in tables.classes})
    datasets, cases = len(tables.datasets), sum(d.cases for d in tables.datasets)
    return (
        f"{' against '.join(tables.competitors)}: {datasets} {_count('dataset', datasets)}, "
        f"{cases} {_count('case', cases)}, {classes} {'class' if classes == 1 else 'classes'}."
    )


def _count(word: str, n: int) -> str:
    return word if n == 1 else f"{word}s"


def _with_sign(text: str) -> str:
    return text if text.startswith("<") else f"= {text}"


def _tile(competitor: str, tables: BenchmarkTables) -> dict[str, Any]:
    total = tables.totals[0] if tables.totals else None
    values = []
    for m in HEADLINE:
        value = total.scores[competitor][m] if total else math.nan
        low, high = total.intervals.get(competitor, {}).get(m, NO_INTERVAL) if total else NO_INTERVAL
        between = "" if math.isnan(low) else f"{100 * low:.1f} – {100 * high:.1f}"
        values.append({"name": f"mean {m.upper()}", "value": percent(value), "interval": between})
    return {"name": competitor, "colour": draw.colour_of(competitor, tables.competitors), "scores": values}


def _cells(
    scores: Scores, competitors: Sequence[str], metrics: Sequence[str], intervals: Intervals | None = None
) -> list[dict[str, Any]]:
    """Cells in the order of the columns: metric by metric, competitor by competitor; the best of a metric is marked."""
    cells = []
    for metric in metrics:
        texts = {c: number(metric, scores[c][metric]) for c in competitors}
        values = [v for c in competitors if not math.isnan(v := scores[c][metric])]
        best = None
        if len(values) > 1 and len(set(texts.values())) > 1 and metric != "volume_error":
            best = number(metric, (min if metric in LOWER_IS_BETTER else max)(values))
        for c in competitors:
            low, high = (intervals or {}).get(c, {}).get(metric, NO_INTERVAL)
            hint = "" if math.isnan(low) else f"95 % interval {100 * low:.2f} – {100 * high:.2f}"
            cells.append({"text": texts[c], "sort": _sortable(scores[c][metric]), "best": texts[c] == best,
                          "metric": metric, "hint": hint})  # fmt: skip
    return cells


def _sortable(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.8g}"


def _group(group: GroupRow, competitors: Sequence[str], metrics: Sequence[str]) -> dict[str, Any]:
    return {
        "name": group.name,
        "kind": group.kind,
        "cases": group.cases,
        "classes": group.classes,
        "cells": _cells(group.scores, competitors, metrics, group.intervals),
    }


def _total_rows(group: GroupRow, competitors: Sequence[str], metrics: Sequence[str]) -> list[dict[str, Any]]:
    """Macro and micro means of a group."""
    row = _group(group, competitors, metrics)
    micro = {**row, "name": f"{group.name}, micro", "micro": True, "cells": _cells(group.micro, competitors, metrics)}
    return [{**row, "micro": False}, micro]


def _published(mean: PublishedMean, competitors: Sequence[str], metrics: Sequence[str]) -> dict[str, Any]:
    values = {"dsc": percent(mean.dsc), "nsd": percent(mean.nsd)}
    spans = [{"metric": m, "text": values.get(m, NONE)} for m in metrics]
    return {"name": mean.name, "spans": spans, "width": len(competitors)}


def _telling(tables: BenchmarkTables) -> list[Comparison]:
    """Classes in which competitors differ by more than chance, with the largest differences first."""
    found = [c for c in tables.comparisons if c.kind == "class" and c.p_adjusted < _SIGNIFICANT]
    return sorted(found, key=lambda c: -abs(c.difference))[:_MOST_TELLING]


def _comparisons(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    return [
        {
            "where": _WHERE.get(c.kind, c.where),
            "total": c.kind in _WHERE,
            "pair": f"{c.first} – {c.second}",
            "metric": c.metric.upper(),
            "pairs": c.pairs,
            "units": c.units,
            "wins": c.wins,
            "ties": c.ties,
            "losses": c.losses,
            "difference": f"{100 * c.difference:+.2f}".replace("-", "−"),
            "difference_sort": _sortable(c.difference),
            "interval": interval(c.low, c.high),
            "p": probability(c.p_value),
            "p_sort": _sortable(c.p_value),
            "adjusted": probability(c.p_adjusted),
            "adjusted_sort": _sortable(c.p_adjusted),
            "certain": c.p_adjusted < _SIGNIFICANT,
        }
        for c in sorted(comparisons, key=lambda c: c.kind not in _WHERE)
    ]


def _tolerance(tables: BenchmarkTables) -> str:
    own = tables.rules["tolerances_mm"]
    more = ", ".join(f"{name} {value:g} mm" for name, value in sorted(own.items()))
    return f"{tables.rules['tolerance_mm']:g} mm" + (f" ({more})" if more else "")


def _details(group: GroupRow, tables: BenchmarkTables, overlays: Sequence[Overlay], *, charts: bool) -> dict[str, Any]:
    chart = draw.class_bars(tables, group.name) if charts else None
    several = len(tables.competitors) > 1
    scores = " · ".join(
        f"{c + ' ' if several else 'DSC '}{percent(group.scores[c]['dsc'])}" for c in tables.competitors
    )
    cases = f"{group.cases} {_count('case', group.cases)}"
    classes = f"{group.classes} {'class' if group.classes == 1 else 'classes'}"
    return {
        "name": group.name,
        "line": f"{cases}, {classes} · {'DSC: ' if several else ''}{scores}",
        "overlays": [o for o in overlays if o.dataset == group.name],
        "chart": chart[0] if chart else None,
        "left_out": chart[1] if chart else 0,
        "shown": draw.MOST_BARS,
    }


def _failures(tables: BenchmarkTables) -> list[dict[str, str]]:
    """Predictions that could not be used, and datasets that a competitor has no evaluation of."""
    rows = [
        {"competitor": competitor, "dataset": dataset, "scan": "all", "reason": reason}
        for competitor, by_dataset in tables.missing.items()
        for dataset, reason in by_dataset.items()
    ]
    by: Mapping[str, Mapping[str, Mapping[str, str]]] = tables.failures
    rows += [
        {"competitor": competitor, "dataset": dataset, "scan": scan, "reason": reason}
        for competitor, by_dataset in by.items()
        for dataset, reasons in by_dataset.items()
        for scan, reason in reasons.items()
    ]
    return rows
