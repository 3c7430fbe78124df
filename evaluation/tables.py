"""A benchmark's tables as text: for the terminal, as CSV files, and as Markdown.

Scores are printed in percent, as the field does; files hold fractions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from satunet.evaluation.benchmark import BenchmarkTables, Comparison, Cost, GroupRow
from satunet.evaluation.scores import METRICS, write_csv

if TYPE_CHECKING:
    from rich.console import Console

NONE = "–"
"""Shown where there is no number."""


@dataclass(frozen=True, kw_only=True)
class TextTable:
    """A table of texts.

    Attributes:
        title: Heading.
        columns: Names of the columns.
        left: How many columns, from the left, are texts; the others are numbers.
        rows: Cells.
    """

    title: str
    columns: tuple[str, ...]
    left: int
    rows: tuple[tuple[str, ...], ...]


def print_table(tables: BenchmarkTables, *, console: Console | None = None, classes: bool = False) -> None:
    """Print the tables, to stdout unless a console is given.

    Args:
        tables: What to print.
        console: Where to.
        classes: Also the table of every class of every dataset.
    """
    from rich import box
    from rich.console import Console as NewConsole
    from rich.table import Table
    from rich.text import Text

    console = console or NewConsole()
    if not console.is_terminal:
        console.width = max(console.width, 140)  # a file or a pipe has no width of its own
    for table in text_tables(tables, classes=classes, cases=False):
        shown = Table(title=Text(table.title), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for i, column in enumerate(table.columns):
            text = i < table.left
            shown.add_column(
                Text(column), justify="left" if text else "right", no_wrap=not text, overflow="fold", min_width=5
            )
        for row in table.rows:
            shown.add_row(*(Text(cell) for cell in row))
        console.print(shown)


def text_tables(tables: BenchmarkTables, *, classes: bool = True, cases: bool = True) -> list[TextTable]:
    """The tables that have a row.

    Args:
        tables: What they say.
        classes: Also every class of every dataset.
        cases: Also the comparisons over the cases of each dataset.
    """
    shown = [
        _groups("All datasets", "group", tables.totals, tables),
        _costs(tables),
        _groups("Datasets", "dataset", tables.datasets, tables),
        _comparisons([c for c in tables.comparisons if cases or c.where == "total"]),
    ]
    if classes:
        rows = [
            (r.dataset, r.class_name, str(r.scans), *_score_cells(r.scores, tables.competitors)) for r in tables.classes
        ]
        columns = ("dataset", "class", "scans", *score_columns(tables.competitors))
        shown.append(TextTable(title="Classes", columns=columns, left=2, rows=tuple(rows)))
    return [t for t in shown if t.rows]


def write_tables(tables: BenchmarkTables, folder: Path) -> None:
    """Write ``{classes,datasets,totals,comparisons,costs}.csv`` and ``benchmark.json``."""
    names = tables.competitors
    columns = tuple(f"{m} {c}" for m in METRICS for c in names)
    write_csv(
        folder / "classes.csv",
        ("dataset", "class", "lesion", "scans", *columns),
        [
            (r.dataset, r.class_name, int(r.lesion), r.scans, *(r.scores[c][m] for m in METRICS for c in names))
            for r in tables.classes
        ],
    )
    for name, groups in (("datasets", tables.datasets), ("totals", tables.totals)):
        write_csv(
            folder / f"{name}.csv",
            (name[:-1], "cases", "classes", "classes left out", *(f"failures {c}" for c in names), *columns),
            [
                (g.name, g.cases, g.classes, g.left_out, *(g.failures.get(c) for c in names),
                 *(g.scores[c][m] for m in METRICS for c in names))
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
    tables.save(folder / "benchmark.json")


def markdown(table: TextTable) -> str:
    """A table in Markdown, with what would end a cell or start a tag escaped."""
    align = ["---"] * table.left + ["---:"] * (len(table.columns) - table.left)
    lines = [table.columns, tuple(align), *table.rows]
    return "\n".join("| " + " | ".join(escape(cell) for cell in line) + " |" for line in lines)


def escape(text: str) -> str:
    """A text for Markdown: what would end a table's cell or start a tag is escaped."""
    text = text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def percent(value: float) -> str:
    """A score as the field prints it: ``0.87654`` → ``"87.65"``."""
    return NONE if math.isnan(value) else f"{100 * value:.2f}"


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
    """Headings of the scores: metric by metric, competitor by competitor."""
    if len(competitors) == 1:
        return tuple(m.upper() for m in METRICS)
    return tuple(f"{c} {m.upper()}" for m in METRICS for c in competitors)


def cost_cells(cost: Cost) -> tuple[str, ...]:
    """A competitor's cost, in the order of the headings of the cost table."""
    seconds = NONE if cost.seconds_per_scan is None else f"{cost.seconds_per_scan:.1f} s"
    disk = NONE if cost.disk_bytes is None else f"{amount(cost.disk_bytes)}B"
    return amount(cost.models), amount(cost.parameters), disk, amount(cost.training_steps), seconds


COST_COLUMNS = ("competitor", "models", "parameters", "disk", "training steps", "time a scan")


def _score_cells(scores: dict[str, dict[str, float]], names: Sequence[str]) -> tuple[str, ...]:
    return tuple(percent(scores[c][m]) for m in METRICS for c in names)


def _groups(title: str, heading: str, groups: Sequence[GroupRow], tables: BenchmarkTables) -> TextTable:
    names = tables.competitors
    rows = []
    for g in groups:
        failures = " / ".join(str(g.failures[c]) if c in g.failures else NONE for c in names)
        rows.append((g.name, str(g.cases), str(g.classes), failures, *_score_cells(g.scores, names)))
    columns = (heading, "cases", "classes", "failures", *score_columns(names))
    return TextTable(title=title, columns=columns, left=1, rows=tuple(rows))


def _costs(tables: BenchmarkTables) -> TextTable:
    rows = tuple((name, *cost_cells(tables.costs[name])) for name in tables.competitors if name in tables.costs)
    return TextTable(title="Cost", columns=COST_COLUMNS, left=1, rows=rows)


def _comparisons(comparisons: Sequence[Comparison]) -> TextTable:
    rows = [
        (c.where, f"{c.first} – {c.second}", c.metric.upper(), str(c.pairs), str(c.wins), str(c.ties), str(c.losses),
         f"{100 * c.difference:+.2f}", probability(c.p_value))
        for c in comparisons
    ]  # fmt: skip
    columns = ("where", "first – second", "metric", "pairs", "wins", "ties", "losses", "difference", "p")
    return TextTable(title="Comparison", columns=columns, left=3, rows=tuple(rows))
