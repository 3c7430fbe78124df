"""One HTML file with a scan, its structures and the viewer NiiVue; it opens in any browser, without a connection.

Structures that do not overlap share one label map ("layer"); toggling one changes a row of the layer's colour table.
Scans that are too large for a browser are shown at a reduced resolution; the stated volumes are always computed at full
resolution.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satunet.geometry import Grid
from satunet.images.colours import colours_of, css
from satunet.images.hounsfield import to_hounsfield
from satunet.images.image import Image
from satunet.jobs.files import write_text
from satunet.viewing.planes import intensity_window
from satunet.viewing.structures import Structure

MOST_VOXELS = 32_000_000
"""Default number of voxels above which a scan is shown at a reduced resolution."""

_HERE = Path(__file__).parent
_LEVELS = 4095
"""Number of steps in which fractional intensities are stored."""
_LAYER_LABELS = 60
"""Largest number of labels in a layer. With more than 63, NiiVue mixes the first label's colour into the background: it
rounds positions in the colour table up to 2/256, the middle of the first of 64 entries."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Layer:
    """Structures that do not overlap."""

    labels: NDArray[np.uint8]
    numbers: list[int]


def write_page(
    path: Path,
    image: Image,
    structures: Sequence[Structure],
    *,
    title: str,
    modality: str | None = None,
    most_voxels: int = MOST_VOXELS,
) -> None:
    """Write the page.

    Args:
        path: File to write, ``.html``.
        image: The scan.
        structures: Structures on the scan's grid.
        title: Title of the page.
        modality: Modality of the scan, which decides the initial intensity window.
        most_voxels: Number of voxels above which a scan is shown at a reduced resolution.
    """
    steps = _steps(image.grid, most_voxels)
    grid = _coarser(image.grid, steps)
    layers, places = _layers(structures, image.grid.shape, steps)
    colours = colours_of(s.kind for s in structures)
    drawn = np.zeros(grid.shape, dtype=bool)
    for layer in layers:
        drawn |= layer.labels > 0
    voxels = _averaged(to_hounsfield(image.array) if modality == "ct" else image.array, steps)
    content = {
        "title": title,
        "scan": _nifti(*_stored(voxels), grid),
        "window": [float(v) for v in intensity_window(voxels, drawn, modality)],
        "ct": modality == "ct",
        "steps": list(steps),
        "layers": [_nifti(layer.labels, 1.0, 0.0, grid) for layer in layers],
        "structures": [
            {
                "name": s.name,
                "group": s.group,
                "note": s.note,
                "colour": list(colour),
                "css": css(colour),
                "ml": s.voxels * image.grid.voxel_ml,
                "layer": place[0] if place else None,
                "label": place[1] if place else None,
                "centre": _centre(s, image.grid),
            }
            for s, colour, place in zip(structures, colours, places, strict=True)
        ],
    }
    write_text(path, _html(title, content))


def _html(title: str, content: dict[str, Any]) -> str:
    """The page as text; names are escaped."""
    from html import escape

    data = json.dumps(content, ensure_ascii=False).replace("<", "\\u003c").replace("\u2028", "\\u2028")
    pieces = {
        "TITLE": escape(title),
        "STYLE": (_HERE / "page.css").read_text("utf-8"),
        "LICENCE": (_HERE / "niivue" / "LICENSE.txt").read_text("utf-8").replace("--", "- -"),
        "NIIVUE": (_HERE / "niivue" / "niivue.umd.js").read_text("utf-8"),
        "SCRIPT": (_HERE / "page.js").read_text("utf-8"),
        "DATA": data,
    }
    page = []
    for part in (_HERE / "page.html").read_text("utf-8").split("@@"):
        page.append(pieces.get(part, part))
    return "".join(page)


