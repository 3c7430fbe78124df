"""batchgeneratorsv2's sharpening, which also takes crops of one slice."""

from __future__ import annotations

from typing import Any

from batchgeneratorsv2.transforms.noise.sharpen import SharpeningTransform
from torch import Tensor


class Sharpening(SharpeningTransform):
    """A Laplacian is added, whatever the shape; batchgeneratorsv2 drops axes of one voxel, and may then fail."""

    def _apply_to_image(self, img: Tensor, **params: Any) -> Tensor:
        """Sharpen (C, X, Y, Z).

        An axis of one voxel is made two of the same: the border is replicated, so that neither changes the other.
        """
        n, *shape = img.shape
        twice = img.repeat(1, *(2 if extent == 1 else 1 for extent in shape))
        sharpened: Tensor = super()._apply_to_image(twice, **params)
        return sharpened[:n, : shape[0], : shape[1], : shape[2]]
