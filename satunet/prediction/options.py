"""Options of a prediction: each is defined once, here; the command line embeds them, the API takes them, and they are
saved with the result.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, arg

from satunet.compute.choices import Engine, Precision
from satunet.errors import UserError
from satunet.prediction.masks.postprocess import Postprocessing

Modality = Literal["ct", "mri", "us", "pet", "other"]
FAST_OVERLAP = 0.2
USUAL_OVERLAP = 0.5


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Outputs to write.

    Attributes:
        combine: Write one label map per scan; where masks overlap, a part lies over its whole, and otherwise the later
            prompt over the earlier one.
        probabilities: Write probabilities beside the masks.
        dicom_seg: Write a DICOM Segmentation for DICOM series (extra: dicom).
        rtstruct: Write contours as a DICOM RT Structure Set for DICOM series (extra: dicom).
        binary_seg: Write the DICOM Segmentation with binary frames, for software that cannot read label maps.
        dicom_sr: Write measures as a DICOM Structured Report (TID 1500) for DICOM series, together with the
            Segmentation that it refers to (extra: dicom).
        instances: Number the instances of structures that occur more than once (lesions, vertebrae, ribs, teeth) from
            cranial to caudal: in a label map beside the mask, with the voxels and ml of each in the manifest.
        measures: Write a table of each scan's masks: volume, surface, axes, intensities, and on CT the shares of
            tissues by HU range.
        preview: Write a picture of each scan and its masks: three planes in colour with a legend (PNG).
    """

    combine: bool = False
    probabilities: bool = False
    dicom_seg: bool = False
    rtstruct: bool = False
    binary_seg: bool = False
    dicom_sr: bool = False
    instances: bool = False
    measures: bool = False
    preview: bool = False

    def __post_init__(self) -> None:
        if self.combine and self.probabilities:
            raise UserError("probabilities can be written with one mask per prompt, not with one combined label map")
        if self.combine and self.instances:
            raise UserError("instances can be written with one mask per prompt, not with one combined label map")

    @property
    def dicom(self) -> bool:
        """Whether DICOM objects are written for DICOM series."""
        return self.dicom_seg or self.rtstruct or self.dicom_sr


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """How to predict.

    Attributes:
        modality: Modality of all scans; if not given, it is read from each scan, or guessed.
        outputs: Outputs to write.
        postprocessing: Corrections of every mask.
        strict: Stop before the first scan if a prompt does not name a class of the model.
        overlap: Share of a window that is also covered by its neighbour; 0.5 if not given.
        mirror: Average over mirrored windows, for models trained with mirroring. Left and right are exchanged only for
            classes whose plan says so (for these, even without this option if one window holds the whole scan).
        max_absent: Leave out a mask if its structure is absent with at least this probability, and report it as not
            seen; 1 keeps every mask. For models whose confidence is calibrated.
        repair: Repair masks that contradict each other (swapped sides, vertebrae out of order, parts outside their
            wholes) instead of only reporting them.
        min_confidence: Leave out a mask if its expected Dice is lower than this, and report it.
        fast: Use fewer windows (overlap 0.2): up to three times as fast, slightly less accurate.
        batch: Number of windows that go through the network at once.
        memory_gb: Memory for the probabilities of prompts, in GB; less takes more time, but gives the same masks.
        overwrite: Predict all scans again, including those already done.
        device: Device to compute on: cuda, cuda:1, mps or cpu; 'auto' takes the best available.
        engine: Engine that runs the network; results agree within rounding, and 'auto' takes the one that measured
            fastest.
        precision: Precision of the network; 'auto' is float16 on CUDA (an overflow is detected), and bfloat16 on a CPU
            that computes in it natively.
    """

    modality: Modality | None = None
    outputs: OmitArgPrefixes[Outputs] = field(default_factory=Outputs)
    postprocessing: OmitArgPrefixes[Postprocessing] = field(default_factory=Postprocessing)
    strict: bool = False
    overlap: float | None = None
    mirror: bool = False
    max_absent: float = 0.4
    min_confidence: float = 0.0
    repair: bool = False
    fast: bool = False
    batch: int = 1
    memory_gb: Annotated[float, arg(name="memory")] = 2.0
    overwrite: bool = False
    device: Annotated[str, arg(aliases=["-device"], metavar="{auto,cuda,cuda:N,mps,cpu}")] = "auto"
    engine: Engine = "auto"
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        if self.overlap is not None and not 0 <= self.overlap < 1:
            raise UserError(f"overlap must lie in [0, 1), got {self.overlap}")
        if self.batch < 1:
            raise UserError(f"batch must be at least 1, got {self.batch}")
        for name in ("max_absent", "min_confidence"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if not self.memory_gb > 0:
            raise UserError(f"memory must be a positive number of GB, got {self.memory_gb}")

    @property
    def window_overlap(self) -> float:
        """Overlap of windows, from ``overlap`` and ``fast``."""
        return self.overlap if self.overlap is not None else FAST_OVERLAP if self.fast else USUAL_OVERLAP
