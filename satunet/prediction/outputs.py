"""What a scan's prediction leaves on disk.

``<output>/<scan>/<prompt>.<ending>`` and ``manifest.json``, or with ``combine`` one label map
``<output>/<scan>.<ending>`` and its legend ``<scan>.json``. The manifest is written last: a scan without it is done
again.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from satunet.errors import UserError
from satunet.images.dicom import Series
from satunet.images.image import Image, write_label_map, write_volume
from satunet.jobs.files import mask_file_name, read_json, write_json, write_text
from satunet.prediction.inputs import ScanJob
from satunet.prediction.masks import BoxedMask, restore_values
from satunet.prediction.predictor import Found, PreparedScan
from satunet.prompts.matching import PromptMatch

logger = logging.getLogger(__name__)

MANIFEST_VERSION = 3
MANIFEST = "manifest.json"
STATISTICS = "statistics.csv"
_COLUMNS = ("scan", "prompt", "class", "status", "voxels", "volume_ml", "mean_intensity", "modality", "file", "label")


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What to write.

    Attributes:
        combine: One label map a scan; where masks overlap, the later prompt wins.
        probabilities: Probabilities beside the masks, as 0 … 255 with a slope of 1/255; zero where no voxel near
            exceeds one half.
        dicom_seg: A DICOM Segmentation beside the masks of a DICOM series.
        rtstruct: An RT Structure Set beside the masks of a DICOM series.
        binary_seg: The Segmentation is never a label map.
    """

    combine: bool = False
    probabilities: bool = False
    dicom_seg: bool = False
    rtstruct: bool = False
    binary_seg: bool = False

    def __post_init__(self) -> None:
        if self.combine and self.probabilities:
            raise UserError("probabilities go with a mask a prompt, not with one combined label map")


@dataclass(frozen=True, kw_only=True)
class ScanResult:
    """Writes what was found in one scan.

    Attributes:
        output: Folder of all results.
        job: The scan.
        scan: Read and prepared.
        matches: Its prompts.
        outputs: What to write.
        manifest: What the manifest says besides.
    """

    output: Path
    job: ScanJob
    scan: PreparedScan
    matches: Sequence[PromptMatch]
    outputs: Outputs
    manifest: Mapping[str, Any]

    def begin(self) -> None:
        """Take back an earlier manifest: from now on, the scan is not done. What a killed run left is removed."""
        manifest_file(self.output, self.job.name, self.outputs.combine).unlink(missing_ok=True)
        for left_over in (self.output / self.job.name).glob(".tmp-*"):
            left_over.unlink(missing_ok=True)

    def write_mask(self, position: int, mask: BoxedMask, found: Found) -> None:
        """Write the mask of a prompt, unless masks go into one label map; may run beside the others."""
        if self.outputs.combine:
            return
        folder, name = self.output / self.job.name, self._file_names()[position]
        write_label_map(folder / f"{name}{self.job.ending}", mask.full, like=self.scan.image)
        if self.outputs.probabilities:
            volume = np.zeros(mask.shape, dtype=np.uint8)
            near = restore_values(found.values.numpy(), found.box, found.geometry) if found.values is not None else None
            if near is not None:
                values, start = near
                place = tuple(slice(s, s + n) for s, n in zip(start, values.shape, strict=True))
                volume[place] = np.rint(values.clip(0, 1) * 255)
            file = folder / f"{name}_probability{self.job.ending}"
            write_volume(file, volume, like=self.scan.image, slope=1 / 255)

    def finish(self, masks: Sequence[BoxedMask | None], seconds: float) -> None:
        """Write what takes all masks, and the manifest."""
        entries = [_describe(m, mask, self.scan.image) for m, mask in zip(self.matches, masks, strict=True)]
        content = dict(self.manifest)
        if self.outputs.combine:
            labels = np.zeros(self.scan.image.grid.shape, dtype=np.uint16)
            for value, (entry, mask) in enumerate(zip(entries, masks, strict=True), start=1):
                if mask is not None:
                    labels[mask.box][mask.inside] = value
                    entry["label"] = value
            legend = {entry["label"]: str(entry["prompt"]) for entry in entries if "label" in entry}
            file = self.output / f"{self.job.name}{self.job.ending}"
            write_label_map(file, labels, like=self.scan.image, legend=legend)
            content |= {
                "labels": {name: value for value, name in legend.items()},
                "overlap_rule": "the later prompt wins",
            }
        else:
            for entry, mask, name in zip(entries, masks, self._file_names(), strict=True):
                entry["file"] = None if mask is None else f"{name}{self.job.ending}"
        if self.job.series is not None and (self.outputs.dicom_seg or self.outputs.rtstruct):
            content["dicom"] = [file.name for file in self._write_dicom(self.job.series, masks)]
        content |= {"seconds": round(seconds, 2), "prompts": entries}
        write_json(manifest_file(self.output, self.job.name, self.outputs.combine), content)

    def _write_dicom(self, series: Series, masks: Sequence[BoxedMask | None]) -> list[Path]:
        from satunet.knowledge.make import default_tree
        from satunet.prediction.dicom_objects import Kind, write_segmentations, write_structure_set

        found = [(m, mask) for m, mask in zip(self.matches, masks, strict=True) if mask is not None]
        named = [(m.prompt, mask) for m, mask in found]
        classes = [m.class_name for m, _ in found]
        folder = self.output if self.outputs.combine else self.output / self.job.name
        start = f"{self.job.name}_" if self.outputs.combine else ""
        files = []
        if self.outputs.dicom_seg:
            kind: Kind = "binary" if self.outputs.binary_seg else "auto"
            file = folder / f"{start}segmentation.dcm"
            files += write_segmentations(file, series, named, classes=classes, kind=kind, tree=default_tree())
        if self.outputs.rtstruct:
            files.append(folder / f"{start}structures.dcm")
            write_structure_set(files[-1], series, named, classes=classes, tree=default_tree())
        return files

    def _file_names(self) -> list[str]:
        """File names without ending; "a/b" and "a:b" would share one and are told apart."""
        names: list[str] = []
        used: set[str] = set()
        for match in self.matches:
            name = mask_file_name(match.prompt)
            while name.lower() in used:
                name += "_"
            used.add(name.lower())
            names.append(name)
        return names


