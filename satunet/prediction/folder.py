"""Predict many scans: one bad scan never ends the rest, and a second run does what is missing."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from satunet.errors import PromptError, UserError
from satunet.files import mask_file_name, read_json, write_json
from satunet.imageio import IMAGE_ENDINGS, Image, image_ending, list_images, read_image, strip_ending, write_label_map
from satunet.labels import PromptMatch
from satunet.prediction.predictor import Predictor, PromptMask, guess_modality
from satunet.progress import JobSummary, progress_bar

logger = logging.getLogger(__name__)

MANIFEST_VERSION = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class ScanJob:
    """One scan to predict.

    Attributes:
        path: Its file.
        name: Name of its results.
    """

    path: Path
    name: str


def collect_scans(inputs: Sequence[Path]) -> list[ScanJob]:
    """Scans of files and folders.

    nnU-Net's channel suffix ``_0000`` is left out of a result's name where that keeps the names apart.

    Raises:
        UserError: An input that does not exist, a folder without images, or two scans of one name.
    """
    paths: list[Path] = []
    for given in inputs:
        if given.is_dir():
            found = list_images(given)
            if not found:
                raise UserError(f"{given}: no images in this folder; allowed endings are {', '.join(IMAGE_ENDINGS)}")
            paths += found
        else:
            paths.append(given)  # a file that is missing or no image is that scan's failure, not the job's
    if not paths:
        raise UserError("no input was given")
    full = [strip_ending(p.name) for p in paths]
    short = [n[:-5] if len(n) > 5 and n[-5] == "_" and n[-4:].isdigit() else n for n in full]
    names = [s if short.count(s) == 1 else f for s, f in zip(short, full, strict=True)]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise UserError(f"several inputs would give results of the same name: {', '.join(twice[:5])}")
    return [ScanJob(path=p, name=n) for p, n in zip(paths, names, strict=True)]


def read_prompts(file: Path) -> tuple[str, ...]:
    """Prompts of a text file: one a line, empty lines and those that start with ``#`` are left out.

    Raises:
        PromptError: No such file, or nothing in it.
    """
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"{file}: cannot be read as a text file of prompts ({error})") from error
    prompts = tuple(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
    if not prompts:
        raise PromptError(f"{file}: no prompts in it; expected is one a line")
    return prompts


def predict_folder(
    inputs: Sequence[Path],
    output: Path,
    predictor: Predictor,
    prompts: Sequence[str] | None,
    *,
    modality: str | None = None,
    combine: bool = False,
    overwrite: bool = False,
) -> JobSummary:
    """Predict scans into a folder.

    Results of a scan are ``<output>/<scan>/<prompt>.<ending>`` and ``manifest.json``, which is written last: a scan
    without it is done again. With ``combine``, a scan gives one label map ``<output>/<scan>.<ending>`` and its
    legend ``<scan>.json``; where masks overlap, the later prompt wins.

    Args:
        inputs: Files and folders.
        output: Where to write.
        predictor: With its model.
        prompts: What to look for; ``None``: every class the model knows for the scan's modality.
        modality: Of all scans; guessed a scan if not given.
        combine: One label map a scan instead of a mask a prompt.
        overwrite: Predict scans again that are done already.

    Returns:
        What became of each scan.

    Raises:
        UserError: No input, or prompts that cannot be used.
    """
    jobs = collect_scans(inputs)
    if prompts is not None:
        prompts = tuple(dict.fromkeys(prompts))
        _report(predictor.match(prompts))
    summary = JobSummary("prediction")
    with progress_bar("Predicting", len(jobs)) as advance:
        for job in jobs:
            try:
                if not overwrite and _is_done(output, job, predictor, prompts, combine):
                    summary.skipped(job.name)
                else:
                    _predict_scan(job, output, predictor, prompts, modality, combine)
                    summary.done(job.name)
            except Exception as error:  # whatever is wrong with this scan, the others go on
                summary.failed(job.name, error)
            advance(note=job.name)
    summary.save(output / "prediction_summary.json")
    return summary


def _predict_scan(
    job: ScanJob,
    output: Path,
    predictor: Predictor,
    prompts: Sequence[str] | None,
    modality: str | None,
    combine: bool,
) -> None:
    started = time.monotonic()
    image = read_image(job.path)
    known = predictor.model.modalities
    chosen, how = (modality, "given") if modality else guess_modality(image, known)
    wanted = prompts
    if wanted is None:
        wanted = [c.name for c in predictor.model.space.classes if chosen in c.modalities]
        if not wanted:
            raise PromptError(f"the model knows no class for the modality {chosen!r}; it knows {', '.join(known)}")
    logger.info("%s: taken as %s (%s), %d prompts", job.name, chosen, how, len(wanted))
    prediction = predictor.predict(image, wanted, modality=chosen)
    ending = image_ending(job.path) or ".nii.gz"
    manifest: dict[str, Any] = {
        "version": MANIFEST_VERSION,
        "scan": job.name,
        "source": str(job.path),
        "modality": chosen,
        "modality_from": how,
        "model": str(predictor.model.path),
        "weights": predictor.model.weights_hash,
        "overlap": predictor.overlap,
        "combine": combine,
        "requested": list(wanted) if prompts is not None else None,
    }
    if combine:
        _write_combined(output, job.name, ending, image, prediction.masks, manifest, started)
    else:
        _write_masks(output / job.name, ending, image, prediction.masks, manifest, started)


def _write_masks(
    folder: Path, ending: str, image: Image, masks: Sequence[PromptMask], manifest: dict[str, Any], started: float
) -> None:
    (folder / MANIFEST).unlink(missing_ok=True)
    entries = []
    used: set[str] = set()
    for result in masks:
        entry = _describe(result, image)
        if result.boxed is not None:
            name = mask_file_name(result.match.prompt)
            while name.lower() in used:  # "a/b" and "a:b" would share a file
                name += "_"
            used.add(name.lower())
            write_label_map(folder / f"{name}{ending}", result.boxed.full, like=image)
            entry["file"] = f"{name}{ending}"
        entries.append(entry)
    write_json(folder / MANIFEST, manifest | {"seconds": round(time.monotonic() - started, 2), "prompts": entries})


def _write_combined(
    output: Path, name: str, ending: str, image: Image, masks: Sequence[PromptMask], manifest: dict[str, Any],
    started: float,
) -> None:  # fmt: skip
    (output / f"{name}.json").unlink(missing_ok=True)
    labels = np.zeros(image.grid.shape, dtype=np.uint16)
    legend: dict[str, int] = {}
    entries = []
    for value, result in enumerate(masks, start=1):
        entry = _describe(result, image)
        if result.boxed is not None:
            labels[result.boxed.box][result.boxed.inside] = value
            legend[result.match.prompt] = value
            entry["label"] = value
        entries.append(entry)
    write_label_map(output / f"{name}{ending}", labels, like=image)
    content = manifest | {
        "labels": legend,
        "overlap_rule": "the later prompt wins",
        "seconds": round(time.monotonic() - started, 2),
        "prompts": entries,
    }
    write_json(output / f"{name}.json", content)


def _describe(result: PromptMask, image: Image) -> dict[str, Any]:
    match = result.match
    entry: dict[str, Any] = {
        "prompt": match.prompt,
        "class": match.class_name,
        "status": match.status,
        "similarity": match.similarity,
        "nearest": [list(n) for n in match.nearest],
        "file": None,
    }
    if result.boxed is not None:
        voxels, mean = result.boxed.voxels, result.boxed.mean_of(image.array)
        entry |= {
            "voxels": voxels,
            "volume_ml": round(voxels * image.grid.voxel_ml, 4),
            "mean_intensity": None if mean is None else round(mean, 4),
        }
    return entry


def _is_done(output: Path, job: ScanJob, predictor: Predictor, prompts: Sequence[str] | None, combine: bool) -> bool:
    """Whether the scan's manifest is there, of this model and these prompts, and its files exist."""
    file = output / f"{job.name}.json" if combine else output / job.name / MANIFEST
    try:
        content = read_json(file)
        same = (
            content["weights"] == predictor.model.weights_hash
            and content["combine"] == combine
            and content["requested"] == (list(prompts) if prompts is not None else None)
            and content["source"] == str(job.path)
        )
        files = [file.parent / e["file"] for e in content["prompts"] if e.get("file")]
        return bool(same and all(f.is_file() for f in files))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _report(matches: Sequence[PromptMatch]) -> None:
    """Say once what prompts mean that name no class."""
    for m in matches:
        near = ", ".join(f"{name} ({value:.2f})" for name, value in m.nearest)
        if m.status == "similar":
            logger.warning(
                "prompt %r names no class of the model; segmented by its wording; nearest: %s", m.prompt, near
            )
        elif m.status == "unknown":
            logger.warning("prompt %r is nothing the model knows; no mask is written; nearest: %s", m.prompt, near)
