"""A benchmark's tables as text: for the terminal, as CSV files, and as Markdown.

Scores are printed in percent, as is usual in the field; files hold fractions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from satunet.evaluation.benchmark.conclusions.results import BenchmarkTables, Comparison, Cost, GroupRow, Results
from satunet.evaluation.benchmark.conclusions.results import Scores as MeanScores
from satunet.evaluation.scoring.scores import HEADLINE, METRICS, Evaluation, Row, write_csv

if TYPE_CHECKING:
    from rich.console import Console

NONE = "–"
"""Shown where there is no number."""

METRIC_NAMES = {
    "dsc": "DSC",
    "nsd": "NSD",
    "hd95_mm": "HD95",
    "assd_mm": "ASSD",
    "volume_error": "volume error",
    "absolute_volume_error": "|volume error|",
    "lesion_f1": "lesion F1",
    "panoptic_quality": "PQ",
}
_UNITS = {"hd95_mm": "mm", "assd_mm": "mm"}
_MANY_CLASSES = 60


@dataclass(frozen=True, kw_only=True)
class TextTable:
    """A table of texts.

    Attributes:
        title: Heading.
        columns: Names of the columns.
        left: Number of text columns, from the left; the others are numbers.
        rows: Cells.
    """

    title: str
    columns: tuple[str, ...]
    left: int
    rows: tuple[tuple[str, ...], ...]


def print_table(tables: BenchmarkTables, *, console: Console | None = None, classes: bool = False) -> None:
    """Print totals, costs, datasets and total comparisons to the terminal; with ``classes``, the classes as well."""
    _print(text_tables(tables, classes=classes, cases=False, more=False), console)


def print_evaluation(evaluation: Evaluation, *, console: Console | None = None) -> None:
    """Print the means of every class, or of the lowest where there are many."""
    metrics = [m for m in METRICS if any(s.metrics[m].n for s in evaluation.class_summaries)]
    summaries = list(evaluation.class_summaries)
    title = "Classes"
    if len(summaries) > _MANY_CLASSES:
        title = f"Classes, the {_MANY_CLASSES} with the lowest DSC of {len(summaries)}"
        summaries = sorted(summaries, key=lambda s: (math.isnan(s.metric("dsc")), s.metric("dsc")))[:_MANY_CLASSES]
    rows = [(s.class_name, str(s.scored), *(number(m, s.metric(m)) for m in metrics)) for s in summaries]
    rows.append(("mean", str(len(evaluation.cases)), *(number(m, evaluation.mean(m)) for m in metrics)))
    columns = ("class", "scans", *(metric_name(m) for m in metrics))
    _print([TextTable(title=title, columns=columns, left=1, rows=tuple(rows))], console)


def _print(tables: Sequence[TextTable], console: Console | None) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = console or Console(width=None if Console().is_terminal else 160)
    for table in tables:
        shown = Table(title=table.title, title_justify="left")
        for i, column in enumerate(table.columns):
            text = i < table.left
            longest = max(len(cells[i]) for cells in (table.columns, *table.rows))
            shown.add_column(
                Text(column), justify="left" if text else "right", no_wrap=not text, overflow="fold",
                min_width=min(18, longest) if text else 5,
            )  # fmt: skip
        for row in table.rows:
            shown.add_row(*(Text(cell) for cell in row))
        console.print(shown)


def text_tables(
    tables: BenchmarkTables, *, classes: bool = True, cases: bool = True, more: bool = True
) -> list[TextTable]:
    """The tables that are not empty.

    Args:
        tables: Tables of the benchmark.
        classes: Whether to include every class of every dataset.
        cases: Whether to include the comparisons over the cases of each dataset.
        more: Whether to include regions, modalities, and metrics other than DSC and NSD.
    """
    compared = [c for c in tables.comparisons if c.kind != "class" and (cases or c.kind != "dataset")]
    shown = [
        _groups("All datasets", "group", tables.totals, tables, published=True),
        _other_metrics(tables.totals, tables) if more else None,
        _costs(tables),
        _groups("Regions and modalities", "group", tables.groups, tables) if more else None,
        _groups("Datasets", "dataset", tables.datasets, tables),
        _comparisons(compared),
    ]
    if classes:
        rows = [
            (r.dataset, r.class_name, str(r.scans), *_score_cells(r.scores, tables.competitors)) for r in tables.classes
        ]
        columns = ("dataset", "class", "scans", *score_columns(tables.competitors))
        shown.append(TextTable(title="Classes", columns=columns, left=2, rows=tuple(rows)))
    return [t for t in shown if t is not None and t.rows]


def write_tables(tables: BenchmarkTables, folder: Path, *, results: Results | None = None) -> None:
    """Write ``{classes,datasets,totals,groups,comparisons,costs}.csv``, ``benchmark.json`` and, with the results that
    they were made from, ``per_case.csv``: every score of every competitor, with a row for each scan and class.
    """
    names = tables.competitors
    columns = tuple(f"{m} {c}" for m in METRICS for c in names)
    ends = tuple(f"{m} {end} {c}" for m in HEADLINE for c in names for end in ("low", "high"))
    nothing = (math.nan, math.nan)
    write_csv(
        folder / "classes.csv",
        ("dataset", "class", "ids", "lesion", "external", "modality", "regions", "scans", *columns, *ends),
        [
            (r.dataset, r.class_name, " ".join(map(str, r.scored.ids)), int(r.scored.lesion), int(r.external), r.modality,
             "; ".join(r.scored.regions), r.scans,
             *(r.scores[c][m] for m in METRICS for c in names),
             *(v for m in HEADLINE for c in names for v in r.intervals.get(c, {}).get(m, nothing)))
            for r in tables.classes
        ],
    )  # fmt: skip
    micro = tuple(f"micro {m} {c}" for m in METRICS for c in names)
    for name, groups in (("datasets", tables.datasets), ("totals", tables.totals), ("groups", tables.groups)):
        write_csv(
            folder / f"{name}.csv",
            ("kind", "name", "cases", "classes", "classes left out", *(f"failures {c}" for c in names), *columns,
             *micro, *ends),
            [
                (g.kind, g.name, g.cases, g.classes, g.left_out, *(g.failures.get(c) for c in names),
                 *(g.scores[c][m] for m in METRICS for c in names), *(g.micro[c][m] for m in METRICS for c in names),
                 *(v for m in HEADLINE for c in names for v in g.intervals.get(c, {}).get(m, nothing)))
                for g in groups
            ],
        )  # fmt: skip
    fields = tuple(Comparison.__dataclass_fields__)
    write_csv(folder / "comparisons.csv", fields, [tuple(getattr(c, f) for f in fields) for c in tables.comparisons])
    fields = tuple(Cost.__dataclass_fields__)
    write_csv(
        folder / "costs.csv",
        ("competitor", *fields),
        [(name, *(getattr(cost, f) for f in fields)) for name, cost in tables.costs.items()],
    )
    if results is not None:
        fields = tuple(Row.__dataclass_fields__)
        write_csv(
            folder / "per_case.csv",
            ("dataset", "competitor", *("class" if f == "class_name" else f for f in fields)),
            [(d, c, *(getattr(row, f) for f in fields)) for d, found in results.items()
             for c, e in found.evaluations.items() for row in e.rows],
        )  # fmt: skip
    tables.save(folder / "benchmark.json")


def markdown(table: TextTable) -> str:
    """A table in Markdown; characters that would end a cell or start a tag are escaped."""
    align = ["---"] * table.left + ["---:"] * (len(table.columns) - table.left)
    lines = [table.columns, tuple(align), *table.rows]
    return "\n".join("| " + " | ".join(escape(cell) for cell in line) + " |" for line in lines)


def escape(text: str) -> str:
    """A text for Markdown; characters that would end a table's cell or start a tag are escaped."""
    text = text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def percent(value: float) -> str:
    """A score as the field prints it: ``0.87654`` → ``"87.65"``."""
    return NONE if math.isnan(value) else f"{100 * value:.2f}"


