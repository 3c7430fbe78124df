"""Progress bars, logs and the summary of a long job; bars and tables come from rich."""

from __future__ import annotations

import contextlib
import io
import locale
import logging
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from satunet.errors import DiskFullError, SatunetError
from satunet.jobs.files import write_json
from satunet.jobs.workers import Outcome, Workers, outcomes, reason_of

Item = TypeVar("Item")
Result = TypeVar("Result")

logger = logging.getLogger(__name__)

_FIRST_LINE_SECONDS = 60.0
"""Without a terminal, time until the first line on a job's progress."""
_MOST_SECONDS_BETWEEN_LINES = 900.0
_NEVER_BROKEN = 100_000
"""Columns of a console that is not a terminal."""


def setup_logging(log_file: Path | None = None, *, verbose: bool = False) -> None:
    """Send satunet's log to the terminal, and to ``log_file`` as well if one is given.

    Calling it again replaces the log file; records go to the file at level DEBUG whatever the terminal shows.
    """
    root = logging.getLogger("satunet")
    root.setLevel(logging.DEBUG)
    root.propagate = False
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    terminal = _terminal_handler()
    terminal.setLevel(logging.DEBUG if verbose else logging.INFO)
    root.addHandler(terminal)
    if log_file is not None:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        to_file = _LogFile(log_file, encoding="utf-8")
        to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
        root.addHandler(to_file)


