"""Structures to show, from a result of ``satunet predict``, a folder of masks or a label map."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from satunet.errors import MissingFileError, UnreadableImageError, UserError
from satunet.geometry import Grid, box_of
from satunet.images.image import image_ending, list_images, read_label_map, strip_ending
from satunet.jobs.files import read_json
from satunet.jobs.records import MALFORMED, understanding
from satunet.labels.names import normalize_name
from satunet.types import Box

MANIFEST = "manifest.json"
"""File in a scan's folder of results that describes its masks."""
_LABEL_TABLE = 30
"""NIfTI's code for an extension with a label table."""
_MOST_LABELS = 2000


@dataclass(frozen=True, kw_only=True, eq=False)
class Structure:
    """One structure, inside the smallest box around it.

    Attributes:
        name: Name of the structure.
        box: Box around it in the scan's grid.
        inside: Voxels of the box.
        kind: Class, which decides the colour.
        group: Source of the structure, if several sources are compared.
        note: Further information about the structure.
    """

    name: str
    box: Box
    inside: NDArray[np.bool_]
    kind: str
    group: str = ""
    note: str = ""

    @property
    def voxels(self) -> int:
        """Number of voxels."""
        return int(np.count_nonzero(self.inside))


def read_structures(
    sources: Sequence[Path], names: Sequence[str], grid: Grid, *, scan: Path | None = None
) -> list[Structure]:
    """Structures from label maps, masks, folders of masks, and results.

    Args:
        sources: Sources, each of which is a label map, a mask, a folder of masks, a scan's folder of results, or the
            output folder of a run, in which the scan's results are found by name.
        names: Possible names of the scan's results, the likeliest first.
        grid: Grid of the scan.
        scan: File of the scan, which is not taken for a mask if it lies in a folder of masks.

    Returns:
        Structures in the order of the sources, including empty ones.

    Raises:
        UserError: A source holds no structures, or too many labels.
        ScanError: A file cannot be read, or is on another grid.
    """
    found: list[Structure] = []
    for source, group in zip(sources, _groups(sources), strict=True):
        own = _of_source(source, names, grid, scan)
        found += [replace(s, group=group) for s in own] if len(sources) > 1 else own
    return found


def _groups(sources: Sequence[Path]) -> list[str]:
    """The shortest trailing parts of paths that tell the sources apart."""
    parts = [source.resolve().parts for source in sources]
    most = max(map(len, parts), default=0)
    for length in range(1, most + 1):
        groups = [strip_ending("/".join(p[-length:])) for p in parts]
        if len(set(groups)) == len(groups):
            return groups
    return [f"{strip_ending(s.name)} ({number})" for number, s in enumerate(sources, start=1)]


def _of_source(source: Path, names: Sequence[str], grid: Grid, scan: Path | None) -> list[Structure]:
    if not source.exists():
        raise MissingFileError(source, "no such file or folder; expected masks, a label map or results")
    if not source.is_dir():
        return _of_label_map(source, grid)
    for place in _places(source, names):
        if place.is_file():
            found = _of_manifest(place, grid)
            if found is not None:
                return found
    files = [f for f in list_images(source) if scan is None or f.resolve() != scan.resolve()]
    if not files:
        others = sorted(p.parent.name for p in source.glob(f"*/{MANIFEST}"))
        hint = f"; it has results of {', '.join(others[:5])}" if others else ""
        raise UserError(f"{source}: this folder has neither masks nor results of {names[0]!r}{hint}")
    own = [f for f in files if _stem(f) in names]
    if len(own) == 1:  # a folder of label maps, as nnU-Net keeps them
        return _of_label_map(own[0], grid)
    return [_structure(_stem(f), read_label_map(f, grid=grid).array > 0) for f in files]


def _places(folder: Path, names: Sequence[str]) -> list[Path]:
    """Possible paths of a scan's manifest."""
    found = [folder / MANIFEST, *(folder / n / MANIFEST for n in names), *(folder / f"{n}.json" for n in names)]
    single = list(folder.glob(f"*/{MANIFEST}"))
    return [*found, *(single if len(single) == 1 else [])]


def _stem(file: Path) -> str:
    """Name of a scan or mask, without its ending and nnU-Net's channel suffix."""
    name = strip_ending(file.name)
    return name[:-5] if len(name) > 5 and name[-5] == "_" and name[-4:].isdigit() else name


def _of_manifest(manifest: Path, grid: Grid) -> list[Structure] | None:
    """Structures listed in a manifest of ``satunet predict``; ``None`` if the file is not a manifest."""
    try:
        content = read_json(manifest)
        entries = [e for e in content["prompts"] if isinstance(e["prompt"], str)]
    except (OSError, *MALFORMED):
        return None
    with understanding(manifest, "a manifest of masks"):
        return _listed(entries, manifest, grid)


