"""SAT-DS's jsonl files: one line per scan, with image, mask, classes, modality, dataset, patient.

They come in two kinds. The raw kind names an image and a mask of the original dataset: a label map, or a stack of
masks as a four-dimensional file (the axis of the masks first). The packed kind names arrays: ``renorm_image``, and
``renorm_segmentation_dir`` with one mask per class, each cut to its box in ``renorm_y1x1z1_y2x2z2``.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from satunet.conversion.classes import ClassTable, plain_table, published_table
from satunet.conversion.sources import ImageSource, MaskSource, NumberNeededError, SourceCase, SourceDataset
from satunet.datasets.catalogue import CatalogueRecord, load_catalogue
from satunet.datasets.raw import modality_of_channel
from satunet.errors import DatasetError, UserError
from satunet.images.image import image_ending, strip_ending
from satunet.jobs.files import mask_file_name, parse_json, read_json
from satunet.jobs.records import MALFORMED, understanding
from satunet.types import Box

SEQUENCES = ("cases", "channels")
"""Treatment of several scans with the same mask: separate cases, as in the published versions, or channels of one."""

_PACKED_SPACING = (1.0, 1.0, 3.0)
_VOLUMES = {"T2": 0, "ADC": 1}
"""Suffixes that select a volume of a four-dimensional file of the Decathlon's prostate task."""


@dataclass(frozen=True, kw_only=True)
class _Row:
    number: int
    image: str
    mask: Any
    labels: tuple[str, ...]
    modality: str
    patient: str
    official_split: str
    packed: bool
    boxes: Any = None


def read_sat_ds(
    jsonl: Path,
    *,
    root: Path | None = None,
    split: Path | None = None,
    sequences: str = "cases",
    dataset_id: int | None = None,
    name: str | None = None,
) -> SourceDataset:
    """Read a jsonl file as a dataset to convert.

    A dataset that the catalogue knows gets its published number, name, labels and ids.

    Args:
        jsonl: The file.
        root: Folder that its paths are relative to; if not given, it is searched for here, beside the file and above.
        split: The published split: a file with patients under "train", "val" and "test", or a folder of such files.
            Test patients go to ``imagesTs``; patients that it does not name are left out. If not given, the official
            split in the rows is used.
        sequences: Treatment of sequences, one of :data:`SEQUENCES`.
        dataset_id: Number of a dataset that the catalogue does not know.
        name: Name instead of the one in the file.

    Raises:
        UserError: The file cannot be read, or holds several datasets, or modalities that do not go together.
    """
    rows, faults, dataset = _rows(jsonl)
    record = load_catalogue().by_name(name or dataset)
    if record is None and dataset_id is None:
        raise NumberNeededError(f"{jsonl}: {dataset!r} is not in the catalogue; give its number with --id")
    own = mask_file_name(name or dataset)
    folder = record.folder if record and dataset_id is None else f"Dataset{dataset_id:03d}_{own}"
    table = _table(rows, record)
    root = root or _root_of(rows, jsonl)
    kept, test, validation, notes = _split(rows, split, jsonl)
    pattern = record.patient if record else ".+"
    notes |= _shared_patients(kept, test, pattern) | _other_labels(kept)
    groups = _groups(kept, sequences, jsonl)
    channels = _channels(groups, record, jsonl)
    modalities = _modalities(groups, jsonl)
    names = _identifiers([group[0] for group in groups])
    orientation = record.orientation if record else "RAS"
    cases = []
    for group, identifier in zip(groups, names, strict=True):
        try:
            cases.append(_case(group, identifier, root, test, orientation, pattern))
        except UserError as error:
            faults[identifier] = str(error)
        except OSError as error:  # a name that no file system takes, a folder that may not be read
            faults[identifier] = f"{error.filename!s:.200}: cannot be read ({error.strerror})"
    return SourceDataset(
        name=folder,
        channel_names=channels,
        modalities=modalities,
        table=table,
        cases=tuple(cases),
        validation=frozenset(_patient(row, pattern) for row in kept if row.patient in validation),
        origin=record.link if record else dataset,
        description=f"{dataset}, from {jsonl.name}",
        # The published specialists were planned on scans turned to RAS.
        extra={"overwrite_image_reader_writer": "NibabelIOWithReorient"} if record else {},
        notes=notes,
        faults=faults,
    )


