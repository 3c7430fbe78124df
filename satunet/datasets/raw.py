"""nnU-Net v2 raw datasets: the folder, its ``dataset.json``, its cases and their scans."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from satunet.datasets.paths import dataset_name_of, dataset_number, preprocessed_dir, raw_dir
from satunet.errors import DatasetError, ScanError, UserError
from satunet.jobs.files import read_json, write_json

MODALITIES = ("ct", "mri", "us", "pet", "other")
"""Modalities in the order of SAT's modality embedding, followed by ``other``."""

HIGHEST_ID = 2**31 - 1
"""Largest label id; batches hold label ids as signed 32-bit integers."""

MODALITIES_FILE = "modalities.json"
"""File beside a dataset's fingerprint with channel → modality, if ``dataset.json`` does not say it or is wrong."""

TRUST_FILE = "trust_shape.json"
"""File beside the fingerprint of a dataset for which ``--trust_shape`` was given: only image shapes are compared."""

_MODALITY_WORDS = {
    "ct": {"ct", "cbct", "ncct", "cta", "cect", "hu"},
    "pet": {"pet", "suv", "fdg", "psma"},
    "us": {"us", "ultrasound", "sonography", "echo"},
    "mri": {
        "mr", "mri", "t1", "t1w", "t1c", "t1ce", "t1gd", "t1n", "t2", "t2w", "t2f", "t2s", "flair", "adc", "dwi", "dti",
        "pd", "swi", "bssfp", "lge", "cine", "dixon", "mra", "mprage", "bold", "asl", "hbv", "tse", "spir", "vibe",
    },
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Case:
    """One visit of a subject: one file per channel, and the label map if there is one.

    Attributes:
        identifier: Name without channel suffix and ending.
        images: Paths, one per channel, in channel order; a file may be missing.
        label: The label map, or ``None`` for a case without a reference.
    """

    identifier: str
    images: tuple[Path, ...]
    label: Path | None

    @property
    def files(self) -> tuple[Path, ...]:
        """All files of the case: images, label map, and the files of voxels that headers refer to."""
        return tuple(file for path in (*self.images, self.label) if path is not None for file in files_behind(path))


def files_behind(path: Path) -> tuple[Path, ...]:
    """An image's file and the files of voxels that its header refers to; only the file itself if it is unreadable."""
    if str(path).lower().endswith((".nii", ".gz", ".mha")):
        return (path,)
    from satunet.images.formats import image_files

    try:
        return image_files(path)
    except ScanError:  # reported when the image is read
        return (path,)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A raw dataset as its ``dataset.json`` describes it.

    Attributes:
        id: Number in the folder's name.
        name: Folder name, ``DatasetNNN_Name``.
        folder: The folder in ``nnUNet_raw``.
        channel_names: Names of the channels, in order.
        modalities: The modality of each channel, one of :data:`MODALITIES`.
        labels: Class → label ids whose union it is; without background and ignore label.
        ignore_label: Id of unlabelled voxels, if the dataset uses one.
        file_ending: Ending of its files, such as ``".nii.gz"``.
        description: Free text, if given.
        reader: Class name of an nnunetv2 reader, if ``dataset.json`` sets one (``overwrite_image_reader_writer``).
        source: Origin of the dataset, ``"source"`` or ``"reference"`` of ``dataset.json``.
        trust_shape: Whether files of a case that have the same shape share a grid, whatever their headers say.
        remarks: Oddities of ``dataset.json`` that are not errors, one sentence each.
        by_path: Whether ``dataset.json`` lists the files of each training case (``"dataset"``), wherever they are.
    """

    id: int
    name: str
    folder: Path
    channel_names: tuple[str, ...]
    modalities: tuple[str, ...]
    labels: dict[str, tuple[int, ...]]
    ignore_label: int | None = None
    file_ending: str = ".nii.gz"
    description: str | None = None
    reader: str | None = None
    source: str | None = None
    trust_shape: bool = False
    remarks: tuple[str, ...] = ()
    by_path: bool = False

    @property
    def label_ids(self) -> frozenset[int]:
        """All ids that may occur in the label maps, without background."""
        ids = {i for values in self.labels.values() for i in values}
        return frozenset(ids | ({self.ignore_label} if self.ignore_label is not None else set()))

    @property
    def has_scans(self) -> bool:
        """Whether there are images or label maps to train on; planning also works without."""
        return self.by_path or any((self.folder / name).is_dir() for name in ("imagesTr", "labelsTr"))

    def training_cases(self) -> tuple[Case, ...]:
        """Cases of ``imagesTr`` and ``labelsTr``, or those that ``dataset.json`` lists, sorted by name.

        Raises:
            DatasetError: The folder is missing, holds no image with this dataset's file ending, or satunet reads no
                format with that ending.
        """
        from satunet.images.formats import IMAGE_ENDINGS, image_ending

        if image_ending(f"x{self.file_ending}") is None:
            raise DatasetError(
                f"{self.folder / 'dataset.json'}: file_ending is {self.file_ending!r}; satunet reads volumes in "
                f"{', '.join(IMAGE_ENDINGS)}. Write the images in one of these formats"
            )
        if self.by_path:
            return _listed_cases(self.folder / "dataset.json", len(self.channel_names))
        cases = self._cases("imagesTr", "labelsTr", labels_required=True)
        if not cases:
            raise DatasetError(
                f"{self.folder / 'imagesTr'}: no training images; expected files such as <case>_0000{self.file_ending}"
            )
        return cases

    def test_cases(self) -> tuple[Case, ...]:
        """Cases of ``imagesTs``; ``label`` is set where ``labelsTs`` has a map. Empty if there are none."""
        return self._cases("imagesTs", "labelsTs", labels_required=False)

    def _cases(self, images: str, labels: str, *, labels_required: bool) -> tuple[Case, ...]:
        folder, place = self.folder / images, self.folder / labels
        pattern = re.compile(rf"^(?P<case>.+)_(?P<channel>\d{{4}}){re.escape(self.file_ending)}$")
        # Listed paths are used as they are: for 10,000 cases, joining folder and name takes longer than listing them.
        present = {path.name: path for path in folder.iterdir()} if folder.is_dir() else {}
        labelled = {path.name: path for path in place.iterdir()} if place.is_dir() else {}
        found = [m for name in present if (m := pattern.match(name))]
        identifiers = {m["case"] for m in found if not m["case"].startswith(".")}
        if labels_required:
            # A label map without any image is a case with a missing channel, not a file to ignore.
            identifiers |= {
                name[: -len(self.file_ending)]
                for name in labelled
                if name.endswith(self.file_ending) and not name.startswith(".")
            }
        cases = []
        for identifier in sorted(identifiers):
            name = f"{identifier}{self.file_ending}"
            label = labelled.get(name) or place / name
            names = [f"{identifier}_{channel:04d}{self.file_ending}" for channel in range(len(self.channel_names))]
            files = tuple(present.get(name) or folder / name for name in names)
            cases.append(
                Case(identifier=identifier, images=files, label=label if labels_required or label.is_file() else None)
            )
        return tuple(cases)


def _listed_cases(file: Path, channels: int) -> tuple[Case, ...]:
    """Cases that ``dataset.json`` lists by path, relative to its folder, as nnunetv2 reads them.

    Raises:
        DatasetError: An entry does not consist of images and a label map.
    """
    listed = read_json(file)["dataset"]
    cases = []
    for identifier, files in sorted(listed.items()):
        if not (
            "/" not in identifier
            and isinstance(files, dict)
            and isinstance(files.get("label"), str)
            and isinstance(files.get("images"), list)
            and all(isinstance(path, str) for path in files["images"])
        ):
            raise DatasetError(
                f"{file}: 'dataset' must give case {identifier!r} a list of paths 'images' and a path 'label', got {files!r}"
            )
        if len(files["images"]) != channels:
            raise DatasetError(f"{file}: case {identifier!r} has {len(files['images'])} images for {channels} channels")
        image_paths, label = (
            [file.parent / os.path.expandvars(path) for path in paths] for paths in (files["images"], [files["label"]])
        )
        cases.append(Case(identifier=identifier, images=tuple(image_paths), label=label[0]))
    return tuple(cases)


def load_dataset(dataset: int | str) -> Dataset:
    """Read a raw dataset's ``dataset.json``.

    Args:
        dataset: Id (``301``, ``"301"``) or folder name.

    Raises:
        DatasetNotFoundError: No such dataset.
        DatasetError: ``dataset.json`` is missing or malformed; the message says what is wrong.
    """
    name = dataset_name_of(dataset)
    folder = raw_dir() / name
    has_preprocessed = bool(os.environ.get("nnUNet_preprocessed"))
    if not folder.is_dir() and has_preprocessed:
        folder = preprocessed_dir() / name  # nnU-Net keeps a copy of dataset.json there: enough for a plan
    loaded = read_dataset(folder)
    if folder.parent != raw_dir():
        loaded = replace(loaded, by_path=False)  # paths are relative to the raw folder, which is not here
    if has_preprocessed and (preprocessed_dir() / name / TRUST_FILE).is_file():
        loaded = replace(loaded, trust_shape=True)
    file = preprocessed_dir() / name / MODALITIES_FILE if has_preprocessed else None
    if file is None or not file.is_file():
        return loaded
    try:
        return replace(loaded, modalities=_given_modalities(read_json(file), loaded.modalities, file))
    except (OSError, ValueError) as error:
        raise error if isinstance(error, DatasetError) else DatasetError(str(error)) from error


def override_modalities(texts: Iterable[str]) -> None:
    """Set the modality of channels permanently; it is stored in ``nnUNet_preprocessed``, never in raw folders.

    Args:
        texts: ``"302=pet"`` for all channels of a dataset, ``"303:1=ct"`` for one; datasets by id or name.

    Raises:
        UserError: A text is malformed, a modality is unknown, or a channel does not exist in the dataset.
        DatasetNotFoundError: No such dataset.
    """
    for text in texts:
        match = re.match(r"^(?P<dataset>[^:=]+)(?::(?P<channel>\d+))?=(?P<modality>\w+)$", text.strip())
        if match is None or match["modality"].lower() not in MODALITIES:
            raise UserError(
                f"modality {text!r}: expected DATASET=MODALITY or DATASET:CHANNEL=MODALITY with a modality "
                f"from {', '.join(MODALITIES)}"
            )
        dataset = load_dataset(match["dataset"])
        channels = range(len(dataset.channel_names)) if match["channel"] is None else [int(match["channel"])]
        if channels[-1] >= len(dataset.channel_names):
            raise UserError(
                f"modality {text!r}: {dataset.name} has {len(dataset.channel_names)} channels, numbered from 0"
            )
        given = {str(channel): modality for channel, modality in enumerate(dataset.modalities)}
        given |= dict.fromkeys(map(str, channels), match["modality"].lower())
        write_json(preprocessed_dir() / dataset.name / MODALITIES_FILE, given)


def trust_shapes(names: Iterable[str]) -> None:
    """Mark datasets whose headers are wrong, so that only the shapes of their images are compared.

    The mark is a file in ``nnUNet_preprocessed``, not in the raw folder; removing the file revokes it.

    Raises:
        DatasetNotFoundError: No such dataset.
    """
    for name in names:
        write_json(preprocessed_dir() / load_dataset(name).name / TRUST_FILE, {"trust_shape": True})


def read_dataset(folder: Path) -> Dataset:
    """As :func:`load_dataset`, for a folder given by path."""
    file = folder / "dataset.json"
    if not file.is_file():
        raise DatasetError(f"{file}: missing; every nnU-Net dataset has one")
    try:
        content = read_json(file)
    except (ValueError, OSError) as error:
        raise DatasetError(str(error)) from error
    if not isinstance(content, dict):
        raise DatasetError(f"{file}: must hold a JSON object, got {type(content).__name__}")
    channels = content.get("channel_names", content.get("modality"))
    if not isinstance(channels, dict) or not channels:
        raise DatasetError(f"{file}: 'channel_names' must map channel numbers to names, got {channels!r}")
    numbered = all(str(key).isdigit() for key in channels)
    # nnunetv2 takes the channels in the order in which they are listed, whatever their keys.
    ordered = tuple(str(channels[key]) for key in (sorted(channels, key=int) if numbered else channels))
    labels, ignore = _labels(content.get("labels"), file)
    description = content.get("description")
    source = content.get("source") or content.get("reference")
    inferred = tuple(modality_of_channel(c, hint=f"{folder.name} {description or ''}") for c in ordered)
    return Dataset(
        id=dataset_number(folder.name),
        name=folder.name,
        folder=folder,
        channel_names=ordered,
        modalities=_given_modalities(content.get("modalities", {}), inferred, file),
        labels=labels,
        ignore_label=ignore,
        file_ending=str(content.get("file_ending", ".nii.gz")),
        description=str(description) if description else None,
        reader=str(reader) if (reader := content.get("overwrite_image_reader_writer")) not in (None, "None") else None,
        source=str(source) if source else None,
        remarks=_remarks(content["labels"], numbered=numbered),
        by_path=isinstance(content.get("dataset"), dict) and bool(content["dataset"]),
    )


def read_labels(file: Path) -> tuple[dict[str, tuple[int, ...]], int | None]:
    """Name → ids of a ``dataset.json``, without background and ignore label; and the id of the ignore label.

    Raises:
        DatasetError: The file is missing or malformed.
    """
    try:
        return _labels(read_json(file)["labels"], file)
    except FileNotFoundError as error:
        raise DatasetError(f"{file}: missing; give the dataset.json that names the label ids") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{file}: no labels can be read from it ({error})") from error


def modality_of_channel(channel_name: str, *, hint: str = "") -> str:
    """Modality of a channel from its name: ``"T1w MRI"`` → ``"mri"``, ``"CT"`` → ``"ct"``.

    Args:
        channel_name: Name of the channel in ``dataset.json``.
        hint: More text (dataset name, description), used if the name says nothing, such as ``"0"`` or ``"image"``.

    Returns:
        One of :data:`MODALITIES`; ``"other"`` if neither text names a modality, or the hint names several.
    """
    for text in (channel_name, hint):
        words = set(re.split(r"[^a-z0-9]+", text.lower()))
        found = [modality for modality, known in _MODALITY_WORDS.items() if words & known]
        if len(found) == 1:
            return found[0]
    return "other"


def scan_id(dataset_name: str, case: str, channel: int) -> str:
    """Name of a scan: one channel of a case of a dataset; :func:`split_scan_id` takes it apart, whatever the names."""
    return f"{_quoted(dataset_name)}__{case}__{channel:04d}"


def split_scan_id(scan: str) -> tuple[str, str, int]:
    """Dataset name, case and channel of a scan's name; the inverse of :func:`scan_id`."""
    dataset_name, _, rest = scan.partition("__")
    case, _, channel = rest.rpartition("__")
    if not case or not channel.isdigit():
        raise ValueError(f"{scan!r} is not the name of a scan; expected <dataset>__<case>__<channel>")
    return dataset_name.replace("%5F", "_").replace("%25", "%"), case, int(channel)


def _quoted(dataset_name: str) -> str:
    """A dataset's name with percent-encoded double underscores, because these end it in a scan's name."""
    quoted = dataset_name.replace("%", "%25").replace("__", "_%5F")
    return f"{quoted[:-1]}%5F" if quoted.endswith("_") else quoted


def _given_modalities(content: Any, inferred: tuple[str, ...], file: Path) -> tuple[str, ...]:
    """The modality of each channel: as a ``modalities.json`` says, else the inferred one."""
    if not isinstance(content, dict) or not all(
        str(key).isdigit() and int(key) < len(inferred) and value in MODALITIES for key, value in content.items()
    ):
        raise DatasetError(
            f"{file}: modalities must map channel numbers below {len(inferred)} to one of {', '.join(MODALITIES)}, "
            f"got {content!r}"
        )
    return tuple(content.get(str(channel), modality) for channel, modality in enumerate(inferred))


def _remarks(labels: dict[str, Any], *, numbered: bool) -> tuple[str, ...]:
    """Remarks on labels that share the background's id (they are not learned) and on channels without numbers."""
    channels = () if numbered else ("'channel_names' has no channel numbers: channels are taken in the order listed",)
    lost = [name for name, value in labels.items() if value in (0, [0]) and name.strip().lower() != "background"]
    return (*channels, *(f"{name!r} has the id 0, which is the background's: it is not a class" for name in lost))


def _labels(content: Any, file: Path) -> tuple[dict[str, tuple[int, ...]], int | None]:
    if not isinstance(content, dict) or not content:
        raise DatasetError(f"{file}: 'labels' must map names to ids, got {content!r}")
    labels: dict[str, tuple[int, ...]] = {}
    ignore: int | None = None
    for name, value in content.items():
        values = value if isinstance(value, (list, tuple)) else [value]
        if not values or not all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in values):
            raise DatasetError(f"{file}: label {name!r} must be one id or a list of ids (integers ≥ 0), got {value!r}")
        if max(values) > HIGHEST_ID:
            raise DatasetError(f"{file}: label {name!r} has the id {max(values)}; allowed are ids up to {HIGHEST_ID}")
        if name.strip().lower() == "ignore" and len(values) == 1:
            ignore = values[0]
        elif list(values) != [0] and name.strip().lower() != "background":
            labels[name] = tuple(sorted(set(values)))
    single = sorted((values[0], name) for name, values in labels.items() if len(values) == 1)
    for (label, name), (other_label, other) in itertools.pairwise(single):
        if label == other_label:
            raise DatasetError(
                f"{file}: labels {name!r} and {other!r} have the same id {label}; an id stands for one label"
            )
    if not labels:
        raise DatasetError(f"{file}: 'labels' lists nothing but the background")
    return labels, ignore