def manifest_file(output: Path, name: str, combine: bool) -> Path:
    """Where a scan's manifest is."""
    return output / f"{name}.json" if combine else output / name / MANIFEST


def is_done(output: Path, name: str, combine: bool, wanted: Mapping[str, Any]) -> bool:
    """Whether the scan's manifest is there with the values wanted, and the files it names exist."""
    file = manifest_file(output, name, combine)
    try:
        content = read_json(file)
        files = [file.parent / e["file"] for e in content["prompts"] if e.get("file")]
        files += [file.parent / name for name in content.get("dicom", ())]
        return all(content[key] == value for key, value in wanted.items()) and all(f.is_file() for f in files)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write_statistics(output: Path, names: Iterable[str], combine: bool) -> Path:
    """One row a scan and prompt, of all manifests that are there: also of scans done by an earlier run."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for name in names:
        try:
            content = read_json(manifest_file(output, name, combine))
        except (OSError, ValueError):
            continue  # a scan that failed has no rows
        for entry in content["prompts"]:
            writer.writerow({"scan": name, "modality": content["modality"], **entry})
    write_text(output / STATISTICS, text.getvalue())
    return output / STATISTICS


def _describe(match: PromptMatch, mask: BoxedMask | None, image: Image) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "prompt": match.prompt,
        "class": match.class_name,
        "status": match.status,
        "similarity": match.similarity,
        "nearest": [list(n) for n in match.nearest],
        "file": None,
    }
    if match.expanded_from is not None:
        entry["expanded_from"] = match.expanded_from
    if match.note:
        entry["note"] = match.note
    if mask is not None:
        voxels, mean = mask.voxels, mask.mean_of(image.array)
        entry |= {
            "voxels": voxels,
            "volume_ml": round(voxels * image.grid.voxel_ml, 4),
            "mean_intensity": None if mean is None else round(mean, 4),
        }
    return entry
