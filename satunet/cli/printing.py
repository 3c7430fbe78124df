"""Tables for people, as commands print them."""

from __future__ import annotations


def print_rows(rows: list[dict[str, object]], title: str) -> None:
    """Print rows as a table, whose columns are their keys."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    for column in columns:
        table.add_column(column.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(row.get(column, ""))) for column in columns))
    console = Console()
    # A pipe has no width, and a table cut to 80 columns would hide what the user wants to see.
    console = console if console.is_terminal else Console(width=200)
    console.print(table)


def _cell(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