def _rows(jsonl: Path) -> tuple[list[_Row], dict[str, str], str]:
    try:
        lines = jsonl.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{jsonl}: cannot be read ({error})") from error
    rows: list[_Row] = []
    faults: dict[str, str] = {}
    datasets: set[str] = set()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            content = parse_json(line, f"line {number}")
            rows.append(_row(content, number))
            datasets.add(str(content["dataset"]))
        except MALFORMED as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            faults[f"{jsonl.name}:{number}"] = f"not a row of SAT-DS: {reason}"
    if not rows:
        raise UserError(f"{jsonl}: has no row of SAT-DS ({next(iter(faults.values()), 'it is empty')})")
    if len(datasets) != 1:
        raise UserError(f"{jsonl}: rows of {len(datasets)} datasets ({', '.join(sorted(datasets)[:5])}); expected one")
    return rows, faults, datasets.pop()


def _row(content: dict[str, Any], number: int) -> _Row:
    packed = "image" not in content or "renorm_segmentation_dir" in content
    labels = content["label"]
    if not isinstance(labels, list) or not labels or not all(isinstance(name, str) and name for name in labels):
        raise ValueError(f"'label' must be a list of names, got {labels!r}")
    image = content["renorm_image" if packed else "image"]
    patient = content.get("patient_id", image)
    return _Row(
        number=number,
        image=str(image),
        mask=content.get("renorm_segmentation_dir" if packed else "mask"),
        labels=tuple(labels),
        modality=str(content["modality"]),
        patient=str(patient),
        official_split=str(content.get("official_split", "unknown")),
        packed=packed,
        boxes=content.get("renorm_y1x1z1_y2x2z2"),
    )


def _table(rows: Sequence[_Row], record: CatalogueRecord | None) -> ClassTable:
    names = tuple(dict.fromkeys(name for row in rows for name in row.labels))
    return plain_table(names) if record is None else published_table(names, record)


def _other_labels(rows: Sequence[_Row]) -> dict[str, str]:
    """A note if rows list only some of the classes; the others are background in their label maps."""
    every = {name for row in rows for name in row.labels}
    partial = [row for row in rows if set(row.labels) != every]
    if not partial:
        return {}
    missing = sorted(every - set(partial[0].labels))
    return {
        "labels": f"{len(partial)} of {len(rows)} rows list only some of the {len(every)} classes, row "
        f"{partial[0].number} not {missing[0]!r}: in them, the others count as absent. If they are present but not annotated, "
        "put the rows with the same classes into a file of their own, as a separate dataset"
    }


def _root_of(rows: Sequence[_Row], jsonl: Path) -> Path:
    """The nearest folder from which an image can be reached: here, beside the file, or above it."""
    places = [Path.cwd(), jsonl.resolve().parent, *jsonl.resolve().parent.parents]
    with understanding(jsonl, "a list of scans"):
        for place in places:
            if any(_image_path(row.image, place)[0].exists() for row in rows[:20]):
                return place
    raise UserError(f"{jsonl}: none of its images was found, such as {rows[0].image}; say with --root where they are")


def _image_path(text: str, root: Path) -> tuple[Path, int | None]:
    path = root / text
    if path.parent.name.endswith((".nii", ".nii.gz")):
        volume = _VOLUMES.get(path.name, int(path.name) if path.name.isdigit() else None)
        return path.parent, volume
    return path, None


