"""DICOM: every series below a folder is a scan; label maps are in another folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from satunet.conversion.classes import plain_table
from satunet.conversion.sources import ImageSource, MaskSource, NumberNeededError, SourceCase, SourceDataset
from satunet.datasets.raw import read_labels
from satunet.errors import UserError
from satunet.images.dicom import Found, Series, search
from satunet.images.dicom.stack import is_sheared
from satunet.images.image import IMAGE_ENDINGS
from satunet.jobs.files import mask_file_name


def read_dicom(
    folder: Path, *, dataset_id: int | None, name: str | None = None, labels: Path | None = None
) -> SourceDataset:
    """Find the series below a folder as a dataset to convert.

    A case is named after the folder of its series; if a folder has several, their number or UID is added.

    Args:
        folder: Folder with DICOM files, at any depth.
        dataset_id: Number of the dataset.
        name: Name of the dataset; that of the folder if not given.
        labels: Folder with one label map per case (``<case>.nii.gz``) and a ``dataset.json`` that names the ids. Cases
            without one go to ``imagesTs``.

    Raises:
        UserError: There are no series, several modalities, no number, or unusable labels.
    """
    if dataset_id is None:
        raise NumberNeededError(f"{folder}: a dataset of DICOM series has no number of its own; give one with --id")
    below = search(folder)
    found = below.series
    if not found:
        others = ", ".join(sorted(set(below.passed_over.values())))
        raise UserError(
            f"{folder}: no DICOM series of slices in it{f' (passed over: {others})' if others else ''}, and neither rows "
            "of SAT-DS nor a dataset of the Decathlon"
        )
    modalities = Counter(series.modality for series in found if not series.fault) or Counter([found[0].modality])
    if len(modalities) > 1:
        counts = ", ".join(f"{n} {modality}" for modality, n in sorted(modalities.items()))
        raise UserError(f"{folder}: series of several modalities ({counts}); convert their folders one by one")
    classes = _classes(labels) if labels is not None else {}
    names = _identifiers(found, folder)
    (modality,) = modalities
    own = mask_file_name(name or folder.resolve().name)
    # SimpleITK, which nnU-Net reads NIfTI with by default, refuses the sheared grid of a tilted gantry.
    sheared = any(series.grid is not None and is_sheared(series.grid) for series in found)
    return SourceDataset(
        name=f"Dataset{dataset_id:03d}_{own}",
        channel_names=(modality.upper(),),
        modalities=(modality,),
        table=plain_table(classes or ["foreground"]),
        cases=tuple(_case(identifier, series, labels) for identifier, series in zip(names, found, strict=True)),
        description=f"DICOM series of {folder.resolve().name}",
        extra={"overwrite_image_reader_writer": "NibabelIO"} if sheared else {},
        notes=_notes(below, names, bool(classes)),
    )


def _case(identifier: str, series: Series, labels: Path | None) -> SourceCase:
    files = [labels / f"{identifier}{ending}" for ending in IMAGE_ENDINGS] if labels else []
    label = next((file for file in files if file.is_file()), None)
    return SourceCase(
        identifier=identifier,
        images=(ImageSource(path=series.folder, dicom=series),),
        mask=MaskSource(paths=(label,)) if label else None,
        patient=series.patient or identifier,
        test=label is None,
    )


def _classes(labels: Path) -> dict[str, int]:
    ids, _ = read_labels(labels / "dataset.json")
    classes = {label: values[0] for label, values in sorted(ids.items(), key=lambda item: item[1])}
    if [*classes.values()] != list(range(1, len(classes) + 1)) or any(len(v) != 1 for v in ids.values()):
        raise UserError(f"{labels / 'dataset.json'}: expected one id per label, 1 to {len(ids)}")
    return classes


def _notes(below: Found, names: Sequence[str], labelled: bool) -> dict[str, str]:
    """Notes for the user: repairs, and series that are not volumes."""
    notes = {name: "; ".join(s.remarks) for name, s in zip(names, below.series, strict=True) if s.remarks}
    notes |= {f"passed over {what}": kind for what, kind in below.passed_over.items()}
    if not labelled:
        notes["labels"] = "none given: all scans are in imagesTs, and nothing can be trained on them"
    return notes


def _identifiers(found: Sequence[Series], folder: Path) -> list[str]:
    def path_name(series: Series) -> str:
        parts = series.folder.relative_to(folder).parts if series.folder != folder else ()
        return "_".join(map(mask_file_name, parts)) or mask_file_name(series.patient or folder.resolve().name)

    names = [path_name(series) for series in found]
    for detail in ("number", "uid", "patient"):
        often = Counter(names)
        names = [
            f"{name}_{mask_file_name(getattr(series, detail))}" if often[name] > 1 else name
            for name, series in zip(names, found, strict=True)
        ]
    return names
