"""What a user may choose about a prediction: every option once, embedded by the command, taken by the API, kept with
the result.
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
    """What to write.

    Attributes:
        combine: One label map per scan; where masks overlap, the later prompt wins, and a part its whole.
        probabilities: Write probabilities beside the masks.
        dicom_seg: Write a DICOM Segmentation for DICOM series (extra: dicom).
        rtstruct: Write contours as a DICOM RT Structure Set for DICOM series (extra: dicom).
        binary_seg: Segments of the DICOM Segmentation as binary frames, for readers without label maps.
        dicom_sr: Write measures as a DICOM Structured Report (TID 1500) for DICOM series, and the Segmentation whose segments
            they are of (extra: dicom).
        instances: Number what comes in numbers (lesions, vertebrae, ribs, teeth) from cranial to caudal: a label map beside
            the mask, and voxels and ml of each in the manifest.
        measures: Write a table of each scan's masks: volume, surface, axes, intensities, on CT shares of tissues by HU.
        preview: Write a picture of each scan and what was found in it: three planes, coloured, with a legend (PNG).
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
            raise UserError("probabilities go with one mask per prompt, not with one combined label map")
        if self.combine and self.instances:
            raise UserError("instances go with one mask per prompt, not with one combined label map")

    @property
    def dicom(self) -> bool:
        """Whether DICOM objects are written for DICOM series."""
        return self.dicom_seg or self.rtstruct or self.dicom_sr


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """How to predict.

    Attributes:
        modality: Modality of all scans; a scan's own, or guessed, if not given.
        outputs: What to write.
        postprocessing: What is done to every mask.
        strict: End before the first scan if a prompt names no class of the model.
        overlap: Share of a window that its neighbour covers too; 0.5 if not given.
        mirror: Average over mirrored windows, never across left and right; for models trained with mirroring.
        max_absent: Leave out a mask where the structure is absent with at least this probability, and say that it is not
            seen; 1 leaves none out. For models whose confidence is calibrated.
        repair: Repair masks that contradict each other (swapped sides, vertebrae out of order, parts outside of their
            wholes), which are else only told.
        min_confidence: Leave out a mask of which a smaller Dice is expected, and say so.
        fast: Fewer windows (overlap 0.2): up to three times as fast, a little less exact.
        batch: Windows that go through the network at once.
        memory_gb: GB for the probabilities of prompts; less costs time, never a voxel.
        overwrite: Predict scans again that are done already.
        device: Where to compute: cuda, cuda:1, mps or cpu; 'auto' takes the best.
        engine: How to run the network; results agree within rounding, and 'auto' takes the fastest that was measured.
        precision: Precision of the network; 'auto' is float16 on CUDA, where overflow is noticed, and on a CPU bfloat16 if
            the processor computes in it.
    """

    modality: Modality | None = None
    outputs: OmitArgPrefixes[Outputs] = field(default_factory=Outputs)
    postprocessing: OmitArgPrefixes[Postprocessing] = field(default_factory=Postprocessing)
    strict: bool = False
    overlap: float | None = None
    mirror: bool = False
    max_absent: float = 0.5
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
        """Overlap of windows that ``overlap`` and ``fast`` come to."""
        return self.overlap if self.overlap is not None else FAST_OVERLAP if self.fast else USUAL_OVERLAP
