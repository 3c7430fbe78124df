"""Pictures of scored cases, drawn from the scan, the reference and the prediction of each competitor."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from satunet.errors import MissingFileError, ScanError
from satunet.evaluation.benchmark.tasks import Task, predicted_ids
from satunet.evaluation.report.overlays import Overlay, class_index_map, draw_overlay
from satunet.evaluation.report.tables import percent
from satunet.evaluation.scoring.masks import FolderMasks, PredictedLabels
from satunet.evaluation.scoring.predictions import find_predictions
from satunet.evaluation.scoring.scores import Evaluation, mean_of
from satunet.geometry import Grid
from satunet.images.hounsfield import to_hounsfield
from satunet.images.image import Image, read_image, read_label_map
from satunet.jobs.file_names import safe_name
from satunet.labels.scored import ScoredClasses
from satunet.viewing.page import write_page
from satunet.viewing.structures import Structure

logger = logging.getLogger(__name__)

ALL_PICTURES_BYTES = 6_000_000
"""Approximate size of all pictures of a report together; base64 adds a third."""

PAGE_VOXELS = 8_000_000
"""Number of voxels above which a scan is shown at reduced resolution: a benchmark has many pages."""

Folders = Mapping[str, Callable[[Task], Path]]
"""Competitor → function that gives the folder of its predictions for a task."""


@dataclass(frozen=True, kw_only=True)
class ReportCase:
    """A scored case to show.

    Attributes:
        dataset: Name of the dataset.
        case: Identifier.
        image: The scan.
        reference: Label map of the reference.
        classes: The classes, with their ids in the reference.
        predictions: Competitor → folder of predictions.
        prediction_classes: Competitor → classes, where its label maps have ids of their own.
        modality: Modality of the scan, if known.
        notes: Competitor → a line to show below its name.
        rank: Rank among the dataset's cases, such as ``"median"``.
    """

    dataset: str
    case: str
    image: Path
    reference: Path
    classes: ScoredClasses
    predictions: Mapping[str, Path]
    prediction_classes: Mapping[str, ScoredClasses] = field(default_factory=dict)
    modality: str | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
    rank: str = ""


def cases_to_show(
    results: Mapping[str, Evaluation], tasks: Sequence[Task], folders: Folders, *, few: bool
) -> list[ReportCase]:
    """The best, the median and the worst case of a dataset by the first competitor's DSC; with ``few``, the median."""
    first = next(iter(results.values()))
    by_case: dict[str, list[float]] = {}
    for row in first.rows:
        by_case.setdefault(row.case, []).append(row.dsc)
    means = {case: mean_of(values) for case, values in by_case.items()}
    ordered = sorted((c for c in means if means[c] == means[c]), key=lambda c: (means[c], c))
    if not ordered:
        return []
    chosen = {"median": ordered[len(ordered) // 2]}
    if not few:
        chosen |= {"best": ordered[-1], "worst": ordered[0]}
    shown: dict[str, str] = {}
    for rank in ("median", "best", "worst"):
        if rank in chosen and chosen[rank] not in shown.values():
            shown[rank] = chosen[rank]
    if len(shown) == 1:
        shown = {"": next(iter(shown.values()))} if len(ordered) == 1 else shown
    return [_report_case(case, rank, results, tasks, folders) for rank, case in shown.items()]


def _report_case(
    name: str, rank: str, results: Mapping[str, Evaluation], tasks: Sequence[Task], folders: Folders
) -> ReportCase:
    task = next(t for t in tasks if name in t.references)
    case = next(c for c in task.cases if c.identifier == name)
    notes = {}
    for competitor, evaluation in results.items():
        value = mean_of(r.dsc for r in evaluation.rows if r.case == name)
        notes[competitor] = f"DSC {percent(value)}"
    return ReportCase(
        dataset=task.dataset.name,
        case=name,
        image=case.images[0],
        reference=task.references[name],
        classes=task.classes,
        predictions={c: folders[c](task) for c in results},
        prediction_classes={c: ids for c in results if (ids := predicted_ids(task, folders[c](task))) is not None},
        modality=task.dataset.modalities[0],
        notes=notes,
        rank=rank,
    )


def draw_cases(cases: Sequence[ReportCase], pages: Path | None = None) -> list[Overlay]:
    """Draw cases; a case that cannot be drawn is logged and left out, a prediction that cannot be read stays empty.

    Args:
        cases: Cases to draw.
        pages: Folder beside the report for browsable pages, one for each case; by default none are written.
    """
    pictures = sum(len(c.predictions) + 1 for c in cases)
    most_bytes = max(10_000, min(60_000, ALL_PICTURES_BYTES // max(1, pictures)))
    overlays = []
    for case in cases:
        try:
            overlays.append(_draw(case, most_bytes, pages))
        except (ScanError, OSError, ValueError) as error:
            logger.warning("no picture of %s, %s: %s", case.dataset, case.case, error)
    return overlays


def _draw(case: ReportCase, most_bytes: int, pages: Path | None) -> Overlay:
    image = read_image(case.image)
    if case.modality == "ct":
        image = replace(image, array=to_hounsfield(image.array))
    names = list(case.classes.names)
    # Scoring has already decided that a file of this shape lies on this grid.
    reference = read_label_map(case.reference, grid=image.grid, trust_shape=True).array
    maps: dict[str, NDArray[np.uint16] | None] = {"reference": _from_labels(reference, case.classes.ids, names)}
    for competitor, folder in case.predictions.items():
        try:
            maps[competitor] = _predicted(folder, case, case.prediction_classes.get(competitor), names, image.grid)
        except (ScanError, OSError) as error:
            logger.info("no picture of %s, %s, by %s: %s", case.dataset, case.case, competitor, error)
            maps[competitor] = None
    overlay = draw_overlay(
        image,
        maps,
        names,
        dataset=case.dataset,
        case=case.case,
        modality=case.modality,
        notes=case.notes,
        most_bytes=most_bytes,
        rank=case.rank,
    )
    return overlay if pages is None else replace(overlay, page=_write_page(case, image, maps, names, pages))


def _write_page(
    case: ReportCase, image: Image, maps: Mapping[str, NDArray[np.uint16] | None], names: Sequence[str], pages: Path
) -> str:
    """Write a page with the scan, the reference and every prediction; returns its address relative to the report."""
    structures = [s for group, found in maps.items() if found is not None for s in _structures(found, names, group)]
    file = pages / f"{safe_name(f'{case.dataset} {case.case}')}.html"
    title = f"{case.dataset}, {case.case}" + (f" ({case.rank})" if case.rank else "")
    write_page(file, image, structures, title=title, modality=case.modality, most_voxels=PAGE_VOXELS)
    return f"{quote(pages.name)}/{quote(file.name)}"


def _structures(labels: NDArray[np.uint16], names: Sequence[str], group: str) -> list[Structure]:
    """Structures of a map of class numbers, of which 1 is the first name."""
    return [
        Structure(name=names[number], kind=names[number], group=group, box=(box[0], box[1], box[2]),
                  inside=labels[box] == number + 1)
        for number, box in enumerate(find_objects(labels.astype(np.int32)))
        if box is not None
    ]  # fmt: skip


def _predicted(
    folder: Path, case: ReportCase, own: ScoredClasses | None, names: Sequence[str], grid: Grid
) -> NDArray[np.uint16]:
    found = find_predictions(folder, [case.case])[0][case.case]
    if not found:
        raise MissingFileError(folder, f"no prediction of {case.case}")
    if not found[0].path.is_dir():
        anything = replace(case.classes, allowed_ids=None)
        predicted = None if own is None else replace(own, allowed_ids=None)
        labels = PredictedLabels(found[0].path, grid, anything, predicted=predicted, trust_shape=True)
        return _from_labels(labels.labels, labels.classes, names)
    folder_of_masks = FolderMasks(found[0].path, grid, classes=case.classes, trust_shape=True)
    masks = {}
    for name in names:
        try:
            masks[name] = folder_of_masks.whole(name)
        except ScanError:
            continue  # a missing mask is listed among the failures; the others are still shown
    return class_index_map(masks, names, grid.shape)


def _from_labels(
    labels: NDArray[np.integer[Any]], classes: Mapping[str, Sequence[int]], names: Sequence[str]
) -> NDArray[np.uint16]:
    """Renumber a label map; where classes share ids, the one with fewer ids wins."""
    highest = max(int(labels.max(initial=0)), *(i for ids in classes.values() for i in ids), 0)
    table = np.zeros(highest + 1, dtype=np.uint16)
    for name in sorted((n for n in names if n in classes), key=lambda n: -len(classes[n])):
        table[list(classes[name])] = names.index(name) + 1
    table[0] = 0
    renumbered: NDArray[np.uint16] = table[labels]
    return renumbered