def _split(
    rows: list[_Row], split: Path | None, jsonl: Path
) -> tuple[list[_Row], frozenset[str], frozenset[str], dict[str, str]]:
    """Rows to convert, patients of the test part and of the validation part, and notes."""
    file = _split_file(split, jsonl)
    if file is None:
        test = frozenset(row.patient for row in rows if row.official_split == "test")
        return rows, test, frozenset(), {"split": "the official split of the rows"}
    try:
        content = read_json(file)
        parts: dict[str, set[str]] = {part: set(map(str, content.get(part, ()))) for part in ("train", "val", "test")}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{file}: not a split with patients under 'train', 'val' and 'test' ({error})") from error
    twice = sorted(parts["test"] & (parts["train"] | parts["val"]))
    every = set.union(*parts.values())
    kept = [row for row in rows if row.patient in every]
    if not kept:
        raise DatasetError(f"{file}: names none of the patients of {jsonl}, such as {rows[0].patient!r}")
    notes = {"split": str(file)}
    if twice:
        notes["in two parts of the split"] = (
            f"{len(twice)} patients, such as {twice[0]}; they are tested, not trained on"
        )
    if len(kept) < len(rows):
        notes["left out by the split"] = f"{len(rows) - len(kept)} scans, whose patients it does not name"
    return kept, frozenset(parts["test"]), frozenset(parts["val"]), notes


def _shared_patients(rows: Sequence[_Row], test: frozenset[str], pattern: str) -> dict[str, str]:
    """A note if a split separates visits of a patient; the published splits do, which makes their scores too high."""
    tested = {_patient(row, pattern) for row in rows if row.patient in test}
    shared = sorted(tested & {_patient(row, pattern) for row in rows if row.patient not in test})
    if not shared:
        return {}
    few = ", ".join(shared[:3])
    return {"patients": f"{len(shared)} of {len(tested)} test patients have another visit in the training part: {few}"}


def _split_file(split: Path | None, jsonl: Path) -> Path | None:
    if split is None or split.is_file():
        return split
    if not split.is_dir():
        raise UserError(f"{split}: no such file or folder")
    file = split / f"{jsonl.stem}.json"
    if file.is_file():
        return file
    # TotalSegmentator's second version shares the patients of the first.
    family = re.match(r"^[^_]+_", jsonl.stem)
    related = sorted(split.glob(f"{family[0]}*.json")) if family and jsonl.stem.startswith("TotalSegmentator") else []
    if related:
        return related[0]
    raise UserError(f"{split}: no split for {jsonl.stem}; expected {file.name}")


def _groups(rows: list[_Row], sequences: str, jsonl: Path) -> list[list[_Row]]:
    if sequences == "cases":
        return [[row] for row in rows]
    by_mask: dict[str, list[_Row]] = defaultdict(list)
    for row in rows:
        by_mask[json.dumps(row.mask)].append(row)
    counts = {len(group) for group in by_mask.values()}
    if len(counts) != 1:
        raise UserError(
            f"{jsonl}: masks have {min(counts)} to {max(counts)} scans; as channels, all cases must have the same "
            "number. Use --sequences cases"
        )
    return list(by_mask.values())


def _channels(groups: Sequence[list[_Row]], record: CatalogueRecord | None, jsonl: Path) -> tuple[str, ...]:
    first = groups[0]
    if len(first) == 1:
        return record.channel_names if record and len(record.channel_names) == 1 else (first[0].modality,)
    own = _endings_of(first)
    for group in groups:
        if _endings_of(group) != own:
            raise UserError(
                f"{jsonl}: the scans of {group[0].mask} end in {_endings_of(group)}, those of {first[0].mask} in {own}; "
                "as channels, all cases must have the same sequences. Use --sequences cases"
            )
    return tuple(f"{row.modality} {text}" for row, text in zip(first, own, strict=True))


def _endings_of(group: Sequence[_Row]) -> list[str]:
    """The ends of file names that tell the scans of a case apart."""
    words = [re.split(r"[-_. ]+", strip_ending(PurePosixPath(row.image).name)) for row in group]
    same = next((i for i, column in enumerate(zip(*words, strict=False)) if len(set(column)) > 1), 0)
    return ["-".join(own[same:]) for own in words]


def _modalities(groups: Sequence[list[_Row]], jsonl: Path) -> tuple[str, ...]:
    channels = []
    for rows in zip(*groups, strict=True):
        found = {modality_of_channel(row.modality) for row in rows}
        if len(found) > 1:
            raise UserError(
                f"{jsonl}: scans of several modalities ({', '.join(sorted(found))}), which one channel cannot have; "
                "put the rows of each modality into a file of their own"
            )
        channels.append(found.pop())
    return tuple(channels)


