"""Pictures of segmentations over their scan: three planes, one column a label map.

Axial and coronal planes are shown as radiologists see them, the patient's right on the left; sagittal planes look to
the left. Pixels are square in millimetres.
"""

from __future__ import annotations

import base64
import colorsys
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satunet.errors import EnvironmentProblemError
from satunet.geometry import Grid, reorient
from satunet.images.image import Image

PANEL = 288
"""Width and height of one plane, in pixels."""

_MARGIN_MM = 12.0
_CT_WINDOW = (-200.0, 300.0)
_FILL = 0.38
_LEGEND = 14
_FEW_COLOURS = (
    "#e6553a", "#3fa7d6", "#f2c14e", "#5fbf77", "#b57edc", "#ff8fb3", "#2ec4b6", "#d98c5f", "#8ecae6", "#c5d86d",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One column of an overlay.

    Attributes:
        name: Whose label map it shows.
        picture: ``data:`` address of the picture, the planes from top to bottom; ``None`` if there is no label map.
        note: A line below the name.
    """

    name: str
    picture: str | None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Overlay:
    """Pictures of one case.

    Attributes:
        dataset: The dataset.
        case: The case.
        panels: Reference first.
        legend: Class and CSS colour of the classes that are seen most.
        more: Classes that are seen but not in the legend.
        rank: What it is among the dataset's cases.
    """

    dataset: str
    case: str
    panels: tuple[Panel, ...]
    legend: tuple[tuple[str, str], ...]
    more: int
    rank: str = ""

    @property
    def size(self) -> int:
        """Characters of all pictures together."""
        return sum(len(p.picture or "") for p in self.panels)


def class_index_map(
    masks: Mapping[str, NDArray[np.bool_]], classes: Sequence[str], shape: Sequence[int]
) -> NDArray[np.uint16]:
    """One label map of masks that may overlap: value i + 1 is ``classes[i]``, and smaller masks lie on top.

    Args:
        masks: Class → (X, Y, Z) mask; a class without one is absent.
        classes: All classes.
        shape: (X, Y, Z).
    """
    labels = np.zeros(tuple(shape), dtype=np.uint16)
    sizes = {name: int(np.count_nonzero(mask)) for name, mask in masks.items()}
    for name in sorted(masks, key=lambda n: (-sizes[n], n)):
        labels[masks[name]] = classes.index(name) + 1
    return labels


def draw_overlay(
    image: Image,
    maps: Mapping[str, NDArray[np.uint16] | None],
    classes: Sequence[str],
    *,
    dataset: str,
    case: str,
    modality: str | None = None,
    notes: Mapping[str, str] | None = None,
    most_bytes: int = 60_000,
    rank: str = "",
) -> Overlay:
    """Draw label maps over their scan.

    Args:
        image: The scan.
        maps: Name → (X, Y, Z) map of class numbers as :func:`class_index_map` makes them, on the scan's grid; the first
            is the reference, which decides what is shown. ``None``: there is no such map.
        classes: Class i + 1 of the maps.
        dataset: For the caption.
        case: For the caption.
        modality: ``"ct"`` gives the scan a fixed window; others are stretched between their percentiles.
        notes: Name → a line below it.
        most_bytes: About how large one picture may be.
        rank: For the caption.
    """
    turned, grid = reorient(image.array, image.grid, "RAS")
    maps_ras = {n: None if m is None else reorient(m, image.grid, "RAS")[0] for n, m in maps.items()}
    drawn = [m for m in maps_ras.values() if m is not None]
    if not drawn:
        raise ValueError(f"{dataset}, {case}: there is no label map to draw")
    box = _box(drawn, grid)
    centre = _slices(drawn[0], len(classes))
    window = _CT_WINDOW if modality == "ct" else _window(turned[box])
    colours = class_colours(len(classes))
    panels, seen = [], np.zeros(len(classes) + 1, dtype=np.int64)
    for name, labels in maps_ras.items():
        note = (notes or {}).get(name, "")
        if labels is None:
            panels.append(Panel(name=name, picture=None, note=note))
            continue
        planes = [_plane(turned, labels, axis, centre[axis], box, grid.spacing_mm) for axis in (2, 1, 0)]
        seen += sum(np.bincount(shown.ravel(), minlength=len(seen)) for _, shown in planes)
        strip = np.concatenate([_paint(gray, shown, window, colours) for gray, shown in planes])
        panels.append(Panel(name=name, picture=_encode(strip, most_bytes), note=note))
    seen[0] = 0
    visible = [int(i) for i in np.argsort(-seen, kind="stable") if seen[i]]
    legend = tuple((classes[i - 1], _css(colours[i])) for i in visible[:_LEGEND])
    more = max(0, len(visible) - _LEGEND)
    return Overlay(dataset=dataset, case=case, panels=tuple(panels), legend=legend, more=more, rank=rank)


def class_colours(n: int) -> NDArray[np.float32]:
    """(n + 1, 3) colours between 0 and 1, of which the first, for background, is black; the same for the same ``n``."""
    rows = [(0.0, 0.0, 0.0)]
    for i in range(n):
        if n <= len(_FEW_COLOURS):
            text = _FEW_COLOURS[i]
            rows.append((int(text[1:3], 16) / 255, int(text[3:5], 16) / 255, int(text[5:7], 16) / 255))
        else:  # steps of the golden angle keep neighbouring numbers apart
            rows.append(colorsys.hls_to_rgb(i * 0.618034 % 1, 0.5 + 0.14 * (i % 3 - 1), 0.75))
    return np.array(rows, dtype=np.float32)


def _box(maps: Sequence[NDArray[np.uint16]], grid: Grid) -> tuple[slice, slice, slice]:
    """Box of everything drawn with a margin, at least half as long along an axis as along the longest."""
    found = [np.array([(w.min(), w.max() + 1) for w in np.nonzero(m)]) for m in maps if m.any()]
    spacing, shape = np.array(grid.spacing_mm), np.array(grid.shape)
    if not found:
        return slice(0, grid.shape[0]), slice(0, grid.shape[1]), slice(0, grid.shape[2])
    low = np.min([f[:, 0] for f in found], axis=0) * spacing
    high = np.max([f[:, 1] for f in found], axis=0) * spacing
    length = high - low
    margin = _MARGIN_MM + 0.08 * length.max() + np.maximum(0, 0.5 * length.max() - length) / 2
    first = np.maximum(0, np.floor((low - margin) / spacing)).astype(int)
    last = np.minimum(shape, np.ceil((high + margin) / spacing)).astype(int)
    x, y, z = (slice(int(a), int(b)) for a, b in zip(first, last, strict=True))
    return x, y, z


def _slices(labels: NDArray[np.uint16], n: int) -> list[int]:
    """For each axis, the slice that shows most: many classes and large ones."""
    if not labels.any():
        return [s // 2 for s in labels.shape]
    where = np.nonzero(labels)
    values = labels[where].astype(np.int64)
    best = []
    for axis in range(3):
        areas = np.bincount(where[axis] * (n + 1) + values, minlength=labels.shape[axis] * (n + 1))
        best.append(int(np.sqrt(areas.reshape(labels.shape[axis], n + 1)).sum(axis=1).argmax()))
    return best


def _window(values: NDArray[Any]) -> tuple[float, float]:
    low, high = (float(v) for v in np.percentile(values, (1, 99.5)))
    return (low, high) if high > low else (low, low + 1)


def _plane(
    volume: NDArray[Any],
    labels: NDArray[np.uint16],
    axis: int,
    index: int,
    box: tuple[slice, slice, slice],
    spacing_mm: Sequence[float],
) -> tuple[NDArray[np.float32], NDArray[np.uint16]]:
    """Scan and labels of a plane, both (PANEL, PANEL), the upper end of the rows on top."""
    where: list[slice | int] = list(box)
    where[axis] = index
    across, up = (a for a in range(3) if a != axis)
    # The right, or the front in a sagittal plane, comes first in a row; the front, or the top, in a column.
    gray = np.flip(volume[tuple(where)].T, (0, 1))
    shown = np.flip(labels[tuple(where)].T, (0, 1))
    height_mm, width_mm = gray.shape[0] * spacing_mm[up], gray.shape[1] * spacing_mm[across]
    scale = PANEL / max(height_mm, width_mm)
    size = max(1, round(height_mm * scale)), max(1, round(width_mm * scale))
    top, left = (PANEL - size[0]) // 2, (PANEL - size[1]) // 2
    frame = np.full((PANEL, PANEL), -np.inf, dtype=np.float32)  # below any window: black
    frame_labels = np.zeros((PANEL, PANEL), dtype=np.uint16)
    inside = slice(top, top + size[0]), slice(left, left + size[1])
    frame[inside] = _resize(gray.astype(np.float32), size)
    rows, columns = (
        np.minimum((np.arange(m) + 0.5) * n / m, n - 1).astype(int) for m, n in zip(size, gray.shape, strict=True)
    )
    frame_labels[inside] = shown[np.ix_(rows, columns)]
    return frame, frame_labels


def _resize(gray: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Linear interpolation between pixel centres."""
    result = gray
    for axis, m in enumerate(size):
        n = result.shape[axis]
        at = np.clip((np.arange(m) + 0.5) * n / m - 0.5, 0, n - 1)
        lower = np.minimum(at.astype(int), max(0, n - 2))
        share = (at - lower).astype(np.float32)
        share = share[:, None] if axis == 0 else share[None]
        low, high = result.take(lower, axis), result.take(np.minimum(lower + 1, n - 1), axis)
        result = low * (1 - share) + high * share
    return result


def _paint(
    gray: NDArray[np.float32], labels: NDArray[np.uint16], window: tuple[float, float], colours: NDArray[np.float32]
) -> NDArray[np.uint8]:
    """(PANEL, PANEL, 3) picture: classes filled lightly, with an outline."""
    level = np.clip((gray - window[0]) / (window[1] - window[0]), 0, 1)[..., None]
    edge = np.zeros(labels.shape, dtype=bool)
    for axis in (0, 1):
        changes = np.diff(labels, axis=axis) != 0
        first, second = [slice(None), slice(None)], [slice(None), slice(None)]
        first[axis], second[axis] = slice(None, -1), slice(1, None)
        edge[tuple(first)] |= changes
        edge[tuple(second)] |= changes
    strength = np.where(labels > 0, np.where(edge, 0.95, _FILL), 0.0)[..., None]
    mixed = level * (1 - strength) + colours[labels] * strength
    return np.asarray(np.rint(255 * mixed), dtype=np.uint8)


def _encode(pixels: NDArray[np.uint8], most_bytes: int) -> str:
    try:
        from PIL import Image as Picture
        from PIL import features
    except ImportError as error:
        raise EnvironmentProblemError(f"pictures need Pillow, which cannot be imported: {error}") from error
    kind = "WEBP" if features.check("webp") else "JPEG"
    content = b""
    for quality in (82, 65, 45, 25):
        stream = io.BytesIO()
        Picture.fromarray(pixels).save(stream, kind, quality=quality)
        content = stream.getvalue()
        if len(content) <= most_bytes:
            break
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content).decode()}"


def _css(colour: NDArray[np.float32]) -> str:
    return "#" + "".join(f"{round(255 * float(v)):02x}" for v in colour)
