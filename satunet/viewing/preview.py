"""One picture of a scan and its structures: three planes in colour, with a legend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from satunet.geometry import reorient
from satunet.images.colours import colours_of
from satunet.images.hounsfield import to_hounsfield
from satunet.images.image import Image
from satunet.jobs.files import atomic_path
from satunet.types import Box
from satunet.viewing.planes import cut_plane, fullest_slices, intensity_window, paint, palette, structures_box

PLANE = 420
"""Width and height of a plane in pixels."""

_LEGEND_WIDTH, _ROW, _GAP, _HEADING = 330, 21, 8, 30
_ROWS = (PLANE + _HEADING - 34) // _ROW
_EDGES = (("R", "L"), ("R", "L"), ("A", "P"))
"""Letters on the left and right of the axial, coronal and sagittal planes."""
_INK, _PAPER, _FAINT = (235, 238, 240), (16, 18, 20), (150, 156, 160)


class Mask(Protocol):
    """A mask stored inside a box, such as a :class:`satunet.prediction.masks.boxed.BoxedMask`."""

    @property
    def box(self) -> Box:
        """Box outside of which the mask is false."""
        ...

    @property
    def inside(self) -> NDArray[np.bool_]:
        """Voxels of the box."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """A structure to show.

    Attributes:
        name: Name in the legend.
        mask: Mask on the scan's grid; if it is ``None`` or empty, the legend says so.
        kind: Class, which decides the colour; the name if not given.
        note: Note in the legend in place of the volume, if there is no mask.
    """

    name: str
    mask: Mask | None
    kind: str | None = None
    note: str = ""


def write_preview(path: Path, image: Image, found: Sequence[Found], *, title: str, modality: str | None = None) -> None:
    """Write a PNG of the planes that show the most of the structures.

    Planes follow the radiological convention: the patient's right is on the left of axial and coronal planes. Where
    masks overlap, the smaller one lies on top.

    Args:
        path: File to write, ``.png``.
        image: The scan.
        found: Structures, in the order of the legend.
        title: Title above the planes.
        modality: Modality of the scan, which decides the intensity window.
    """
    labels, voxels = _label_map(found, image.grid.shape)
    values = to_hounsfield(image.array) if modality == "ct" else image.array
    turned, grid = reorient(values, image.grid, "RAS")
    shown = reorient(labels, image.grid, "RAS")[0]
    box = structures_box([shown], grid)
    centre = fullest_slices(shown, len(found))
    window = intensity_window(np.asarray(turned[box]), shown[box] > 0, modality)
    colours = palette([f.kind or f.name for f in found])
    planes = []
    for axis in (2, 1, 0):
        gray, plane = cut_plane(turned, shown, axis, centre[axis], box, grid.spacing_mm, PLANE)
        planes.append(paint(gray, plane, window, colours))
    sheet = _sheet(planes, found, voxels, image.grid.voxel_ml, title)
    with atomic_path(path) as temporary:
        sheet.save(temporary, "PNG", optimize=True)


def _label_map(found: Sequence[Found], shape: Sequence[int]) -> tuple[NDArray[np.uint16], list[int]]:
    """One label map with small masks on top, and the number of voxels of each mask."""
    labels = np.zeros(tuple(shape), dtype=np.uint16)
    inside = [None if f.mask is None else f.mask.inside for f in found]
    voxels = [0 if i is None else int(np.count_nonzero(i)) for i in inside]
    for number in sorted(range(len(found)), key=lambda n: -voxels[n]):
        mask, part = found[number].mask, inside[number]
        if mask is not None and part is not None and voxels[number]:
            labels[mask.box][part] = number + 1
    return labels, voxels


def _sheet(
    planes: Sequence[NDArray[np.uint8]], found: Sequence[Found], voxels: Sequence[int], voxel_ml: float, title: str
) -> Any:
    from PIL import Image as Picture
    from PIL import ImageDraw

    width = 3 * PLANE + 4 * _GAP + _LEGEND_WIDTH
    sheet = Picture.new("RGB", (width, PLANE + _HEADING + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    font, small = _font(15), _font(13)
    draw.text((_GAP, 6), _cut(draw, title, 3 * PLANE, font), fill=_INK, font=font)
    for number, (pixels, (left, right)) in enumerate(zip(planes, _EDGES, strict=True)):
        x = _GAP + number * (PLANE + _GAP)
        sheet.paste(Picture.fromarray(pixels), (x, _HEADING))
        middle = _HEADING + PLANE // 2 - 8
        draw.text((x + 4, middle), left, fill=_INK, font=small)
        draw.text((x + PLANE - 14, middle), right, fill=_INK, font=small)
    _draw_legend(draw, 3 * (PLANE + _GAP) + 2 * _GAP, found, voxels, voxel_ml, small)
    return sheet


def _draw_legend(draw: Any, x: int, found: Sequence[Found], voxels: Sequence[int], voxel_ml: float, font: Any) -> None:
    """Draw the structures that were found, the largest first, and then the others."""
    colours = colours_of(f.kind or f.name for f in found)
    order = sorted(range(len(found)), key=lambda n: -voxels[n])
    kept = order if len(order) <= _ROWS else order[: _ROWS - 1]
    for row, n in enumerate(kept):
        y = _HEADING + row * _ROW
        amount = f"{voxels[n] * voxel_ml:,.1f} ml" if voxels[n] else found[n].note or "not found"
        right = x + _LEGEND_WIDTH - 2 * _GAP - draw.textlength(amount, font=font)
        ink = _INK if voxels[n] else _FAINT
        if voxels[n]:
            draw.rectangle((x, y + 3, x + 12, y + 15), fill=colours[n])
        else:
            draw.rectangle((x, y + 3, x + 12, y + 15), outline=_FAINT)
        draw.text((x + 20, y), _cut(draw, found[n].name, right - x - 28, font), fill=ink, font=font)
        draw.text((right, y), amount, fill=ink, font=font)
    if len(kept) < len(order):
        draw.text((x + 20, _HEADING + len(kept) * _ROW), f"and {len(order) - len(kept)} more", fill=_FAINT, font=font)


def _cut(draw: Any, text: str, width: float, font: Any) -> str:
    """The text, shortened with an ellipsis if it does not fit."""
    text = " ".join(text.split())
    if draw.textlength(text, font=font) <= width:
        return text
    while text and draw.textlength(f"{text}…", font=font) > width:
        text = text[:-1]
    return f"{text}…"


def _font(size: int) -> Any:
    """DejaVu Sans, which matplotlib ships: Latin, Greek, Cyrillic."""
    from matplotlib import get_data_path
    from PIL import ImageFont

    return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)
