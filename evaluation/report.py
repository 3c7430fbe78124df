"""The report: one HTML file that opens offline, a Markdown table and pictures."""

from __future__ import annotations

import base64
import datetime
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from satunet import __version__
from satunet.errors import SatunetError
from satunet.evaluation.benchmark import METRICS, BenchmarkTables, number
from satunet.evaluation.overlays import bars_png, overlay_png, scatter_png
from satunet.files import atomic_path, mask_file_name, read_json, write_text
from satunet.imageio import IMAGE_ENDINGS, list_images, read_image, read_label_map, strip_ending

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ReportCase:
    """A scored case to show.

    Attributes:
        dataset: Its dataset.
        case: Identifier.
        image: The scan.
        reference: Its label map.
        classes: Class → ids in the reference.
        predictions: Competitor → folder of predictions.
    """

    dataset: str
    case: str
    image: Path
    reference: Path
    classes: Mapping[str, Sequence[int]]
    predictions: Mapping[str, Path]


def write_report(output: Path, tables: BenchmarkTables, cases: Sequence[ReportCase]) -> Path:
    """Write ``report.html``, ``report.md`` and ``overlay_<dataset>.png``.

    Args:
        output: Folder.
        tables: The numbers.
        cases: Cases to show as pictures; one that cannot be drawn is left out and logged.

    Returns:
        The HTML file.
    """
    from jinja2 import Environment, FileSystemLoader, select_autoescape

    overlays = []
    for case in cases:
        try:
            png = _overlay(case)
        except (SatunetError, OSError, ValueError, KeyError) as error:
            logger.warning("no picture of %s/%s: %s", case.dataset, case.case, error)
            continue
        with atomic_path(output / f"overlay_{case.dataset}.png") as temporary:
            temporary.write_bytes(png)
        overlays.append({"dataset": case.dataset, "case": case.case, "png": base64.b64encode(png).decode()})
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape(default=True, default_for_string=True)
    )
    html = environment.get_template("report.jinja").render(**_content(tables), overlays=overlays)
    write_text(output / "report.html", html)
    write_text(output / "report.md", _markdown(tables))
    return output / "report.html"


def _content(tables: BenchmarkTables) -> dict[str, Any]:
    competitors = tables.competitors
    classes = len({r.name for r in tables.rows})
    cards = [
        {"name": f"{c}: mean {'DSC' if m == 'dsc' else 'NSD'} over {classes} classes", "value": number(tables.overall[c][m])}
        for c in competitors
        for m in METRICS
    ]
    datasets = [
        {"name": d, "classes": sum(r.dataset == d for r in tables.rows), "cells": _cells(means, competitors)}
        for d, means in tables.datasets.items()
    ]
    datasets.append({"name": "mean over classes", "classes": classes, "total": True,
                     "cells": _cells(tables.overall, competitors)})  # fmt: skip
    if tables.lesions:
        datasets.append({"name": "lesions", "classes": len({r.name for r in tables.rows if r.lesion}), "total": True,
                         "cells": _cells(tables.lesions, competitors)})  # fmt: skip
    return {
        "title": "satunet benchmark",
        "subtitle": f"{' against '.join(competitors)} on {len(tables.datasets)} datasets, {classes} classes.",
        "cards": cards,
        "tolerance": f"{tables.tolerance_mm:g}",
        "competitors": competitors,
        "datasets": datasets,
        "comparisons": [
            {
                "name": f"{c.first} − {c.second}",
                "metric": c.metric.upper(),
                "wins": c.wins,
                "ties": c.ties,
                "losses": c.losses,
                "difference": f"{c.mean_difference:+.3f}",
                "p": "–" if c.p_value is None else f"{c.p_value:.2g}",
            }
            for c in tables.comparisons
        ],
        "costs": [
            {
                "name": name,
                "networks": cost.networks,
                "parameters": f"{cost.parameters / 1e6:.2f} M",
                "disk": f"{cost.disk_mb:.1f} MB",
                "steps": f"{cost.steps:,}" if cost.steps else "–",
                "seconds": f"{cost.seconds_per_scan:.1f} s" if cost.seconds_per_scan is not None else "–",
            }
            for name, cost in tables.costs.items()
        ],
        "plots": _plots(tables),
        "classes": [
            {"name": r.name, "dataset": r.dataset, "cases": r.cases, "cells": _cells(r.scores, competitors)}
            for r in tables.rows
        ],
        "failures": [{"name": n, "reason": r} for n, r in tables.failures.items()],
        "version": __version__,
        "date": datetime.datetime.now().strftime("%Y-%m-%d %H:%M"),
    }