def _steps(grid: Grid, most_voxels: int) -> tuple[int, int, int]:
    """Number of scan voxels per shown voxel along each axis; the finest axis is coarsened first."""
    steps = [1, 1, 1]
    while np.prod([-(-n // s) for n, s in zip(grid.shape, steps, strict=True)]) > most_voxels:
        size = [mm * s if n > s else np.inf for mm, s, n in zip(grid.spacing_mm, steps, grid.shape, strict=True)]
        steps[int(np.argmin(size))] += 1
    return steps[0], steps[1], steps[2]


def _coarser(grid: Grid, steps: tuple[int, int, int]) -> Grid:
    """The grid whose voxels are blocks of ``steps`` voxels; the last ones may extend beyond the scan."""
    x, y, z = (-(-n // s) for n, s in zip(grid.shape, steps, strict=True))
    turn = np.diag([*steps, 1.0]).astype(np.float64)
    turn[:3, 3] = (np.array(steps) - 1) / 2
    return Grid(shape=(x, y, z), affine=grid.affine @ turn)


def _averaged(array: NDArray[Any], steps: tuple[int, int, int]) -> NDArray[Any]:
    """Block means, computed slab by slab; the array itself if blocks are single voxels."""
    if steps == (1, 1, 1):
        return array
    result = np.empty([-(-n // s) for n, s in zip(array.shape, steps, strict=True)], dtype=np.float32)
    for k in range(result.shape[2]):
        slab = array[:, :, k * steps[2] : (k + 1) * steps[2]].astype(np.float32).mean(axis=2)
        for axis in (0, 1):
            starts = np.arange(0, slab.shape[axis], steps[axis])
            counts = np.diff([*starts, slab.shape[axis]])
            slab = np.add.reduceat(slab, starts, axis=axis) / (counts[:, None] if axis == 0 else counts)
        result[:, :, k] = slab
    return np.rint(result).astype(array.dtype) if np.issubdtype(array.dtype, np.integer) else result


def _layers(
    structures: Sequence[Structure], shape: Sequence[int], steps: tuple[int, int, int]
) -> tuple[list[_Layer], list[tuple[int, int] | None]]:
    """Layers, filled greedily by size, and the (layer, label) of each structure; ``None`` for an empty structure."""
    layers: list[_Layer] = []
    places: list[tuple[int, int] | None] = [None] * len(structures)
    small = [-(-n // s) for n, s in zip(shape, steps, strict=True)]
    # Large structures first, so that small ones end up in later layers, on top.
    for number in sorted(range(len(structures)), key=lambda n: -structures[n].voxels):
        box, inside = _thinned(structures[number], steps)
        if not inside.any():
            continue
        for position in range(len(layers) + 1):
            if position == len(layers):
                layers.append(_Layer(labels=np.zeros(small, dtype=np.uint8), numbers=[]))
            layer = layers[position]
            part = layer.labels[box]
            if len(layer.numbers) < _LAYER_LABELS and not part[inside].any():
                layer.numbers.append(number)
                part[inside] = len(layer.numbers)
                places[number] = (position, len(layer.numbers))
                break
    return layers, places


def _thinned(structure: Structure, steps: tuple[int, int, int]) -> tuple[tuple[slice, ...], NDArray[np.bool_]]:
    """The blocks that a structure fills at least by half; if it is too thin for that, all blocks that it touches."""
    if steps == (1, 1, 1) or not structure.voxels:
        return structure.box, structure.inside
    first = [b.start // s for b, s in zip(structure.box, steps, strict=True)]
    last = [-(-b.stop // s) for b, s in zip(structure.box, steps, strict=True)]
    before = [b.start - f * s for b, f, s in zip(structure.box, first, steps, strict=True)]
    after = [n * s - b.stop for b, n, s in zip(structure.box, last, steps, strict=True)]
    padded = np.pad(structure.inside, list(zip(before, after, strict=True)))
    x, y, z = (b - a for a, b in zip(first, last, strict=True))
    share = padded.reshape(x, steps[0], y, steps[1], z, steps[2]).mean(axis=(1, 3, 5))
    inside = share >= 0.5 if (share >= 0.5).any() else share > 0
    return tuple(slice(a, b) for a, b in zip(first, last, strict=True)), inside


def _centre(structure: Structure, grid: Grid) -> list[float] | None:
    """Position of the structure's voxel nearest its centre of mass, in RAS millimetres."""
    voxels = np.argwhere(structure.inside)
    if not len(voxels):
        return None
    if len(voxels) > 200_000:
        voxels = voxels[:: len(voxels) // 100_000]
    nearest = voxels[np.argmin(((voxels - voxels.mean(axis=0)) ** 2).sum(axis=1))]
    index = nearest + [b.start for b in structure.box]
    return [round(float(v), 3) for v in (grid.affine @ [*index, 1])[:3]]


def _stored(array: NDArray[Any]) -> tuple[NDArray[Any], float, float]:
    """Voxels as small integers, and the slope and intercept that restore the values."""
    low, high = float(array.min()), float(array.max())
    if np.issubdtype(array.dtype, np.integer) or np.array_equal(array, np.rint(array)):
        if low >= 0 and high <= 255:
            return array.astype(np.uint8), 1.0, 0.0
        if low >= -32768 and high <= 32767:
            return array.astype(np.int16), 1.0, 0.0
    slope = (high - low) / _LEVELS or 1.0
    return np.rint((array - low) / slope).astype(np.int16), slope, low


def _nifti(array: NDArray[Any], slope: float, intercept: float, grid: Grid) -> str:
    """A compressed NIfTI file in base64."""
    import nibabel as nib
    from isal import igzip

    image = nib.Nifti1Image(array, grid.affine)
    image.header.set_slope_inter(slope, intercept)
    image.header.set_xyzt_units("mm")
    image.set_sform(grid.affine, code=1)
    image.set_qform(None, code=0)
    return base64.b64encode(igzip.compress(image.to_bytes(), 2, mtime=0)).decode()
