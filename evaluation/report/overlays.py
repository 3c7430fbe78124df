"""Pictures of segmentations over their scan: three planes, with a column for each label map.

Planes are chosen and painted by :mod:`satunet.viewing.planes`.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from satunet.errors import EnvironmentProblemError
from satunet.geometry import reorient
from satunet.images.colours import colours_of, css
from satunet.images.image import Image
from satunet.viewing.planes import (
    PANEL,
    class_index_map,
    cut_plane,
    fullest_slices,
    intensity_window,
    paint,
    palette,
    structures_box,
)

__all__ = ["PANEL", "Overlay", "Panel", "class_index_map", "draw_overlay"]

_LEGEND = 14


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One column of an overlay.

    Attributes:
        name: Name of the competitor whose label map it shows, or of the reference.
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
        panels: Columns, with the reference first.
        legend: Class and CSS colour of the most visible classes.
        more: Number of visible classes that are not in the legend.
        rank: Rank among the dataset's cases.
        page: Address of a browsable page, relative to the report; empty if there is none.
    """

    dataset: str
    case: str
    panels: tuple[Panel, ...]
    legend: tuple[tuple[str, str], ...]
    more: int
    rank: str = ""
    page: str = ""

    @property
    def size(self) -> int:
        """Characters of all pictures together."""
        return sum(len(p.picture or "") for p in self.panels)


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
            is the reference, which decides what is shown. ``None`` means that there is no such map.
        classes: Names of the classes 1, 2, … of the maps.
        dataset: Name of the dataset, for the caption.
        case: Name of the case, for the caption.
        modality: ``"ct"`` gives the scan a fixed window; others are stretched between their percentiles.
        notes: Name → a line to show below it.
        most_bytes: Approximate upper limit for the size of one picture.
        rank: Rank of the case, for the caption.
    """
    turned, grid = reorient(image.array, image.grid, "RAS")
    maps_ras = {n: None if m is None else reorient(m, image.grid, "RAS")[0] for n, m in maps.items()}
    drawn = [m for m in maps_ras.values() if m is not None]
    if not drawn:
        raise ValueError(f"{dataset}, {case}: there is no label map to draw")
    box = structures_box(drawn, grid)
    centre = fullest_slices(drawn[0], len(classes))
    window = intensity_window(turned[box], drawn[0][box] > 0, modality)
    colours = palette(classes)
    panels, seen = [], np.zeros(len(classes) + 1, dtype=np.int64)
    for name, labels in maps_ras.items():
        note = (notes or {}).get(name, "")
        if labels is None:
            panels.append(Panel(name=name, picture=None, note=note))
            continue
        planes = [cut_plane(turned, labels, axis, centre[axis], box, grid.spacing_mm) for axis in (2, 1, 0)]
        seen += sum(np.bincount(shown.ravel(), minlength=len(seen)) for _, shown in planes)
        strip = np.concatenate([paint(gray, shown, window, colours) for gray, shown in planes])
        panels.append(Panel(name=name, picture=_encode(strip, most_bytes), note=note))
    seen[0] = 0
    names = [css(colour) for colour in colours_of(classes)]
    visible = [int(i) for i in np.argsort(-seen, kind="stable") if seen[i]]
    legend = tuple((classes[i - 1], names[i - 1]) for i in visible[:_LEGEND])
    more = max(0, len(visible) - _LEGEND)
    return Overlay(dataset=dataset, case=case, panels=tuple(panels), legend=legend, more=more, rank=rank)


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