class _LogFile(logging.FileHandler):
    """A log file that reports once if it cannot be written (a full disk); the job itself goes on."""

    _told = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Print one line, instead of a traceback for every record."""
        if not self._told:
            self._told = True
            sys.stderr.write(f"{self.baseFilename}: the log cannot be written ({sys.exc_info()[1]})\n")


def _terminal_handler() -> logging.Handler:
    """A coloured handler on a terminal; in a pipe or file, one line per record for grep and log collectors."""
    console = _console()
    if console.is_terminal:
        from rich.logging import RichHandler

        return RichHandler(console=console, show_path=False, show_time=False, markup=False, rich_tracebacks=False)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)-8s %(message)s"))
    return handler


@contextlib.contextmanager
def prints_to_log(log: logging.Logger, source: str) -> Iterator[None]:
    """Send a library's output on stdout to a log at level DEBUG, so that it does not break progress bars.

    Args:
        log: Logger.
        source: Name of the library, put before each line.
    """
    text = io.StringIO()
    try:
        with contextlib.redirect_stdout(text):
            yield
    finally:
        for line in text.getvalue().splitlines():
            if line.strip():
                log.debug("%s: %s", source, line.rstrip())


@contextlib.contextmanager
def progress_bar(description: str, total: int | None) -> Iterator[Callable[..., None]]:
    """A progress bar with rate and time left; without a terminal, a line in the log now and then, and one at the end.

    Yields:
        A function ``advance(steps=1, note="")``; ``note`` is shown after the bar (a loss, a scan's name).
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    started = time.monotonic()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    console = _console()
    done, told = 0, _Told(description, total, started)
    with Progress(*columns, console=console, transient=False, disable=not console.is_terminal) as bars:
        task = bars.add_task(description, total=total, rate="", note="")

        def advance(steps: int = 1, note: str = "") -> None:
            nonlocal done
            done += steps
            seconds = max(time.monotonic() - started, 1e-9)
            rate = f"{done / seconds:.1f}/s" if done > seconds else f"{seconds / max(done, 1):.1f} s each"
            bars.update(task, advance=steps, rate=rate, note=note)
            if not console.is_terminal:
                told.now_and_then(done, note)

        yield advance
    if not console.is_terminal:
        logger.info("%s: %s in %.1f s", description, _count(done, total), time.monotonic() - started)


@dataclass
class _Told:
    """Lines on a job's progress for a log: the first after a minute, then at growing intervals."""

    description: str
    total: int | None
    started: float
    interval: float = _FIRST_LINE_SECONDS

    def __post_init__(self) -> None:
        self._last = self.started

    def now_and_then(self, done: int, note: str) -> None:
        """Log how much is done, if it is time."""
        now = time.monotonic()
        if now - self._last < self.interval:
            return
        self._last, self.interval = now, min(2 * self.interval, _MOST_SECONDS_BETWEEN_LINES)
        passed = now - self.started
        left = f", about {_spoken(passed * (self.total - done) / done)} left" if self.total and done > 0 else ""
        logger.info(
            "%s: %s in %s%s%s",
            self.description,
            _count(done, self.total),
            _spoken(passed),
            left,
            f" ({note})" if note else "",
        )


def _count(done: int, total: int | None) -> str:
    """Number of items that have ended. It does not say "done": failures and earlier results count, too."""
    return str(done) if total is None else f"{done} of {total}"


def _spoken(seconds: float) -> str:
    """A duration for people."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def track(iterable: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Go through ``iterable`` under a progress bar; see :func:`progress_bar`."""
    if total is None and isinstance(iterable, Collection):
        total = len(iterable)
    with progress_bar(description, total) as advance:
        for item in iterable:
            yield item
            advance()


def run_parallel(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    description: str,
    processes: int | Workers = 1,
    key: Callable[[Item], str] = str,
    needs: Callable[[Item], int] | None = None,
) -> Iterator[Outcome[Item, Result]]:
    """Run ``function`` on every item in worker processes, under a progress bar; outcomes come as they end.

    An error that ``function`` raises, or the death of a worker, affects only the item that it happened to.

    Args:
        function: A function that can be pickled; it runs in a fresh (spawned) process.
        items: Items to run it on.
        description: Text of the progress bar.
        processes: Number of worker processes, or workers of another kind; with 0 or 1, everything runs in this process.
        key: Short name of an item, for the progress bar.
        needs: Function that returns the bytes of memory an item will need; items run at the same time as far as memory
            allows.

    Yields:
        One outcome per item, in the order in which they end.

    Raises:
        DiskFullError: The disk was full for an item.
    """
    items = list(items)
    with progress_bar(description, len(items)) as advance:
        workers = processes if isinstance(processes, Workers) else Workers(processes=processes)
        for outcome in outcomes(function, items, workers, needs):
            if isinstance(outcome.error, DiskFullError):
                raise outcome.error  # all following items would fail as well, with misleading reasons
            advance(note=key(outcome.item))
            yield outcome


@dataclass
class JobSummary:
    """Counts and reasons of a job over many scans, and the exit code that follows.

    Attributes:
        name: Name of the job, for headings and messages.
    """

    name: str
    done_items: list[str] = field(default_factory=list)
    skipped_items: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    def done(self, item: str) -> None:
        """Count an item as done."""
        self.done_items.append(item)

    def skipped(self, item: str) -> None:
        """Count an item that needed no work."""
        self.skipped_items.append(item)

    def failed(self, item: str, error: BaseException | str) -> None:
        """Count an item as failed and log why; the traceback of an unexpected error goes to the log file."""
        reason = reason_of(error) if isinstance(error, BaseException) else error
        if isinstance(error, BaseException) and not isinstance(error, SatunetError):
            logger.debug("%s failed", item, exc_info=error)
        self.failures[item] = reason
        logger.error("%s: %s", item, reason)

    def note(self, key: str, value: str) -> None:
        """Add a line to the summary."""
        self.notes[key] = value

    def include(self, other: JobSummary) -> None:
        """Add another job's counts to this one's."""
        self.done_items += other.done_items
        self.skipped_items += other.skipped_items
        self.failures |= other.failures
        self.notes |= other.notes

    @property
    def exit_code(self) -> int:
        """0 if nothing failed, else 1."""
        return 1 if self.failures else 0

    def show(self) -> None:
        """Print the summary as a table."""
        from rich.table import Table

        seconds = time.monotonic() - self.started
        table = Table(title=self.name, title_justify="left", show_header=False)
        if self.done_items or self.skipped_items or self.failures or not self.notes:  # a plan has no items, only notes
            table.add_row("done", str(len(self.done_items)))
            table.add_row("already done", str(len(self.skipped_items)))
            table.add_row("failed", str(len(self.failures)), style="red" if self.failures else None)
        for key, value in self.notes.items():
            table.add_row(key, value)
        table.add_row("time", f"{seconds:.1f} s")
        console = _console()
        console.print(table)
        for item, reason in self.failures.items():
            console.print(f"failed: {item}: {reason}", style="red", markup=False, highlight=False)
        logger.debug("%s: %s", self.name, self._content())

    def save(self, path: Path) -> None:
        """Write the summary as JSON."""
        write_json(path, self._content())

    def _content(self) -> dict[str, Any]:
        return {
            "job": self.name,
            "done": self.done_items,
            "already_done": self.skipped_items,
            "failed": self.failures,
            "notes": self.notes,
            "seconds": round(time.monotonic() - self.started, 3),
        }


_shared_console: list[Any] = []


def _console() -> Any:
    """The shared console on stderr, so that stdout has only results."""
    from rich.console import Console

    if not _shared_console or _shared_console[0].file is not sys.stderr:
        # Without a terminal, lines are not wrapped: whatever reads a pipe reads lines.
        _shared_console[:] = [Console(file=sys.stderr, width=None if sys.stderr.isatty() else _NEVER_BROKEN)]
    return _shared_console[0]


def in_locale(value: object) -> str:
    """A value's text, limited to characters of the locale's encoding, in which nnU-Net's log file is opened."""
    encoding = locale.getpreferredencoding(False)
    return str(value).encode(encoding, "replace").decode(encoding)
