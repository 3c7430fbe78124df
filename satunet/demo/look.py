"""A first look at a scan: facts about it, all classes that a model knows there, a picture and a page.

The classes are those of ``satunet predict --all``, without structures whose left and right parts are drawn anyway.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from satunet.images.image import Image
from satunet.jobs.files import read_json
from satunet.jobs.progress import JobSummary
from satunet.labels import LabelSpace
from satunet.prediction.door.inputs import Scan
from satunet.prediction.door.jobs import ScanJob, Vocabulary, resolve
from satunet.prediction.folder import predict_jobs
from satunet.prediction.options import PredictOptions
from satunet.prediction.predictor import Predictor
from satunet.prediction.results.places import manifest_file
from satunet.viewing.page import write_page
from satunet.viewing.structures import read_structures

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FirstLook:
    """A scan and the classes to segment in it.

    Attributes:
        job: The scan, with modality and classes.
        facts: Facts that are known before anything is computed: name → text.
    """

    job: ScanJob
    facts: Mapping[str, str]

    @classmethod
    def of(
        cls,
        scan: Scan,
        image: Image,
        vocabulary: Vocabulary,
        options: PredictOptions,
        prompts: Sequence[str] | None = None,
    ) -> FirstLook:
        """Decide which classes to segment.

        Args:
            scan: The scan.
            image: Image of the scan.
            vocabulary: Vocabulary of the model.
            options: Options of the user; a modality in them is used.
            prompts: What to look for; if it is not given, all classes that are worth looking for.

        Raises:
            PromptError: The model knows no class in the scan's modality.
        """
        (job,) = resolve([scan], prompts, vocabulary, options)
        job = job.settled(vocabulary, image)
        if prompts is not None:
            return cls(job=job, facts=facts_of(job, image))
        names = [m.class_name for m in job.matches or () if m.class_name is not None and m.status == "known"]
        kept = without_wholes(names, vocabulary.space)
        matches = tuple(m for m in job.matches or () if m.class_name in kept)
        job = replace(job, matches=matches, requested=tuple(m.prompt for m in matches))
        return cls(job=job, facts=facts_of(job, image))


def without_wholes(names: Sequence[str], space: LabelSpace) -> list[str]:
    """The classes without those whose left and right parts are also among them."""
    sides: dict[str, set[str]] = {}
    for name in names:
        info = space.info(name)
        if info.side is not None:
            sides.setdefault(info.base, set()).add(info.side)
    return [name for name in names if sides.get(name) != {"left", "right"}]


def facts_of(job: ScanJob, image: Image) -> dict[str, str]:
    """Facts about a scan that are known before anything is computed."""
    grid = image.grid
    extent = " × ".join(f"{n * s:.0f}" for n, s in zip(grid.shape, grid.spacing_mm, strict=True))
    facts = {
        "scan": str(job.scan.path),
        "modality": f"{job.modality} ({job.modality_from})",
        "voxels": f"{' × '.join(map(str, grid.shape))}, {grid.orientation}",
        "spacing": f"{' × '.join(f'{s:.3g}' for s in grid.spacing_mm)} mm",
        "size": f"{extent} mm",
    }
    part = _body_part(job.scan)
    if part:
        facts["region"] = f"{part} (DICOM header)"
    return facts


def _body_part(scan: Scan) -> str:
    """The examined body part as a DICOM header names it; empty if it does not."""
    if scan.series is None or not scan.series.files:
        return ""
    import pydicom

    try:
        header = pydicom.dcmread(scan.series.files[0], stop_before_pixels=True, specific_tags=["BodyPartExamined"])
        return " ".join(str(header.get("BodyPartExamined", "")).split()).lower()
    except Exception as error:  # the series was readable; an odd header costs only this fact
        logger.debug("%s: no body part (%s)", scan.path, error)
        return ""


def look(looks: Sequence[FirstLook], output: Path, predictor: Predictor) -> tuple[JobSummary, list[Path]]:
    """Predict, and write a page for every scan that was done.

    Args:
        looks: Scans.
        output: Folder for masks and ``preview.png`` (in a folder per scan), with ``<scan>.html`` beside it.
        predictor: Predictor with the model; its options ask for pictures.

    Returns:
        Summary of the scans, and the pages.
    """
    summary = predict_jobs([look.job for look in looks], output, predictor)
    pages = []
    for one in looks:
        name = one.job.name
        if not manifest_file(output, name, False).is_file() or name in summary.failures:
            continue
        image = one.job.scan.read()
        page = output / f"{name}.html"
        structures = read_structures([output / name], [name], image.grid)
        write_page(page, image, structures, title=name, modality=one.job.modality)
        pages.append(page)
    return summary, pages


def regions_found(output: Path, name: str, space: LabelSpace) -> str:
    """Body regions of the structures that were found, most frequent first: "brain (25 of 27 structures)".

    Args:
        output: Folder of the results.
        name: Name of the scan.
        space: Classes of the model.

    Returns:
        The text; empty if nothing was found, or the regions are unknown.
    """
    entries: list[dict[str, Any]] = read_json(manifest_file(output, name, False))["prompts"]
    found = [str(e["class"]) for e in entries if e.get("voxels") and e.get("class") in space]
    counts = Counter(region for n in found for region in regions_of(n, space))
    shown = [f"{region} ({count} of {len(found)} structures)" for region, count in counts.most_common(3)]
    return ", ".join(shown)


def regions_of(name: str, space: LabelSpace) -> tuple[str, ...]:
    """Body regions of a class; if no catalogue knows it, the region of most classes in its datasets."""
    info = space.info(name)
    if info.regions:
        return info.regions
    if info.base in space and space.info(info.base).regions:
        return space.info(info.base).regions
    own = set(info.datasets)
    near = Counter(region for c in space.classes if own & set(c.datasets) for region in c.regions)
    return tuple(region for region, _ in near.most_common(1))
