"""Evidence for a mask: by-products of its prediction that do not depend on the grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Triple = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Evidence for one mask.

    Attributes:
        peak: Largest probability in any look at any window, 0 to 1, even if the mask is empty.
        agreement: Share of the looks that agree; see :class:`satunet.windows.engine.Probability`.
        volume_ml: Volume of the mask before postprocessing.
        inside: Mean probability in the mask; this and the following values are 0 for an empty mask.
        overlap: Dice that the probabilities themselves imply, for a reference that contains each voxel with its
            probability.
        whole: Share of the mask that is in its largest connected component.
        free: Degree to which the mask is free of the scan's border: 1 if it does not touch the border, and smaller the
            more of it does.
        centre_mm: Centre of mass in RAS+ millimetres; ``None`` for an empty mask.
    """

    peak: float
    agreement: float = 0.0
    volume_ml: float = 0.0
    inside: float = 0.0
    overlap: float = 0.0
    whole: float = 0.0
    free: float = 0.0
    centre_mm: Triple | None = None

    @property
    def drawn(self) -> bool:
        """Whether there is a mask."""
        return self.volume_ml > 0


def weigh(
    values: NDArray[np.floating],
    start: Sequence[int],
    shape: Sequence[int],
    affine: NDArray[np.float64],
    *,
    peak: float,
    agreement: float,
) -> Evidence:
    """Gather the evidence for a mask.

    Args:
        values: (x, y, z) probabilities in a box around all voxels above one half and their neighbours.
        start: First voxel of the box in the scan.
        shape: (X, Y, Z) of the scan.
        affine: Affine of the scan, from voxels to RAS+ millimetres.
        peak: Largest probability, as in :class:`Evidence`.
        agreement: Agreement of windows, as in :class:`Evidence`.
    """
    mask = values > 0.5
    voxels = int(np.count_nonzero(mask))
    if not voxels:
        return Evidence(peak=peak)
    likely = float(values[mask].sum(dtype=np.float64))
    everything = float(values.sum(dtype=np.float64))
    centre = [start[axis] + _mean_index(mask, axis, voxels) for axis in range(3)]
    x, y, z = (affine @ np.array([*centre, 1.0]))[:3]
    return Evidence(
        peak=max(peak, float(values.max())),
        agreement=agreement,
        volume_ml=voxels * abs(float(np.linalg.det(affine[:3, :3]))) / 1000,
        inside=likely / voxels,
        overlap=2 * likely / (voxels + everything),
        whole=_largest_share(mask, voxels),
        free=1 - min(1.0, _on_border(mask, start, shape) / voxels ** (2 / 3)),
        centre_mm=(float(x), float(y), float(z)),
    )


def _mean_index(mask: NDArray[np.bool_], axis: int, voxels: int) -> float:
    profile = mask.sum(axis=tuple(a for a in range(3) if a != axis), dtype=np.int64)
    return float(profile @ np.arange(profile.size)) / voxels


def _largest_share(mask: NDArray[np.bool_], voxels: int) -> float:
    import cc3d

    pieces = cc3d.connected_components(np.pad(mask, 1), connectivity=26)
    return float(np.bincount(pieces.ravel())[1:].max()) / voxels


def _on_border(mask: NDArray[np.bool_], start: Sequence[int], shape: Sequence[int]) -> int:
    """Number of the mask's voxels on the six faces of the scan; an axis with a single slice has no faces."""
    count = 0
    for axis in range(3):
        if shape[axis] == 1:
            continue
        for index in (-start[axis], shape[axis] - 1 - start[axis]):
            if 0 <= index < mask.shape[axis]:
                count += int(np.count_nonzero(np.take(mask, index, axis=axis)))
    return count
