"""The report of a benchmark: one HTML file that opens offline, the same as Markdown, and the tables as CSV."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from satunet import __version__
from satunet.evaluation import charts
from satunet.evaluation.benchmark import FEWEST_PAIRS, TIE_MARGIN, BenchmarkTables, GroupRow, Scores
from satunet.evaluation.overlays import Overlay
from satunet.evaluation.scores import METRICS
from satunet.evaluation.tables import (
    COST_COLUMNS,
    cost_cells,
    escape,
    markdown,
    percent,
    probability,
    score_columns,
    text_tables,
    write_tables,
)
from satunet.files import write_text

_OPEN_DETAILS = 3
_POLICIES = {
    "sat": "A class that is absent in reference and prediction scores 1; absent in one of them, 0.",
    "nnunet": "A class that is absent in reference and prediction is left out; absent in one of them, it scores 0.",
}


def write_report(
    output: Path, tables: BenchmarkTables, *, overlays: Sequence[Overlay] = (), title: str = "satunet benchmark"
) -> Path:
    """Write ``report.html``, ``report.md`` and the tables of :func:`~satunet.evaluation.tables.write_tables`.

    Args:
        output: Folder.
        tables: The numbers.
        overlays: Pictures, at most one a dataset.
        title: Heading.

    Returns:
        The HTML file.
    """
    write_tables(tables, output)
    write_text(output / "report.md", report_markdown(tables, title=title))
    html = output / "report.html"
    write_text(html, report_html(tables, overlays=overlays, title=title))
    return html


def report_html(tables: BenchmarkTables, *, overlays: Sequence[Overlay] = (), title: str = "satunet benchmark") -> str:
    """The report as one HTML page without any address but its own pictures'; every name in it is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = tables.competitors
    several = len(names) > 1
    content = {
        "title": title,
        "version": __version__,
        "date": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "subtitle": _subtitle(tables),
        "tiles": [_tile(c, tables) for c in names],
        "sentences": sentences(tables),
        "notes": tables.notes,
        "problems": len(_failures(tables)),
        "competitors": names,
        "colours": {c: charts.colour_of(c, names) for c in names},
        "metrics": [m.upper() for m in METRICS],
        "columns": [*names, *names] if several else [f"{c}, %" for c in score_columns(names)],
        "totals": [_group(g, names) for g in tables.totals],
        "left_out": tables.totals[0].left_out if tables.totals else 0,
        "costs": [(c, *cost_cells(tables.costs[c])) for c in names if c in tables.costs],
        "cost_columns": COST_COLUMNS,
        "dataset_chart": charts.dataset_bars(tables),
        "scatter_chart": charts.scatter(tables, *names[:2]) if several else None,
        "datasets": [_group(g, names) for g in tables.datasets],
        "comparisons": _comparisons(tables),
        "margin": f"{100 * TIE_MARGIN:g}",
        "fewest": FEWEST_PAIRS,
        "details": [_details(g, tables, overlays) for g in tables.datasets],
        "open_details": _OPEN_DETAILS,
        "classes": [
            {"name": r.class_name, "dataset": r.dataset, "scans": r.scans, "cells": _cells(r.scores, names)}
            for r in tables.classes
        ],
        "failures": _failures(tables),
        "tolerance": f"{tables.tolerance_mm:g}",
        "policy": _POLICIES.get(tables.policy, f"Absent classes are scored by the policy {tables.policy!r}."),
    }
    return environment.get_template("report.jinja").render(content)


def report_markdown(tables: BenchmarkTables, *, title: str = "satunet benchmark") -> str:
    """The report as Markdown."""
    parts = [f"# {escape(title)}", *(escape(s) for s in (_subtitle(tables), *sentences(tables), *tables.notes))]
    for table in text_tables(tables):
        parts += [f"## {table.title}", markdown(table)]
    failures = _failures(tables)
    parts.append("## Failures")
    lines = [f"{f['competitor']}, {f['dataset']}, {f['scan']}: {f['reason']}" for f in failures]
    parts.append("\n".join(f"- {escape(line)}" for line in lines) or "None.")
    return "\n\n".join(parts) + "\n"


def sentences(tables: BenchmarkTables) -> list[str]:
    """What the benchmark says, in a sentence a pair of competitors."""
    said = []
    for c in tables.comparisons:
        if c.where != "total" or c.metric != "dsc":
            continue
        better = "above" if c.difference > 0 else "below"
        p = "" if math.isnan(c.p_value) else f" (Wilcoxon p {_with_sign(probability(c.p_value))})"
        said.append(
            f"Over {c.pairs} {_count('pair', c.pairs)} of dataset and class, {c.first} is better than {c.second} in "
            f"{c.wins}, on par in {c.ties} and worse in {c.losses}; its DSC is {abs(100 * c.difference):.2f} points "
            f"{better} on average{p}."
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
    scores = tables.totals[0].scores[competitor] if tables.totals else dict.fromkeys(METRICS, math.nan)
    return {
        "name": competitor,
        "colour": charts.colour_of(competitor, tables.competitors),
        "scores": [{"name": f"mean {m.upper()}", "value": percent(scores[m])} for m in METRICS],
    }


def _cells(scores: Scores, competitors: Sequence[str]) -> list[dict[str, Any]]:
    """Cells in the order of the columns: metric by metric, competitor by competitor; the best of a metric is marked."""
    cells = []
    for metric in METRICS:
        texts = {c: percent(scores[c][metric]) for c in competitors}
        values = [v for c in competitors if not math.isnan(v := scores[c][metric])]
        best = percent(max(values)) if len(values) > 1 and len(set(texts.values())) > 1 else None
        cells += [
            {"text": texts[c], "sort": _sortable(scores[c][metric]), "best": texts[c] == best} for c in competitors
        ]
    return cells


def _sortable(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.8g}"


def _group(group: GroupRow, competitors: Sequence[str]) -> dict[str, Any]:
    return {
        "name": group.name,
        "cases": group.cases,
        "classes": group.classes,
        "cells": _cells(group.scores, competitors),
    }


def _comparisons(tables: BenchmarkTables) -> list[dict[str, Any]]:
    return [
        {
            "where": c.where,
            "total": c.where == "total",
            "pair": f"{c.first} – {c.second}",
            "metric": c.metric.upper(),
            "pairs": c.pairs,
            "wins": c.wins,
            "ties": c.ties,
            "losses": c.losses,
            "difference": f"{100 * c.difference:+.2f}".replace("-", "−"),
            "difference_sort": _sortable(c.difference),
            "p": probability(c.p_value),
            "p_sort": _sortable(c.p_value),
        }
        for c in sorted(tables.comparisons, key=lambda c: c.where != "total")
    ]


def _details(group: GroupRow, tables: BenchmarkTables, overlays: Sequence[Overlay]) -> dict[str, Any]:
    chart = charts.class_bars(tables, group.name)
    several = len(tables.competitors) > 1
    scores = " · ".join(
        f"{c + ' ' if several else 'DSC '}{percent(group.scores[c]['dsc'])}" for c in tables.competitors
    )
    cases = f"{group.cases} {_count('case', group.cases)}"
    classes = f"{group.classes} {'class' if group.classes == 1 else 'classes'}"
    return {
        "name": group.name,
        "line": f"{cases}, {classes} · {'DSC: ' if several else ''}{scores}",
        "overlay": next((o for o in overlays if o.dataset == group.name), None),
        "chart": chart[0] if chart else None,
        "left_out": chart[1] if chart else 0,
        "shown": charts.MOST_BARS,
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