def _listed(entries: Sequence[Mapping[str, Any]], manifest: Path, grid: Grid) -> list[Structure]:
    labels: NDArray[Any] | None = None
    found = []
    for entry in entries:
        name, kind = entry["prompt"], entry.get("class") or entry["prompt"]
        if entry.get("file"):
            mask = read_label_map(manifest.parent / Path(entry["file"]).name, grid=grid).array > 0
        elif own := entry.get("labels") or ([entry["label"]] if entry.get("label") else []):
            labels = _map_beside(manifest, grid) if labels is None else labels
            mask = np.isin(labels, own)  # a whole includes the parts painted over it
        else:
            continue
        note = f"{entry['status']}, {entry['similarity']:.2f}" if entry.get("status") == "similar" else ""
        found.append(_structure(name, mask, kind=kind, note=note))
    return found


def _map_beside(manifest: Path, grid: Grid) -> NDArray[Any]:
    maps = [f for f in list_images(manifest.parent) if strip_ending(f.name) == manifest.stem]
    if not maps:
        raise MissingFileError(manifest, "there is no label map of the same name beside it")
    return read_label_map(maps[0], grid=grid).array


def _of_label_map(file: Path, grid: Grid) -> list[Structure]:
    manifest = file.with_name(f"{strip_ending(file.name)}.json")
    if manifest.is_file():
        found = _of_manifest(manifest, grid)
        if found is not None:
            return found
    labels = read_label_map(file, grid=grid).array
    ids = [int(v) for v in np.unique(labels) if v]
    names = _dataset_names(file) or _table_names(file)
    if ids in ([], [1]) and not names:
        return [_structure(_stem(file), labels > 0)]
    if len(ids) > _MOST_LABELS:
        raise UserError(f"{file}: {len(ids)} labels; at most {_MOST_LABELS} structures can be shown")
    boxes = _boxes(labels)
    return [_structure(names.get(i, f"label {i}"), labels[boxes[i]] == i, box=boxes[i]) for i in ids]


def _boxes(labels: NDArray[Any]) -> dict[int, Box]:
    from scipy.ndimage import find_objects

    dense = np.unique(labels)
    numbered = np.searchsorted(dense, labels).astype(np.int32)  # ids may be large and far apart
    found = find_objects(numbered + (1 if dense[0] != 0 else 0))
    rest = [v for v in dense if v]
    return {int(v): (box[0], box[1], box[2]) for v, box in zip(rest, found, strict=True) if box is not None}


def _dataset_names(file: Path) -> dict[int, str]:
    """Names from the ``dataset.json`` of the nnU-Net dataset that a label map is in."""
    for folder in (file.parent, file.parent.parent):
        try:
            labels = read_json(folder / "dataset.json")["labels"]
        except (OSError, *MALFORMED):
            continue
        if isinstance(labels, Mapping):
            return {v: str(n) for n, v in labels.items() if isinstance(v, int) and v}
    return {}


def _table_names(file: Path) -> dict[int, str]:
    """Names from the label table in a NIfTI file."""
    import nibabel as nib

    if image_ending(file) not in (".nii", ".nii.gz"):
        return {}
    try:
        extensions = getattr(nib.load(file).header, "extensions", ())  # type: ignore[attr-defined]
        for extension in extensions:
            if extension.get_code() == _LABEL_TABLE:
                # nibabel before 5.3 gives no raw content, and later versions do not decode this kind of extension.
                content = extension.content if hasattr(extension, "content") else extension.get_content()
                root = ElementTree.fromstring(content if isinstance(content, str) else content.rstrip(b"\0"))
                return {
                    int(e.get("Key", "0")): (e.text or "").strip() for e in root.iter("Label") if e.get("Key") != "0"
                }
    except (ElementTree.ParseError, ValueError, json.JSONDecodeError):
        return {}
    except Exception as error:  # a damaged header makes nibabel raise errors of any type
        raise UnreadableImageError(file, f"its label table cannot be read ({error})") from error
    return {}


def _structure(
    name: str,
    mask: NDArray[np.bool_],
    *,
    kind: str | None = None,
    note: str = "",
    box: Box | None = None,
) -> Structure:
    """A structure from a whole mask, or from the part of a mask in a box."""
    if box is None:
        box = box_of(mask) or (slice(0, 0),) * 3
        mask = np.array(mask[box])
    return Structure(name=name, box=box, inside=mask, kind=normalize_name(kind or name).canonical or name, note=note)