def _cells(scores: Mapping[str, Mapping[str, float]], competitors: Sequence[str]) -> list[dict[str, Any]]:
    cells = []
    best = {m: max((v for c in competitors if not math.isnan(v := scores.get(c, {}).get(m, math.nan))), default=math.nan)
            for m in METRICS}  # fmt: skip
    for competitor in competitors:
        for metric in METRICS:
            value = scores.get(competitor, {}).get(metric, math.nan)
            cells.append({"text": number(value), "best": len(competitors) > 1 and value == best[metric]})
    return cells


def _plots(tables: BenchmarkTables) -> list[str]:
    plots = []
    rows = sorted(tables.rows, key=lambda r: (r.dataset, r.name))
    if len(tables.competitors) > 1:
        first, second = tables.competitors[:2]
        pairs = [(r.scores[second]["dsc"], r.scores[first]["dsc"]) for r in rows if first in r.scores and second in r.scores]
        if pairs:
            x, y = zip(*pairs, strict=True)
            plots.append(scatter_png(x, y, f"{second} DSC", f"{first} DSC"))
    # Several datasets may draw one class: bars show the mean over them, the table every one.
    names = sorted({r.name for r in rows})[:80]
    values = {
        c: [float(np.nanmean([r.scores[c]["dsc"] for r in rows if r.name == n and c in r.scores] or [math.nan]))
            for n in names]
        for c in tables.competitors
    }  # fmt: skip
    plots.append(bars_png(names, values, "DSC, mean over datasets"))
    return [base64.b64encode(p).decode() for p in plots]


def _overlay(case: ReportCase) -> bytes:
    image = read_image(case.image)
    reference = read_label_map(case.reference, grid=image.grid).array
    numbers = {name: i + 1 for i, name in enumerate(sorted(case.classes))}
    labels = {"reference": _renumber(reference, case.classes, numbers)}
    for competitor, folder in case.predictions.items():
        found = _prediction(folder, case, numbers)
        if found is not None:
            labels[competitor] = found
    return overlay_png(image.array, image.grid, labels)


def _prediction(folder: Path, case: ReportCase, numbers: Mapping[str, int]) -> Any:
    masks = folder / case.case
    if masks.is_dir():
        files = {strip_ending(p.name): p for p in list_images(masks)}
        combined = None
        for name, value in numbers.items():
            path = files.get(mask_file_name(name))
            if path is not None:
                mask = read_label_map(path).array > 0
                combined = np.zeros(mask.shape, dtype=np.uint16) if combined is None else combined
                combined[mask] = value
        return combined
    for ending in IMAGE_ENDINGS:
        path = folder / f"{case.case}{ending}"
        if path.is_file():
            legend = folder / f"{case.case}.json"
            classes: Mapping[str, Sequence[int]] = case.classes
            if legend.is_file():
                classes = {n: (int(i),) for n, i in read_json(legend)["labels"].items() if n in numbers}
            return _renumber(read_label_map(path).array, classes, numbers)
    return None


def _renumber(labels: Any, classes: Mapping[str, Sequence[int]], numbers: Mapping[str, int]) -> Any:
    result = np.zeros(labels.shape, dtype=np.uint16)
    for name, ids in classes.items():
        result[np.isin(labels, list(ids))] = numbers[name]
    return result


def _markdown(tables: BenchmarkTables) -> str:
    heads = [f"{c} {m.upper()}" for c in tables.competitors for m in METRICS]
    lines = [
        "| dataset | " + " | ".join(heads) + " |",
        "|---|" + "---:|" * len(heads),
    ]
    rows = [*tables.datasets.items(), ("mean over classes", tables.overall)]
    for name, means in rows:
        lines.append(f"| {name} | " + " | ".join(c["text"] for c in _cells(means, tables.competitors)) + " |")
    if tables.failures:
        lines += ["", "Partial: " + "; ".join(f"{n}: {r}" for n, r in tables.failures.items())]
    return "\n".join(lines) + "\n"
