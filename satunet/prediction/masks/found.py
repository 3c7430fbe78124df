"""Objects that a predictor passes to the writer of results: a prepared scan, probabilities, masks."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from satunet.confidence.calibration import Worth
from satunet.confidence.evidence import Evidence
from satunet.images.image import Image
from satunet.prediction.masks.boxed import BoxedMask, restore_values
from satunet.prediction.masks.mean import ValuesInFile
from satunet.prediction.masks.postprocess import Postprocessing
from satunet.preprocessing.transform import ScanGeometry
from satunet.prompts.matching import PromptMatch
from satunet.types import Axes, SpacingMm
from satunet.windows.engine import Probability

Look = tuple[int, SpacingMm, Axes]
"""Number of a group of models, spacing, and window: together, one way to look at a scan."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptMask:
    """Result of a prompt.

    Attributes:
        match: Meaning of the prompt to the model.
        boxed: Mask on the image's own grid, stored compactly; ``None`` for a prompt that means nothing to the model.
        worth: Confidence of the mask; ``None`` if the model's confidence is not calibrated.
        left_out: Reason why a mask was left out and ``boxed`` is empty; empty if it was not left out.
        doubts: Contradictions between the mask and the scan's other masks, or the training data, one sentence each.
        repaired: Whether the mask was changed because of these contradictions.
    """

    match: PromptMatch
    boxed: BoxedMask | None
    worth: Worth | None = None
    left_out: str = ""
    doubts: tuple[str, ...] = ()
    repaired: bool = False

    @property
    def mask(self) -> NDArray[np.bool_] | None:
        """(X, Y, Z) on the image's own grid, unpacked at every call; ``None`` like ``boxed``."""
        return None if self.boxed is None else self.boxed.full


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """All masks of a scan.

    Attributes:
        image: The scan.
        modality: Modality that was assumed for the scan.
        masks: Masks, one per prompt, in the order of the prompts; one per class for a prompt that stands for several
            classes.
    """

    image: Image
    modality: str
    masks: tuple[PromptMask, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """A scan as a group of models sees it.

    Attributes:
        volume: (X, Y, Z) float32 in the plan's orientation and the look's spacing, normalised.
        geometry: Geometry that leads back to the file's grid.
        patch: Size of a window in voxels.
    """

    volume: NDArray[np.float32]
    geometry: ScanGeometry
    patch: tuple[int, int, int]


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedScan:
    """A scan that is prepared for the networks.

    Attributes:
        image: The scan as it was given.
        modality: Modality, one of :data:`~satunet.datasets.raw.MODALITIES`.
        views: Look → view of the scan, made on first use. Looks that differ only in their window share a volume.
    """

    image: Image
    modality: str
    views: dict[Look, View] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """Probability of a prompt, and the geometry that leads back to the scan's file.

    Attributes:
        probability: Probability on the grid of a view; ``None`` if it is in ``in_file``.
        geometry: Geometry of that view.
        in_file: Probability on the grid of the file.
        one_piece: Whether the models know the structure as one connected piece.
        peak: Largest probability in any window of any model.
        agreement: Share of the windows that agree; the mean if there are several models or parts.
    """

    probability: Probability | None = None
    geometry: ScanGeometry | None = None
    in_file: ValuesInFile | None = None
    one_piece: bool = False
    peak: float = 0.0
    agreement: float = 0.0

    def restored(self) -> ValuesInFile | None:
        """Values along the file's axes and their box's first voxel; ``None`` if they reach no voxel of the file."""
        if self.probability is None or self.geometry is None:
            return self.in_file
        if self.probability.values is None:
            return None
        return restore_values(self.probability.values.numpy(), self.probability.box, self.geometry)

    def largest_piece(self) -> ValuesInFile | None:
        """The restored values; of a structure that is one piece, only the largest piece above one half is kept."""
        restored = self.restored()
        if restored is None or not self.one_piece:
            return restored
        values, start = restored
        mask = values > 0.5
        return np.where(mask & ~Postprocessing(largest_component=True)(mask), np.float32(0), values), start


@dataclass(frozen=True, kw_only=True, eq=False)
class Weighed:
    """A mask with the evidence for it.

    Attributes:
        mask: Mask on the scan's own grid.
        evidence: Evidence from which its confidence is estimated.
    """

    mask: BoxedMask
    evidence: Evidence
