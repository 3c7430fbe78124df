"""Pictures: a scan in three planes with the reference and each prediction in colour."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satunet.geometry import Grid, reorient


def overlay_png(
    image: NDArray[Any], grid: Grid, labels: Mapping[str, NDArray[np.integer[Any]]], *, alpha: float = 0.5
) -> bytes:
    """A PNG with a row a plane and a column for the scan and for each label map.

    The planes go through the centre of the first label map. Axes are turned to RAS: sagittal pictures face right,
    coronal and axial ones have the patient's right on the right.

    Args:
        image: (X, Y, Z) intensities.
        grid: Of the image and all label maps.
        labels: Title → (X, Y, Z) ids; an id has the same colour in every column.
        alpha: Of the colours.
    """
    from matplotlib.figure import Figure

    volume, ras = reorient(image, grid, "RAS")
    maps = {title: reorient(m, grid, "RAS")[0] for title, m in labels.items()}
    shown = np.argwhere(next(iter(maps.values())) > 0)
    centre = np.median(shown, axis=0).astype(int) if len(shown) else np.array(volume.shape) // 2
    low, high = np.percentile(volume[volume != 0] if (volume != 0).any() else volume, (1, 99.5))
    grey = np.clip((volume - low) / max(float(high - low), 1e-8), 0, 1)
    lut = _colours(max(int(m.max(initial=0)) for m in maps.values()) + 1)
    spacing = ras.spacing_mm
    columns: list[tuple[str, NDArray[Any] | None]] = [("scan", None), *maps.items()]
    figure = Figure(figsize=(2.6 * len(columns), 7.6), facecolor="black", layout="constrained")
    axes = figure.subplots(3, len(columns), squeeze=False)
    for row, axis in enumerate((0, 1, 2)):
        others = [a for a in range(3) if a != axis]
        aspect = spacing[others[1]] / spacing[others[0]]
        back = np.take(grey, centre[axis], axis=axis)
        for column, (title, label) in enumerate(columns):
            picture = np.repeat(back[..., None], 3, axis=2)
            if label is not None:
                ids = np.take(label, centre[axis], axis=axis)
                picture = np.where((ids > 0)[..., None], (1 - alpha) * picture + alpha * lut[ids], picture)
            axes[row, column].imshow(picture.transpose(1, 0, 2), origin="lower", aspect=aspect, interpolation="nearest")
            axes[row, column].set_axis_off()
            if row == 0:
                axes[row, column].set_title(title, color="white", fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, facecolor="black")
    return buffer.getvalue()


def bars_png(names: Sequence[str], values: Mapping[str, Sequence[float]], label: str) -> bytes:
    """A PNG of horizontal bars: a group a name, a bar a competitor."""
    from matplotlib.figure import Figure

    height = 0.8 / max(1, len(values))
    figure = Figure(figsize=(10, max(2.5, 0.24 * len(names) + 1)), layout="constrained")
    axes = figure.subplots()
    for i, (title, numbers) in enumerate(values.items()):
        axes.barh(np.arange(len(names)) + i * height - 0.4 + height / 2, numbers, height, label=title)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.set_xlabel(label)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(values), frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def scatter_png(x: Sequence[float], y: Sequence[float], x_label: str, y_label: str) -> bytes:
    """A PNG of a scatter of two competitors' scores with the diagonal."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1)
    axes.scatter(x, y, s=16, alpha=0.7)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel=x_label, ylabel=y_label, aspect="equal")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def _colours(count: int) -> NDArray[np.float64]:
    """(count, 3) colours, neighbours far apart; 0 is black."""
    from matplotlib.colors import hsv_to_rgb

    ids = np.arange(count)
    hue = (ids * 0.61803398875) % 1  # the golden ratio spreads any number of hues
    saturation = 0.65 + 0.35 * ((ids // 3) % 2)
    value = 1.0 - 0.25 * ((ids // 7) % 2)
    lut: NDArray[np.float64] = hsv_to_rgb(np.stack([hue, saturation, value], axis=1))
    lut[0] = 0
    return lut
