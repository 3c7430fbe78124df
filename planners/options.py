"""Options of planning: on the command line, in Python, and saved with the plan."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from tyro.conf import Fixed, Suppress, arg

from satunet.datasets.paths import UNIFIED_DATASET
from satunet.errors import PlanError

Preset = Literal["auto", "nano", "pro"]
Backbone = Literal["plain", "residual"]
NormalizationSchemes = Literal["sat", "nnunet"]
SpecialistPlanner = Literal["default", "resenc_m", "resenc_l", "resenc_xl"]

_UNIFIED_NAME = re.compile(r"^Dataset\d{3}_[A-Za-z0-9_.\-]+$")

LOSS_CHUNK = 32
"""Number of queries whose logits exist at once."""


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Values that the user sets; ``None`` means that a value is planned. A record that is saved in the plan.

    Attributes:
        preset: ``"auto"``, or one of SAT's published networks, ``"nano"`` and ``"pro"``.
        gpu_memory_gb: GPU memory to plan for.
        spacing_mm: Target spacing along right, anterior, superior; used for the specialists as well.
        patch_size: Patch in voxels; rounded up to what the strides allow with ``auto``.
        batch_size: Patches per training step.
        base_features: Features of the first stage (``auto`` only); used for the specialists as well.
        max_features: Largest number of features of a stage (``auto`` only).
        queries_per_scan: Largest number of queries per patch.
        backbone: Plain U-Net or nnU-Net's residual encoder (``auto`` only).
        normalization: SAT's intensity scheme, or nnU-Net's applied to all datasets together.
        text_encoder: Name of the text encoder, see :func:`satunet.text.load_text_encoder`.
        name: Folder of the unified dataset in ``nnUNet_preprocessed``.

    Raises:
        PlanError: The values cannot make a plan.
    """

    preset: Annotated[
        Preset,
        arg(
            help="'auto' lets the planner choose; 'nano' and 'pro' take network, spacing and patch from SAT's publication."
        ),
    ] = "auto"
    gpu_memory_gb: Annotated[float, arg(name="gpu_memory", help="GPU memory to plan for, in GB.")] = 8.0
    spacing_mm: Annotated[
        tuple[float, float, float] | None,
        arg(name="spacing", help="Target spacing in mm (right, anterior, superior); planned if not given."),
    ] = None
    patch_size: Annotated[
        tuple[int, int, int] | None, arg(help="Patch in voxels (right, anterior, superior); planned if not given.")
    ] = None
    batch_size: Annotated[int | None, arg(help="Patches per training step; planned if not given.")] = None
    base_features: Annotated[int | None, arg(help="Features of the first stage; planned if not given.")] = None
    max_features: Annotated[int | None, Fixed, Suppress] = None
    queries_per_scan: Annotated[int, Fixed, Suppress] = LOSS_CHUNK
    backbone: Annotated[
        Backbone, arg(help="Plain U-Net, or nnU-Net's residual encoder: slower, often better (preset 'auto' only).")
    ] = "plain"
    normalization: Annotated[
        NormalizationSchemes, arg(help="SAT's intensity scheme, or nnU-Net's applied to all datasets together.")
    ] = "sat"
    text_encoder: Annotated[
        str,
        arg(
            aliases=["-e"],
            metavar="NAME",
            help="Text encoder: 'minilm', 'anatomy', a folder or a hub name, with options after '?' (pooling=last).",
        ),
    ] = "minilm"
    name: Annotated[str, arg(metavar="ID", help="Name of the unified dataset to create.")] = UNIFIED_DATASET

    def __post_init__(self) -> None:
        for field, choices in (("preset", Preset), ("backbone", Backbone), ("normalization", NormalizationSchemes)):
            if getattr(self, field) not in get_args(choices):
                allowed = ", ".join(get_args(choices))
                raise PlanError(f"{field} {getattr(self, field)!r}; allowed are {allowed}")
        if self.preset != "auto" and self.backbone != "plain":
            raise PlanError(
                f"backbone {self.backbone!r} with the preset {self.preset!r}; allowed only with the preset auto"
            )
        if self.preset != "auto" and (self.base_features, self.max_features) != (None, None):
            raise PlanError(
                f"the number of features can be set only with the preset auto; {self.preset} is SAT's network as published"
            )
        if not self.gpu_memory_gb > 0:
            raise PlanError(f"the GPU memory to plan for must be positive, got {self.gpu_memory_gb} GB")
        if self.spacing_mm is not None and not min(self.spacing_mm) > 0:
            raise PlanError(f"the spacing must be three positive numbers, got {self.spacing_mm}")
        if not _UNIFIED_NAME.match(self.name):
            raise PlanError(
                f"name {self.name!r}: a unified dataset must be named DatasetNNN_Name: three digits, then letters, digits, "
                "'_', '-' and '.', as nnU-Net names datasets"
            )
        if self.patch_size is not None and min(self.patch_size) < 1:
            raise PlanError(f"the patch must be three positive integers, got {self.patch_size}")
