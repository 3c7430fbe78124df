"""The copy baseline: the label map of the nearest other scan, placed by the affines. It never looks at the image.

A network that does not beat it has only learned where things usually are.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satunet.datasets.raw import Case
from satunet.errors import ScanError
from satunet.evaluation.benchmark.conclusions.results import Cost
from satunet.evaluation.benchmark.stamps import STAMP, is_fresh
from satunet.evaluation.benchmark.tasks import Task
from satunet.geometry import Grid
from satunet.images.image import Image, read_grid, read_label_map, write_label_map
from satunet.jobs.files import write_json
from satunet.jobs.fresh import Stamp
from satunet.jobs.records import fields_of, to_plain

logger = logging.getLogger(__name__)

_LEAST_OVERLAP = 0.5
"""Smallest share of the scan inside the other one's field of view for the affines to be trusted."""


@dataclass(kw_only=True)
class NearestCopyCompetitor:
    """Copies, for every case, the labels of the training case whose field of view is nearest.

    Cases of the same patient, and cases that are scored, are never copied. Where the two fields of view hardly overlap
    in scanner coordinates, their centres are aligned.

    Attributes:
        output: Folder of all predictions.
        name: Name of the competitor.
    """

    output: Path
    name: str = "nearest copy"
    _grids: dict[Path, Grid] = field(default_factory=dict, repr=False)

    def folder(self, task: Task) -> Path:
        """``<output>/<name>/<dataset>/fold_<fold>``."""
        return self.output / self.name / task.name

    def channels(self, task: Task) -> None:
        """One prediction per case is enough."""

    def trained_cases(self, task: Task) -> frozenset[str]:
        """Cases that may be copied: never a case that is scored."""
        return frozenset()

    def predict(self, task: Task) -> dict[str, str]:
        """Write a label map for each case, an empty one if there is no case to copy from."""
        folder, failures = self.folder(task), {}
        donors = self._donors(task)
        for case in task.cases:
            try:
                self._predict_case(task, case, donors, folder)
            except ScanError as error:
                failures[case.identifier] = str(error)
        return failures

    def release(self) -> None:
        """Nothing is kept in memory."""

    def cost(self, tasks: Sequence[Task]) -> Cost | None:
        """No network."""
        return None

    def _donors(self, task: Task) -> list[Case]:
        if not (task.dataset.folder / "imagesTr").is_dir():
            return []
        scored = {case.identifier for case in task.cases}
        every = task.dataset.training_cases()
        others = [c for c in every if c.label is not None and c.identifier not in scored]
        # Where every case is scored, as in an external dataset, labels are copied between its patients.
        return others or [c for c in every if c.label is not None]

    def _predict_case(self, task: Task, case: Case, donors: Sequence[Case], folder: Path) -> None:
        grid = read_grid(task.references[case.identifier])
        others = [c for c in donors if task.patient(c.identifier) != task.patient(case.identifier)]
        nearest = min(others, key=lambda c: (distance_mm(self._grid(c), grid), c.identifier), default=None)
        target, note = folder / f"{case.identifier}.nii.gz", folder / f"{case.identifier}.copied.json"
        combined = {"case": None if nearest is None else nearest.identifier, "grid": fields_of(grid)}
        files = [nearest.label] if nearest is not None and nearest.label is not None else []
        if target.is_file() and is_fresh(note, files, combined):
            return
        stamp = Stamp.of(files, combined)
        if nearest is None or nearest.label is None:
            logger.info("%s: there is no case to copy for %s; nothing is predicted", task.dataset.name, case.identifier)
            labels: NDArray[Any] = np.zeros(grid.shape, dtype=np.uint8)
        else:
            labels = copied(read_label_map(nearest.label, allowed_ids=task.dataset.label_ids), grid)
            if task.dataset.ignore_label is not None:
                labels[labels == task.dataset.ignore_label] = 0
        write_label_map(target, labels, like=grid)
        write_json(note, {STAMP: to_plain(stamp)}, sealed=True)

    def _grid(self, case: Case) -> Grid:
        assert case.label is not None  # donors have one
        if case.label not in self._grids:
            self._grids[case.label] = read_grid(case.label)
        return self._grids[case.label]


def copied(labels: Image, grid: Grid) -> NDArray[Any]:
    """A label map on another grid: at every voxel the nearest label in millimetres, background outside.

    Args:
        labels: The label map to copy.
        grid: Grid to copy to.

    Returns:
        (X, Y, Z) of ``grid``, in the type of ``labels``.
    """
    from scipy.ndimage import affine_transform

    matrix = np.linalg.inv(labels.grid.affine) @ grid.affine
    if _overlap(labels.grid, grid) < _LEAST_OVERLAP:
        matrix = np.linalg.inv(labels.grid.affine) @ _shift(_centre(labels.grid) - _centre(grid)) @ grid.affine
    moved: NDArray[Any] = affine_transform(
        labels.array, matrix[:3, :3], matrix[:3, 3], output_shape=grid.shape, order=0, mode="constant", cval=0
    )
    return moved


def distance_mm(one: Grid, other: Grid) -> float:
    """Mean distance between the corners of two fields of view, whatever the direction of their axes."""
    return float(np.linalg.norm(np.subtract(_bounds(one), _bounds(other)), axis=1).mean())


def _overlap(labels: Grid, grid: Grid) -> float:
    """Share of a grid's field of view that lies in another's."""
    (low, high), (other_low, other_high) = _bounds(grid), _bounds(labels)
    common = np.maximum(0, np.minimum(high, other_high) - np.maximum(low, other_low))
    return float(np.prod(common) / np.prod(high - low))


def _bounds(grid: Grid) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lowest and highest millimetres of a field of view, along right, anterior and superior."""
    ends = np.array(np.meshgrid(*[(-0.5, n - 0.5) for n in grid.shape], indexing="ij")).reshape(3, -1)
    corners = grid.affine[:3, :3] @ ends + grid.affine[:3, 3:]
    return corners.min(axis=1), corners.max(axis=1)


def _centre(grid: Grid) -> NDArray[np.float64]:
    return np.asarray(np.mean(_bounds(grid), axis=0), dtype=np.float64)


def _shift(by: NDArray[np.float64]) -> NDArray[np.float64]:
    matrix = np.eye(4)
    matrix[:3, 3] = by
    return matrix