def number(metric: str, value: float) -> str:
    """A metric's value as the field prints it: distances in mm, everything else in percent."""
    if math.isnan(value):
        return NONE
    if metric in _UNITS:
        return f"{value:.2f}"
    if metric == "volume_error":
        return f"{100 * value:+.1f}".replace("-", "−")
    return f"{100 * value:.1f}" if metric == "absolute_volume_error" else percent(value)


def metric_name(metric: str, *, unit: bool = True) -> str:
    """A metric as a heading, with its unit: ``"HD95, mm"``."""
    return f"{METRIC_NAMES[metric]}, {_UNITS.get(metric, '%')}" if unit else METRIC_NAMES[metric]


def probability(value: float) -> str:
    """A p-value with two or three decimals."""
    if math.isnan(value):
        return NONE
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def amount(value: float | int | None) -> str:
    """A large number in a few characters: ``110280000`` → ``"110.3 M"``."""
    if value is None:
        return NONE
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.1f} {unit}"
    return f"{value:g}"


def score_columns(competitors: Sequence[str]) -> tuple[str, ...]:
    """Headings of DSC and NSD: metric by metric, competitor by competitor."""
    if len(competitors) == 1:
        return tuple(m.upper() for m in HEADLINE)
    return tuple(f"{c} {m.upper()}" for m in HEADLINE for c in competitors)


