"""A benchmark from datasets to report: the contest of :mod:`satunet.evaluation.benchmark`, written by
:mod:`satunet.evaluation.report`.

::

    OUTPUT/predictions/…, OUTPUT/scores/…                    see :mod:`satunet.evaluation.benchmark.run`
    OUTPUT/report.html, report.md, *.csv, benchmark.json, benchmark_summary.json
    OUTPUT/pages/<dataset>_<case>.html       browsable cases of the report, with reference and predictions

Tables and report are written after every dataset; until the last one, they say what is still missing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from satunet.evaluation.benchmark.conclusions.results import BenchmarkTables
from satunet.evaluation.benchmark.run import Contest, Standing, run_contest
from satunet.evaluation.report.document import write_report
from satunet.evaluation.report.pictures import ReportCase, cases_to_show, draw_cases
from satunet.evaluation.report.tables import print_table
from satunet.jobs.progress import JobSummary

_REPORT_SECONDS = 60.0
"""Shortest time between two writings of an unfinished report."""
PAGES = "pages"
"""Folder of browsable pages, beside the report."""
_MANY_DATASETS = 30
"""Number of datasets above which one case of each is shown instead of three."""


def run_benchmark(
    dataset_names: Sequence[str],
    contest: Contest,
    *,
    pictures: bool = True,
    report_seconds: float = _REPORT_SECONDS,
) -> tuple[BenchmarkTables, JobSummary]:
    """Run a contest, print its tables and write its report.

    Args:
        dataset_names: Datasets to score.
        contest: Competitors and rules.
        pictures: Whether the final report has charts and pictures of cases.
        report_seconds: Shortest time between two writings of an unfinished report.

    Returns:
        The tables, and the failures; the report is ``report.html`` in the output folder.

    Raises:
        UserError: No dataset could be scored at all.
    """
    written = time.monotonic() - report_seconds
    standing: Standing | None = None

    def write(make: Callable[[], Standing], final: bool) -> None:
        nonlocal written, standing
        if not final and time.monotonic() - written < report_seconds:
            return
        standing = make()
        overlays = draw_cases(_cases(standing, contest), contest.output / PAGES) if final and pictures else []
        write_report(contest.output, standing.tables, overlays=overlays, results=standing.results, charts=pictures)
        written = time.monotonic()

    summary = run_contest(dataset_names, contest, write)
    assert standing is not None  # a contest that ends well was written
    print_table(standing.tables)
    summary.note("report", str(contest.output / "report.html"))
    summary.save(contest.output / "benchmark_summary.json")
    return standing.tables, summary


def _cases(standing: Standing, contest: Contest) -> list[ReportCase]:
    folders = {c.name: c.folder for c in contest.competitors}
    cases = []
    for dataset, found in standing.results.items():
        own = {c: found.evaluations[c] for c in standing.tables.competitors if c in found.evaluations}
        tasks = [t for t in standing.tasks if t.dataset.name == dataset]
        cases += cases_to_show(own, tasks, folders, few=len(standing.results) > _MANY_DATASETS)
    return cases
