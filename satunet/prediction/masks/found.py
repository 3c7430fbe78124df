"""What passes between a predictor and what writes results: a prepared scan, probabilities, masks."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from satunet.confidence.calibration import Worth
from satunet.confidence.evidence import Evidence
from satunet.images.image import Image
from satunet.prediction.masks.boxed import BoxedMask, restore_values
from satunet.prediction.masks.mean import ValuesInFile
from satunet.preprocessing.transform import ScanGeometry
from satunet.prompts.matching import PromptMatch
from satunet.types import Axes, SpacingMm
from satunet.windows.engine import Probability

Look = tuple[int, SpacingMm, Axes]
"""Number of a group of models, spacing and window: one way to look at a scan."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptMask:
    """What a prompt gave.

    Attributes:
        match: What the prompt means to the model.
        boxed: The mask in the image's own grid, kept small; ``None`` for a prompt the model cannot know.
        worth: What it is worth; ``None`` where the model's confidence was not calibrated.
        left_out: Why a mask that was found is not in ``boxed``; empty if it was not left out.
        doubts: How it contradicts the scan's other masks, or training; a sentence each.
        repaired: Whether it was changed for that.
    """

    match: PromptMatch
    boxed: BoxedMask | None
    worth: Worth | None = None
    left_out: str = ""
    doubts: tuple[str, ...] = ()
    repaired: bool = False

    @property
    def mask(self) -> NDArray[np.bool_] | None:
        """(X, Y, Z) in the image's own grid, made anew at every call; ``None`` for a prompt the model cannot know."""
        return None if self.boxed is None else self.boxed.full


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """Masks of a scan.

    Attributes:
        image: The scan.
        modality: Modality it was taken for.
        masks: One per prompt, in the order of the prompts; one per class for a prompt that stands for several.
    """

    image: Image
    modality: str
    masks: tuple[PromptMask, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """A scan as some of the models see it.

    Attributes:
        volume: (X, Y, Z) float32 in the plan's orientation and the spacing asked for, normalised.
        geometry: The way back.
        patch: Voxels of a window.
    """

    volume: NDArray[np.float32]
    geometry: ScanGeometry
    patch: tuple[int, int, int]


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedScan:
    """A scan that the networks can look at.

    Attributes:
        image: As it was given.
        modality: One of :data:`~satunet.datasets.raw.MODALITIES`.
        views: Look → what the networks see; filled when it is needed. Looks that differ by their window share a volume.
    """

    image: Image
    modality: str
    views: dict[Look, View] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """A prompt's probability, and the way to the scan's file.

    Attributes:
        probability: In a view's grid; ``None`` where ``in_file`` has it.
        geometry: Of that view.
        in_file: In the grid of the file.
        one_piece: Whether the models say that the structure is one connected piece.
        peak: Largest probability in any look of any model.
        agreement: Share of the looks that agree; of several models or parts, the mean.
    """

    probability: Probability | None = None
    geometry: ScanGeometry | None = None
    in_file: ValuesInFile | None = None
    one_piece: bool = False
    peak: float = 0.0
    agreement: float = 0.0

    def restored(self) -> ValuesInFile | None:
        """Values along the file's axes, and the first voxel of their box; ``None`` if no voxel of the file has any."""
        if self.probability is None or self.geometry is None:
            return self.in_file
        if self.probability.values is None:
            return None
        return restore_values(self.probability.values.numpy(), self.probability.box, self.geometry)


@dataclass(frozen=True, kw_only=True, eq=False)
class Weighed:
    """A mask, and what speaks for it.

    Attributes:
        mask: In the scan's own grid.
        evidence: What its confidence is estimated from.
    """

    mask: BoxedMask
    evidence: Evidence
