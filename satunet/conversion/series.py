"""DICOM: every series below a folder is a scan; label maps come from a folder beside them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from satunet.conversion.classes import plain_table
from satunet.conversion.sources import ImageSource, MaskSource, NumberNeededError, SourceCase, SourceDataset
from satunet.datasets.raw import read_labels
from satunet.errors import UserError
from satunet.images.dicom import Series, find_series
from satunet.images.image import IMAGE_ENDINGS
from satunet.jobs.files import mask_file_name


def read_dicom(
    folder: Path, *, dataset_id: int | None, name: str | None = None, labels: Path | None = None
) -> SourceDataset:
    """Find the series below a folder as a dataset to convert.

    A case is named by the folder of its series; where a folder has several, by their number or UID as well.

    Args:
        folder: With DICOM files, in any depth.
        dataset_id: Number of the dataset.
        name: Its name; that of the folder if not given.
        labels: Folder with a label map a case (``<case>.nii.gz``) and the ``dataset.json`` that names its ids. Cases
            without one go to ``imagesTs``.

    Raises:
        UserError: No series, several modalities, no number, or labels that cannot be used.
    """
    if dataset_id is None:
        raise NumberNeededError(f"{folder}: a dataset of DICOM series has no number of its own; give one with --id")
    found = find_series(folder)
    if not found:
        raise UserError(f"{folder}: no DICOM series in it, and neither rows of SAT-DS nor a dataset of the Decathlon")
    modalities = Counter(series.modality for series in found)
    if len(modalities) > 1:
        counts = ", ".join(f"{n} {modality}" for modality, n in sorted(modalities.items()))
        raise UserError(f"{folder}: series of several modalities ({counts}); convert their folders one by one")
    classes: dict[str, int] = {}
    if labels is not None:
        ids, _ = read_labels(labels / "dataset.json")
        classes = {label: values[0] for label, values in sorted(ids.items(), key=lambda item: item[1])}
        if [*classes.values()] != list(range(1, len(classes) + 1)) or any(len(v) != 1 for v in ids.values()):
            raise UserError(f"{labels / 'dataset.json'}: expected is one id a label, 1 to {len(ids)}")
    cases = []
    for identifier, series in zip(_identifiers(found, folder), found, strict=True):
        files = [labels / f"{identifier}{ending}" for ending in IMAGE_ENDINGS] if labels else []
        label = next((file for file in files if file.is_file()), None)
        cases.append(
            SourceCase(
                identifier=identifier,
                images=(ImageSource(path=series.folder, series=series.uid),),
                mask=MaskSource(paths=(label,)) if label else None,
                patient=series.patient or identifier,
                test=label is None,
            )
        )
    modality = found[0].modality
    own = mask_file_name(name or folder.resolve().name)
    return SourceDataset(
        name=f"Dataset{dataset_id:03d}_{own}",
        channel_names=(modality.upper(),),
        modalities=(modality,),
        table=plain_table(classes or ["foreground"]),
        cases=tuple(cases),
        description=f"DICOM series of {folder.resolve().name}",
        notes={}
        if classes
        else {"labels": "none given: all scans are in imagesTs, and nothing can be trained on them"},
    )


def _identifiers(found: list[Series], folder: Path) -> list[str]:
    def path_name(series: Series) -> str:
        parts = series.folder.relative_to(folder).parts if series.folder != folder else ()
        return "_".join(map(mask_file_name, parts)) or mask_file_name(series.patient or folder.resolve().name)

    names = [path_name(series) for series in found]
    for detail in ("number", "uid"):
        often = Counter(names)
        names = [
            f"{name}_{mask_file_name(getattr(series, detail))}" if often[name] > 1 else name
            for name, series in zip(names, found, strict=True)
        ]
    return names
