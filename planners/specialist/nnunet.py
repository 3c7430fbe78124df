"""nnU-Net's own planners without building networks: plans of specialists in milliseconds.

nnunetv2 builds a torch network for every patch it tries, only to count the elements of its feature maps, for which
there is a closed form. The planners here are subclasses of nnunetv2's that replace only this function, so that a plan
is exactly what the installed nnunetv2 would write, key by key.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any
from unittest import mock

import numpy as np

from satunet.errors import PlanError
from satunet.jobs.progress import prints_to_log

logger = logging.getLogger(__name__)

PLANNERS = {
    "default": "ExperimentPlanner",
    "resenc_m": "nnUNetPlannerResEncM",
    "resenc_l": "nnUNetPlannerResEncL",
    "resenc_xl": "nnUNetPlannerResEncXL",
}
"""Name → nnunetv2's class."""
PLANS = {
    "default": "nnUNetPlans",
    "resenc_m": "nnUNetResEncUNetMPlans",
    "resenc_l": "nnUNetResEncUNetLPlans",
    "resenc_xl": "nnUNetResEncUNetXLPlans",
}
"""Name → nnunetv2's name of the plans, which is also their file name."""


def plan_nnunet(
    dataset_name: str,
    *,
    planner: str = "default",
    gpu_memory_gb: float | None = None,
    spacing_mm: Sequence[float] | None = None,
    base_features: int | None = None,
) -> dict[str, Any]:
    """Plan a dataset as nnunetv2 does and write the plans file where nnunetv2 would.

    Args:
        dataset_name: Name of a dataset in ``nnUNet_raw``, with its ``dataset_fingerprint.json`` in
            ``nnUNet_preprocessed``; scans need not be there.
        planner: Name of the planner, one of :data:`PLANNERS`.
        gpu_memory_gb: Memory to plan for; the planner's own if not given.
        spacing_mm: Target spacing of 3d_fullres in nnU-Net's axes (z, y, x); planned if not given.
        base_features: Features of the first stage; 32 if not given.

    Returns:
        The plans.

    Raises:
        PlanError: The planner is unknown, or no plan fits.
    """
    options: dict[str, Any] = {}
    if gpu_memory_gb is not None:
        options["gpu_memory_target_in_gb"] = gpu_memory_gb
    if spacing_mm is not None:
        options["overwrite_target_spacing"] = [float(s) for s in spacing_mm]
    with prints_to_log(logger, "nnunetv2"):
        made = planner_class(planner)(dataset_name, **options)
        if base_features is not None:
            made.UNet_base_num_features = base_features
        try:
            plans: dict[str, Any] = made.plan_experiment()
        except (ArithmeticError, AssertionError, LookupError, RuntimeError, ValueError) as error:
            # If no patch fits, it shrinks the patch to nothing, which ends in various errors.
            raise PlanError(f"{dataset_name}: nnU-Net's planner failed ({type(error).__name__}: {error})") from error
    return plans


@lru_cache(maxsize=len(PLANNERS))
def planner_class(planner: str) -> Any:
    """A subclass of one of nnunetv2's planners that builds no network; nnunetv2's own functions accept it.

    Raises:
        PlanError: The name is unknown.
    """
    if planner not in PLANNERS:
        raise PlanError(f"planner {planner!r}; allowed are {', '.join(PLANNERS)}")
    from nnunetv2.experiment_planning.experiment_planners import default_experiment_planner as default
    from nnunetv2.experiment_planning.experiment_planners.residual_unets import residual_encoder_unet_planners

    base: Any = getattr(default if planner == "default" else residual_encoder_unet_planners, PLANNERS[planner])

    class Planner(base):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            listed = default.get_filenames_of_train_images_and_targets

            def files(folder: str, dataset_json: dict[str, Any]) -> dict[str, Any]:
                try:
                    found: dict[str, Any] = listed(folder, dataset_json)
                    return found
                except FileNotFoundError:  # planning needs no scans; only the choice of a reader wants one
                    return {}

            with mock.patch.object(default, "get_filenames_of_train_images_and_targets", files):
                super().__init__(*args, **kwargs)

        def determine_reader_writer(self) -> Any:
            if self.dataset:
                return super().determine_reader_writer()
            return default.determine_reader_writer_from_dataset_json(self.dataset_json, None, verbose=False)

        @staticmethod
        def static_estimate_VRAM_usage(  # noqa: N802 (nnunetv2's name)
            patch_size: Sequence[int],
            input_channels: int,
            output_channels: int,
            arch_class_name: str,
            arch_kwargs: Mapping[str, Any],
            arch_kwargs_req_import: Sequence[str],
        ) -> np.int64:
            return np.int64(feature_map_size(patch_size, arch_class_name, arch_kwargs, output_channels))

    Planner.__name__ = base.__name__  # nnunetv2 writes it into the plans
    return Planner


def feature_map_size(
    patch_size: Sequence[int], network_class: str, arch_kwargs: Mapping[str, Any], output_channels: int
) -> int:
    """Elements of all convolutions' outputs for one patch: ``compute_conv_feature_map_size`` of the built network.

    Args:
        patch_size: 2 or 3 axes.
        network_class: Name that ends in ``PlainConvUNet`` or ``ResidualEncoderUNet``.
        arch_kwargs: Architecture, as in nnU-Net's plans: ``n_stages``, ``features_per_stage``, ``strides``,
            ``n_conv_per_stage`` or ``n_blocks_per_stage``, ``n_conv_per_stage_decoder``.
        output_channels: Output channels of the segmentation layer at full resolution.

    Raises:
        PlanError: The network is of another kind.
    """
    name = network_class.rpartition(".")[2]
    if name not in ("PlainConvUNet", "ResidualEncoderUNet"):
        raise PlanError(
            f"feature maps of {network_class} are not known; allowed are PlainConvUNet, ResidualEncoderUNet"
        )
    residual = name == "ResidualEncoderUNet"
    features, stages = arch_kwargs["features_per_stage"], arch_kwargs["n_stages"]
    depth = arch_kwargs["n_blocks_per_stage" if residual else "n_conv_per_stage"]
    size = [int(n) for n in patch_size]
    # a residual encoder starts with a convolution of its own
    total = features[0] * int(np.prod(size, dtype=np.int64)) if residual else 0
    entering = features[0]
    for stage in range(stages):
        before, size = size, [n // s for n, s in zip(size, arch_kwargs["strides"][stage], strict=True)]
        voxels = int(np.prod(size, dtype=np.int64))
        per_channel = depth[stage] * (2 if residual else 1)
        if residual and (entering != features[stage] or before != size):
            per_channel += 1  # the projection of the first block's skip
        if stage < stages - 1:
            # decoder convolutions and the transposed convolution before them
            per_channel += arch_kwargs["n_conv_per_stage_decoder"][stages - 2 - stage] + 1
        total += per_channel * features[stage] * voxels
        if stage == 0:
            total += output_channels * voxels
        entering = features[stage]
    return total