def cost_cells(cost: Cost) -> tuple[str, ...]:
    """A competitor's cost, in the order of the headings of the cost table."""
    case, scan = (NONE if v is None else f"{v:.1f} s" for v in (cost.seconds_per_case, cost.seconds_per_scan))
    disk, memory = (NONE if v is None else f"{amount(v)}B" for v in (cost.disk_bytes, cost.memory_bytes))
    return (
        amount(cost.models), amount(cost.parameters), disk, amount(cost.training_steps), case, scan, memory,
        amount(cost.threads),
    )  # fmt: skip


COST_COLUMNS = (
    "competitor", "models", "parameters", "disk", "training steps", "time per case", "time per scan", "peak memory",
    "threads",
)  # fmt: skip


def _score_cells(scores: MeanScores, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(percent(scores[c][m]) for m in HEADLINE for c in names)


def _groups(
    title: str, heading: str, groups: Sequence[GroupRow], tables: BenchmarkTables, *, published: bool = False
) -> TextTable:
    names = tables.competitors
    rows = []
    for g in groups:
        failures = " / ".join(str(g.failures[c]) if c in g.failures else NONE for c in names)
        rows.append((g.name, str(g.cases), str(g.classes), failures, *_score_cells(g.scores, names)))
        if published and g.kind in ("total", "external"):
            rows.append((f"{g.name}, micro", str(g.cases), str(g.classes), NONE, *_score_cells(g.micro, names)))
    if published:
        blank = (NONE,) * (len(names) - 1)
        rows += [
            (f"published: {p.name}", NONE, NONE, NONE, percent(p.dsc), *blank, percent(p.nsd), *blank)
            for p in tables.published
        ]
    columns = (heading, "cases", "classes", "failures", *score_columns(names))
    return TextTable(title=title, columns=columns, left=1, rows=tuple(rows))


def _other_metrics(groups: Sequence[GroupRow], tables: BenchmarkTables) -> TextTable:
    metrics = shown_metrics(tables)[len(HEADLINE) :]
    rows = [
        (g.name, c, *(number(m, g.scores[c][m]) for m in metrics))
        for g in groups
        for c in tables.competitors
        if metrics
    ]
    columns = ("group", "competitor", *(metric_name(m) for m in metrics))
    return TextTable(title="Distances, volumes, lesions", columns=columns, left=2, rows=tuple(rows))


def shown_metrics(tables: BenchmarkTables) -> list[str]:
    """The metrics that have a value, and always DSC and NSD."""
    return [
        m
        for m in METRICS
        if m in HEADLINE or any(not math.isnan(s[m]) for r in tables.classes for s in r.scores.values())
    ]


def _costs(tables: BenchmarkTables) -> TextTable:
    rows = tuple((name, *cost_cells(tables.costs[name])) for name in tables.competitors if name in tables.costs)
    return TextTable(title="Cost", columns=COST_COLUMNS, left=1, rows=rows)


def interval(low: float, high: float) -> str:
    """An interval of differences, in points."""
    if math.isnan(low) or math.isnan(high):
        return NONE
    return f"{100 * low:+.2f} … {100 * high:+.2f}".replace("-", "−")


def _comparisons(comparisons: Sequence[Comparison]) -> TextTable:
    rows = [
        (c.where, f"{c.first} – {c.second}", c.metric.upper(), f"{100 * c.difference:+.2f}", interval(c.low, c.high),
         str(c.pairs), str(c.wins), str(c.ties), str(c.losses), str(c.units), probability(c.p_value),
         probability(c.p_adjusted), probability(c.wilcoxon_p))
        for c in comparisons
    ]  # fmt: skip
    columns = ("where", "first – second", "metric", "difference", "95 % interval", "pairs", "wins", "ties", "losses",
               "units", "p", "adjusted p", "Wilcoxon p")  # fmt: skip
    return TextTable(title="Comparison", columns=columns, left=3, rows=tuple(rows))