def _identifiers(rows: Sequence[_Row]) -> list[str]:
    """Names of cases: the patient, with as much of the path as is needed to make them unique."""
    patients = [_safe(strip_ending(row.patient)) for row in rows]
    if len(set(patients)) == len(rows):
        return patients
    parts = [PurePosixPath(_safe_path(row.image)).parts for row in rows]
    for depth in range(1, max(map(len, parts)) + 1):
        tails = ["_".join(p[-depth:]) for p in parts]
        names = [t if p in t else f"{p}_{t}" for p, t in zip(patients, tails, strict=True)]
        if len(set(names)) == len(rows):
            return names
    raise DatasetError(f"the image {rows[0].image} is in more than one row")


def _safe_path(image: str) -> str:
    pure = PurePosixPath(image)
    if image_ending(pure.parent.name):  # a volume of a file
        pure = pure.parent.parent / f"{strip_ending(pure.parent.name)}_{pure.name}"
    return str(PurePosixPath(*(_safe(part) for part in pure.parent.parts), _safe(strip_ending(pure.name))))


def _safe(text: str) -> str:
    return mask_file_name(strip_ending(text.removesuffix(".npy"))).strip("_") or "case"


def _case(
    group: list[_Row], identifier: str, root: Path, test: frozenset[str], orientation: str, patient: str
) -> SourceCase:
    images = []
    for row in group:
        path, volume = _image_path(row.image, root)
        if path.parent.name.endswith((".nii", ".nii.gz")) and volume is None:
            raise DatasetError(f"row {row.number}: {row.image} names an unknown volume")
        spacing = _PACKED_SPACING if row.packed else (1.0, 1.0, 1.0)
        packed_orientation = orientation if row.packed else "RAS"
        images.append(ImageSource(path=path, volume=volume, orientation=packed_orientation, spacing_mm=spacing))
    row = group[0]
    return SourceCase(
        identifier=identifier,
        images=tuple(images),
        mask=_mask(row, root),
        patient=_patient(row, patient),
        test=row.patient in test,
    )


def _patient(row: _Row, pattern: str) -> str:
    found = re.match(pattern, row.patient)
    return found[0] if found else row.patient


def _mask(row: _Row, root: Path) -> MaskSource | None:
    if row.mask is None:
        return None
    if isinstance(row.mask, Mapping):
        given = {str(name): root / str(file) for name, file in row.mask.items()}
        return MaskSource(paths=tuple(given.values()), names=tuple(given))
    if isinstance(row.mask, list):
        if len(row.mask) > len(row.labels):
            raise DatasetError(f"row {row.number}: {len(row.mask)} masks for {len(row.labels)} labels")
        return MaskSource(paths=tuple(root / str(p) for p in row.mask), names=row.labels[: len(row.mask)])
    path = root / str(row.mask)
    if not row.packed and not path.is_dir():
        return MaskSource(paths=(path,), order=row.labels)
    if not path.is_dir():
        return MaskSource(paths=(path,), names=row.labels[:1])  # missing files are reported when they are read
    paths: list[Path] = []
    names: list[str] = []
    boxes: list[Box] = []
    for number, name in enumerate(row.labels):
        box = row.boxes[number] if row.boxes else None
        if row.boxes and not box:
            continue  # a class without a voxel has no box and no file
        files = [path / f"{name}{ending}" for ending in (".npy", ".nii.gz", ".nii")]
        found = next((file for file in files if file.is_file()), files[0] if box else None)
        if found is not None:
            paths.append(found)
            names.append(name)
            boxes += [_box(box, row)] if box else []
    return MaskSource(paths=tuple(paths), names=tuple(names), boxes=tuple(boxes))


def _box(corners: Any, row: _Row) -> Box:
    """The box in a row's ``renorm_y1x1z1_y2x2z2``, whose axes, despite the name, are those of the array."""
    try:
        i1, j1, k1, i2, j2, k2 = (int(n) for n in corners)
    except (TypeError, ValueError) as error:
        raise DatasetError(f"row {row.number}: a box is six whole numbers, got {corners!r:.80}") from error
    return slice(i1, i2), slice(j1, j2), slice(k1, k2)
