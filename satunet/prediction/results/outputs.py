"""Writing the results of a scan.

The files are ``<output>/<scan>/<prompt>.<ending>`` and ``manifest.json``, or with ``combine`` one label map
``<output>/<scan>.<ending>`` and its legend ``<scan>.json``. The manifest is written last: a scan without one is
predicted again. It contains a stamp of everything that the result was made from, and the state of every written file.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from satunet.confidence.calibration import Worth
from satunet.errors import UserError
from satunet.images.hounsfield import hounsfield_offset
from satunet.images.image import write_label_map, write_volume
from satunet.jobs.files import flush_to_disk, write_json
from satunet.jobs.fresh import FileState
from satunet.jobs.records import to_plain
from satunet.labels import LabelSpace
from satunet.prediction.door.jobs import ScanJob
from satunet.prediction.masks.boxed import BoxedMask
from satunet.prediction.masks.found import Found, PreparedScan, PromptMask
from satunet.prediction.masks.mean import ValuesInFile
from satunet.prediction.options import Outputs
from satunet.prediction.results.instances import Instance, comes_in_numbers, count_instances
from satunet.prediction.results.manifests import files_of, is_foreign, write_table
from satunet.prediction.results.measures import Measures, measure
from satunet.prediction.results.painting import paint
from satunet.prediction.results.places import INSTANCES, MEASURES, PROBABILITY, Protected, manifest_file, mask_names
from satunet.prompts.matching import PromptMatch

if TYPE_CHECKING:  # pydicom is needed only for DICOM series
    from satunet.images.dicom import Series

logger = logging.getLogger(__name__)

_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class ScanResult:
    """Writer of the results of one scan.

    Attributes:
        output: Folder of all results.
        job: Settled job of the scan.
        scan: The scan, read and prepared.
        outputs: Outputs to write.
        manifest: Further content of the manifest.
        wholes: Class → classes that it is part of, for combined label maps.
        protected: Files that must not be replaced.
        space: Classes of the models, to decide which structures have instances.
    """

    output: Path
    job: ScanJob
    scan: PreparedScan
    outputs: Outputs
    manifest: Mapping[str, Any]
    wholes: Mapping[str, frozenset[str]] = field(default_factory=dict)
    protected: Protected = field(default_factory=Protected)
    space: LabelSpace | None = None
    _instances: dict[int, tuple[Instance, ...]] = field(default_factory=dict)
    _written: list[Path] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def matches(self) -> tuple[PromptMatch, ...]:
        """Matches of the prompts."""
        return self.job.matches or ()

    def begin(self) -> None:
        """Remove an earlier manifest and the files it names: from now on, the scan is not done.

        Partial files of a killed run are removed as well.
        """
        manifest = manifest_file(self.output, self.job.name, self.outputs.combine)
        if is_foreign(manifest):
            raise UserError(f"{manifest}: this file exists and was not written by satunet; give another folder (-o)")
        for file in [*files_of(manifest), manifest]:
            self.protected.check(file)
            file.unlink(missing_ok=True)
        for left_over in (self.output / self.job.name).glob(".tmp-*"):
            left_over.unlink(missing_ok=True)

    def write_mask(self, position: int, mask: BoxedMask, found: Found) -> None:
        """Write the mask of a prompt, unless it is empty or all masks go into one label map; threads may share this."""
        if self.outputs.combine or not mask.voxels:
            return
        folder, name = self.output / self.job.name, self._names[position]
        file = self._place(folder / f"{name}{self.job.scan.ending}")
        write_label_map(file, mask.full, like=self.scan.image)
        if self.outputs.probabilities:
            volume = np.zeros(mask.shape, dtype=np.uint8)
            near = found.restored()
            if near is not None:
                values, start = near
                place = tuple(slice(s, s + n) for s, n in zip(start, values.shape, strict=True))
                volume[place] = np.rint(values.clip(0, 1) * 255)
            file = self._place(folder / f"{name}{PROBABILITY}{self.job.scan.ending}")
            write_volume(file, volume, like=self.scan.image, slope=1 / 255)
        self._write_instances(position, mask, found.restored)

    def _write_instances(
        self, position: int, mask: BoxedMask, probability: Callable[[], ValuesInFile | None] = lambda: None
    ) -> None:
        """Write the numbered instances of a mask, if instances are requested and its class has them."""
        kind = self.matches[position].class_name
        if not self.outputs.instances or kind is None or self.space is None or not comes_in_numbers(kind, self.space):
            return
        counted = count_instances(mask, self.scan.image.grid, kind, probability())
        labels = np.zeros(mask.shape, np.uint8 if len(counted.found) <= 255 else np.uint16)
        labels[mask.box] = counted.labels
        file = self.output / self.job.name / f"{self._names[position]}{INSTANCES}{self.job.scan.ending}"
        if file not in self._written:  # repaired masks are counted again
            self._place(file)
        write_label_map(file, labels, like=self.scan.image)
        self._instances[position] = counted.found

    def finish(self, found: Sequence[PromptMask], seconds: float) -> None:
        """Write the outputs that need all masks, and the manifest; the files of masks that are left out are removed."""
        entries = [self._describe(mask) for mask in found]
        masks = [mask.boxed for mask in found]
        self._take_back(found)
        self._write_repaired(found)
        content = dict(self.manifest)
        if self.outputs.combine:
            content |= self._write_map(entries, masks)
        else:
            for entry, mask, name in zip(entries, masks, self._names, strict=True):
                entry["file"] = f"{name}{self.job.scan.ending}" if mask is not None and mask.voxels else None
            for position, found_ones in self._instances.items():
                if entries[position]["file"] is not None:
                    entries[position]["instances"] = [asdict(one) for one in found_ones]
        _say_what_is_not_seen(self.job.name, entries)
        series = self.job.scan.series
        measures = self._measured(masks)
        if series is not None and self.outputs.dicom:
            content["dicom"] = [file.name for file in self._write_dicom(series, found, measures)]
        if self.outputs.measures:
            self._write_measures(entries, measures)
        if self.outputs.preview:
            self._write_preview(masks)
        content |= {
            "seconds": round(seconds, 2),
            "prompts": entries,
            "files": {file.name: to_plain(FileState.of(file)) for file in self._written},
        }
        flush_to_disk(self._written)  # the manifest must not outlive them in a power failure
        write_json(self._place(manifest_file(self.output, self.job.name, self.outputs.combine)), content, sealed=True)

    @cached_property
    def _names(self) -> list[str]:
        return mask_names(self.matches)

    def _place(self, file: Path) -> Path:
        """Record a file that is about to be written, and return it."""
        self.protected.check(file)
        with self._lock:
            self._written.append(file)
        return file

    def _write_map(self, entries: list[dict[str, Any]], masks: Sequence[BoxedMask | None]) -> dict[str, Any]:
        """Write one label map; amounts in the entries become those of the voxels that it shows."""
        image = self.scan.image
        labels, shown = paint([m.class_name or "" for m in self.matches], masks, self.wholes, image.grid.shape)
        legend = {}
        for label, (entry, mask) in enumerate(zip(entries, masks, strict=True), start=1):
            if mask is None:
                continue
            voxels = shown.get(label, 0)
            covered = mask.voxels - voxels
            if voxels:
                legend[label] = str(entry["prompt"])
                entry["label"] = label
            if covered:
                box = labels[mask.box]
                mean = float(image.array[mask.box][box == label].mean(dtype=np.float64)) if voxels else None
                entry |= _amount(voxels, mean, image.grid.voxel_ml)
                entry["covered_ml"] = round(covered * image.grid.voxel_ml, 4)
        for label, (match, entry, mask) in enumerate(zip(self.matches, entries, masks, strict=True), start=1):
            if mask is not None:  # ids whose union is the class: its own, and those of the parts painted over it
                name = match.class_name
                entry["labels"] = [
                    other
                    for other in legend
                    if other == label or (name and (name in self._wholes_of(other) or name == self._class_of(other)))
                ]
        file = self._place(self.output / f"{self.job.name}{self.job.scan.ending}")
        write_label_map(file, labels, like=image, legend=legend)
        return {
            "labels": {name: value for value, name in legend.items()},
            "overlap_rule": "a part lies over its whole; otherwise the later prompt wins",
        }

    def _class_of(self, label: int) -> str:
        return self.matches[label - 1].class_name or ""

    def _wholes_of(self, label: int) -> frozenset[str]:
        return self.wholes.get(self._class_of(label), frozenset())

    def _measured(self, masks: Sequence[BoxedMask | None]) -> list[Measures | None]:
        """Measures of each mask that is not empty, if an output needs them."""
        image = self.scan.image
        if not self.outputs.measures and (not self.outputs.dicom_sr or self.job.scan.series is None):
            return [None] * len(masks)
        offset = hounsfield_offset(image.array) if self.job.modality == "ct" else None
        return [None if mask is None else measure(mask, image.grid, image.array, hu_offset=offset) for mask in masks]

    def _write_dicom(
        self, series: Series, masks: Sequence[PromptMask], measures: Sequence[Measures | None]
    ) -> list[Path]:
        from satunet.knowledge.file import default_tree
        from satunet.prediction.dicom_objects import Kind, write_segmentations, write_structure_set

        found = [(mask.match, mask.boxed, worth_in_words(mask.worth)) for mask in masks if mask.boxed is not None]
        named = [(m.prompt, mask) for m, mask, _ in found]
        classes, texts = [m.class_name for m, _, _ in found], [text for *_, text in found]
        folder = self.output if self.outputs.combine else self.output / self.job.name
        start = f"{self.job.name}_" if self.outputs.combine else ""
        files = []
        if self.outputs.dicom_seg or self.outputs.dicom_sr:
            kind: Kind = "binary" if self.outputs.binary_seg else "auto"
            file = folder / f"{start}segmentation.dcm"
            self.protected.check(file)
            files += write_segmentations(
                file, series, named, classes=classes, texts=texts, kind=kind, tree=default_tree()
            )
        if self.outputs.dicom_sr and files:
            files.append(self._write_report(folder / f"{start}report.dcm", series, files, masks, measures))
        if self.outputs.rtstruct:
            files.append(folder / f"{start}structures.dcm")
            self.protected.check(files[-1])
            write_structure_set(files[-1], series, named, classes=classes, texts=texts, tree=default_tree())
        self._written.extend(files)
        return files

    def _write_report(
        self,
        file: Path,
        series: Series,
        segmentations: Sequence[Path],
        masks: Sequence[PromptMask],
        measures: Sequence[Measures | None],
    ) -> Path:
        from satunet.prediction.dicom_objects import Reported, write_report

        self.protected.check(file)
        reported = [
            Reported(measures=found, certainty=None if mask.worth is None else 1 - mask.worth.absent)
            for mask, found in zip(masks, measures, strict=True)
            if found is not None
        ]
        write_report(file, series, list(segmentations), reported)
        return file

    def _write_measures(self, entries: list[dict[str, Any]], measures: Sequence[Measures | None]) -> None:
        """Write one row per mask that is not empty; the entries get the same numbers."""
        rows = []
        for match, entry, found in zip(self.matches, entries, measures, strict=True):
            if found is not None:
                numbers = {name: None if v is None else round(v, 4) for name, v in asdict(found).items()}
                rows.append({"prompt": match.prompt, "class": match.class_name, **numbers})
                entry["measures"] = numbers
        file = self.output / self.job.name / MEASURES
        if self.outputs.combine:
            file = self.output / f"{self.job.name}_{MEASURES}"
        columns = ("prompt", "class", *(f.name for f in fields(Measures)))
        write_table(self._place(file), columns, rows)

    def _write_preview(self, masks: Sequence[BoxedMask | None]) -> None:
        """Write a picture next to the masks. If that fails, a warning is logged and the masks are kept."""
        from satunet.viewing.preview import Found as Seen
        from satunet.viewing.preview import write_preview

        folder, name = self.output / self.job.name, "preview.png"
        if self.outputs.combine:
            folder, name = self.output, f"{self.job.name}_preview.png"
        found = [
            Seen(name=m.prompt, mask=mask, kind=m.class_name, note="" if mask is not None else m.status)
            for m, mask in zip(self.matches, masks, strict=True)
        ]
        title = f"{self.job.name}  ·  {self.job.modality}"
        file = self._place(folder / name)
        try:
            write_preview(file, self.scan.image, found, title=title, modality=self.job.modality)
        except OSError:  # a full disk
            raise
        except Exception as error:
            self._written.remove(file)
            logger.warning("%s: the picture could not be drawn (%s)", self.job.name, error)

    def _take_back(self, found: Sequence[PromptMask]) -> None:
        """Remove the files of masks that were written before it was decided to leave them out."""
        folder, ending = self.output / self.job.name, self.job.scan.ending
        for mask, name in zip(found, self._names, strict=True):
            for tail in ("", PROBABILITY, INSTANCES) if mask.left_out else ():
                file = folder / f"{name}{tail}{ending}"
                if file in self._written:
                    self._written.remove(file)
                    file.unlink(missing_ok=True)

    def _write_repaired(self, found: Sequence[PromptMask]) -> None:
        """Write again the masks that were repaired after all masks were known."""
        for position, (mask, name) in enumerate(zip(found, self._names, strict=True)):
            if mask.repaired and mask.boxed is not None and not self.outputs.combine:
                file = self.output / self.job.name / f"{name}{self.job.scan.ending}"
                write_label_map(file, mask.boxed.full, like=self.scan.image)
                self._write_instances(position, mask.boxed)

    def _describe(self, found: PromptMask) -> dict[str, Any]:
        match, mask = found.match, found.boxed
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
            entry["seen"] = mask.voxels > 0
            if found.worth is not None:
                confidence = found.worth.confidence
                entry["confidence"] = None if confidence is None else round(confidence, 3)
                entry["absent"] = round(found.worth.absent, 3)
            if found.left_out:
                entry["left_out"] = found.left_out
            if found.doubts:
                entry["doubts"] = list(found.doubts)
                entry["repaired"] = found.repaired
            entry |= _amount(mask.voxels, mask.mean_of(self.scan.image.array), self.scan.image.grid.voxel_ml)
            extent = mask.extent
            entry["box"] = None if extent is None else [[side.start, side.stop] for side in extent]
        return entry


def _say_what_is_not_seen(scan: str, entries: Sequence[Mapping[str, Any]]) -> None:
    """Log which structures were not seen and which masks were left out."""
    absent = [str(entry["prompt"]) for entry in entries if entry.get("seen") is False and "left_out" not in entry]
    left_out = [f"{entry['prompt']} ({entry['left_out']})" for entry in entries if "left_out" in entry]
    if absent:
        logger.info("%s: not seen: %s", scan, _first(absent))
    if left_out:
        logger.info("%s: masks left out: %s", scan, _first(left_out))


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def worth_in_words(worth: Worth | None) -> str:
    """Confidence of a mask in words, for formats that hold only text; empty if it is not known."""
    if worth is None or worth.confidence is None:
        return ""
    return f"estimated Dice {worth.confidence:.2f}, absent with a probability of {worth.absent:.2f}"


def _amount(voxels: int, mean: float | None, voxel_ml: float) -> dict[str, Any]:
    return {
        "voxels": voxels,
        "volume_ml": round(voxels * voxel_ml, 4),
        "mean_intensity": None if mean is None else round(mean, 4),
    }
