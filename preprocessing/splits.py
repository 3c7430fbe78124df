"""Folds of the unified dataset."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from satunet.datasets.paths import preprocessed_dir, raw_dir
from satunet.datasets.raw import split_scan_id
from satunet.errors import DatasetError
from satunet.jobs.files import read_json, write_json

logger = logging.getLogger(__name__)

FOLDS = 5


def unified_splits(
    scans: Sequence[str], cases: Mapping[str, Sequence[str]] | None = None
) -> list[dict[str, list[str]]]:
    """Five folds over scans, made dataset by dataset, the channels of a case together.

    A dataset's own ``splits_final.json`` (in ``nnUNet_raw``, where conversions put published splits, else in
    ``nnUNet_preprocessed``) is taken over; cases that it does not name are trained on. Without one, five or more cases
    are split as nnU-Net does; two to four by leaving one out in turn; a single case trains and validates.

    Args:
        scans: Preprocessed scans.
        cases: Dataset → all of its cases, so that a case that failed does not move the others to other folds; those
            of ``scans`` if not given.

    Returns:
        Folds with scan names under ``"train"`` and ``"val"``.

    Raises:
        DatasetError: A dataset's ``splits_final.json`` is malformed.
    """
    by_case: dict[str, dict[str, list[str]]] = {}
    for scan in sorted(scans):
        dataset, case, _ = split_scan_id(scan)
        by_case.setdefault(dataset, {}).setdefault(case, []).append(scan)
    folds: list[dict[str, list[str]]] = [{"train": [], "val": []} for _ in range(FOLDS)]
    for dataset, present in sorted(by_case.items()):
        every = sorted({*present, *(cases or {}).get(dataset, ())})
        for fold, split in zip(folds, _case_splits(dataset, every), strict=True):
            for part in ("train", "val"):
                fold[part] += [scan for case in split[part] for scan in present.get(case, ())]
    return folds


def share_folds(dataset: str, cases: Sequence[str]) -> None:
    """Give a dataset's specialist the folds of the unified network, so that neither is scored on what it was taught.

    nnunetv2 reads them from ``splits_final.json`` in ``nnUNet_preprocessed``; a file there that agrees stays as it is.

    Raises:
        DatasetError: The dataset's ``splits_final.json`` is malformed.
    """
    own = preprocessed_dir() / dataset / "splits_final.json"
    if (raw_dir() / dataset / "splits_final.json").is_file() or not own.is_file():
        write_json(own, _case_splits(dataset, sorted(cases)))


def _case_splits(dataset: str, cases: list[str]) -> list[dict[str, list[str]]]:
    for file in (raw_dir() / dataset / "splits_final.json", preprocessed_dir() / dataset / "splits_final.json"):
        if file.is_file():
            return _given(file, dataset, cases)
    if len(cases) >= FOLDS:
        from nnunetv2.utilities.crossval_split import generate_crossval_split

        splits: list[dict[str, list[str]]] = generate_crossval_split(cases, seed=12345, n_splits=FOLDS)
        return [{part: [str(case) for case in split[part]] for part in ("train", "val")} for split in splits]
    if len(cases) == 1:
        return [{"train": cases, "val": cases}] * FOLDS
    held_out = [cases[i % len(cases)] for i in range(FOLDS)]
    return [{"train": [c for c in cases if c != out], "val": [out]} for out in held_out]


def _given(file: Path, dataset: str, cases: list[str]) -> list[dict[str, list[str]]]:
    content: Any = read_json(file)
    if not isinstance(content, list) or not content or not all({"train", "val"} <= set(s) for s in content):
        raise DatasetError(f"{file}: must be a list of folds, each with 'train' and 'val'")
    folds = [content[i % len(content)] for i in range(FOLDS)]
    unnamed = [[c for c in cases if c not in {*fold["train"], *fold["val"]}] for fold in folds]
    if any(unnamed):
        logger.warning("%s does not name %d cases of %s; they are trained on", file, len(unnamed[0]), dataset)
    return [
        {"train": [*map(str, fold["train"]), *more], "val": list(map(str, fold["val"]))}
        for fold, more in zip(folds, unnamed, strict=True)
    ]
