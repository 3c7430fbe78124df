"""Corrections of a mask after thresholding, all of them optional."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the help of commands shows these options without importing numpy
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Postprocessing:
    """Corrections of every mask.

    Attributes:
        largest_component: Keep the largest connected component of each mask (26 neighbours).
        fill_holes: Fill the closed cavities of each mask.
    """

    largest_component: bool = False
    fill_holes: bool = False

    def __bool__(self) -> bool:
        return self.largest_component or self.fill_holes

    def __call__(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Correct a mask, (X, Y, Z) boolean; an empty mask stays empty."""
        import numpy as np

        if not mask.any():
            return mask
        if self.largest_component:
            import cc3d

            # Padded: in a small box in which every other voxel is a component, cc3d 4.1 reserves room for too few.
            largest = cc3d.largest_k(np.pad(mask, 1), k=1, connectivity=26)
            mask = np.ascontiguousarray(largest[1:-1, 1:-1, 1:-1] > 0)
        if self.fill_holes:
            import fill_voids

            mask = np.asarray(fill_voids.fill(np.asfortranarray(mask)), dtype=bool)
        return mask
