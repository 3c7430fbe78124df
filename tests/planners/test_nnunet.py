"""nnU-Net's planners in closed form: against nnunetv2's own, against networks that are built, against published plans."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    nnUNetPlannerResEncL,
    nnUNetPlannerResEncM,
    nnUNetPlannerResEncXL,
)
from torch import nn

from satunet.errors import PlanError
from satunet.planners.specialist.nnunet import PLANNERS, PLANS, feature_map_size, plan_nnunet, planner_class

PEERS = {
    "default": ExperimentPlanner,
    "resenc_m": nnUNetPlannerResEncM,
    "resenc_l": nnUNetPlannerResEncL,
    "resenc_xl": nnUNetPlannerResEncXL,
}


@st.composite
def topologies(draw: st.DrawFn) -> tuple[list[int], dict[str, Any]]:
    axes = draw(st.sampled_from([2, 3]))
    stages = draw(st.integers(2, 4))
    strides = [[1] * axes] + [[draw(st.sampled_from([1, 2])) for _ in range(axes)] for _ in range(stages - 1)]
    divisor = np.prod(strides, axis=0)
    patch = [int(d) * draw(st.integers(1, 4)) for d in divisor]
    return patch, {
        "n_stages": stages,
        "features_per_stage": [draw(st.sampled_from([2, 3, 4, 6])) for _ in range(stages)],
        "strides": strides,
        "kernel_sizes": [[3] * axes] * stages,
        "n_conv_per_stage_decoder": [draw(st.integers(1, 3)) for _ in range(stages - 1)],
    }


@settings(max_examples=40)
@given(topologies(), st.booleans(), st.integers(1, 5), st.data())
def test_feature_maps_are_counted_as_by_the_built_network(
    topology: tuple[list[int], dict[str, Any]], residual: bool, classes: int, data: st.DataObject
) -> None:
    patch, kwargs = topology
    depth = [data.draw(st.integers(1, 3)) for _ in range(kwargs["n_stages"])]
    kwargs = kwargs | {"n_blocks_per_stage" if residual else "n_conv_per_stage": depth}
    network_class = ResidualEncoderUNet if residual else PlainConvUNet
    conv = nn.Conv2d if len(patch) == 2 else nn.Conv3d
    norm = nn.InstanceNorm2d if len(patch) == 2 else nn.InstanceNorm3d
    network = network_class(2, conv_op=conv, norm_op=norm, nonlin=nn.LeakyReLU, num_classes=classes, **kwargs)
    counted = feature_map_size(patch, f"x.{network_class.__name__}", kwargs, classes)
    assert counted == network.compute_conv_feature_map_size(patch)


def _prepare(env: Path, name: str, spacings: list[list[float]], shapes: list[list[int]], cases: int) -> None:
    for folder in ("raw", "preprocessed"):
        (env / folder / name).mkdir()
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "tumor": 2}, "numTraining": cases,
               "file_ending": ".nii.gz", "overwrite_image_reader_writer": "NibabelIOWithReorient"}  # fmt: skip
    (env / "raw" / name / "dataset.json").write_text(json.dumps(content))
    intensities = dict.fromkeys(("mean", "median", "std", "min", "max", "percentile_99_5", "percentile_00_5"), 1.0)
    fingerprint = {"spacings": spacings, "shapes_after_crop": shapes, "median_relative_size_after_cropping": 1.0,
                   "foreground_intensity_properties_per_channel": {"0": intensities}}  # fmt: skip
    (env / "preprocessed" / name / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))


@pytest.mark.parametrize("planner", sorted(PLANNERS))
def test_plans_are_nnunetv2s_own_in_every_key(nnunet_env: Path, planner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "Dataset001_Small"
    _prepare(nnunet_env, name, [[3.0, 0.9, 0.8], [2.5, 0.7, 0.7]], [[30, 96, 110], [40, 120, 100]], 2)
    file = nnunet_env / "preprocessed" / name / f"{PLANS[planner]}.json"
    plan_nnunet(name, planner=planner)
    ours = json.loads(file.read_text())
    file.unlink()
    # nnunetv2 wants a scan to choose a reader by, even where dataset.json names one
    (nnunet_env / "raw" / name / "imagesTr").mkdir()
    (nnunet_env / "raw" / name / "labelsTr").mkdir()
    (nnunet_env / "raw" / name / "imagesTr" / "a_0000.nii.gz").write_bytes(b"")
    PEERS[planner](name).plan_experiment()
    assert json.loads(file.read_text()) == ours


def _essentials(configuration: dict[str, Any]) -> dict[str, Any]:
    """What a plan decides, of today's format and of the one the published plans have."""
    names = ("patch_size", "batch_size", "normalization_schemes", "use_mask_for_norm")
    found = {name: configuration[name] for name in names}
    if "architecture" in configuration:
        kwargs = configuration["architecture"]["arch_kwargs"]
        return found | {
            "strides": kwargs["strides"],
            "kernels": kwargs["kernel_sizes"],
            "features": kwargs["features_per_stage"],
            "depth": kwargs["n_conv_per_stage"],
        }
    strides, most = configuration["pool_op_kernel_sizes"], configuration["unet_max_num_features"]
    return found | {
        "strides": strides,
        "kernels": configuration["conv_kernel_sizes"],
        "features": [min(most, configuration["UNet_base_num_features"] * 2**i) for i in range(len(strides))],
        "depth": configuration["n_conv_per_stage_encoder"],
    }


def test_published_plans_of_3d_networks(shared_dir: Path, nnunet_env: Path) -> None:
    compared = 0
    for folder in sorted((shared_dir / "reference" / "sat_ds" / "datasets").iterdir()):
        for root, file in (("raw", "dataset.json"), ("preprocessed", "dataset_fingerprint.json")):
            (nnunet_env / root / folder.name).mkdir()
            shutil.copy(folder / file, nnunet_env / root / folder.name / file)
        plans = json.loads(json.dumps(plan_nnunet(folder.name)))
        if not (folder / "nnUNetPlans.json").is_file():
            continue
        published = json.loads((folder / "nnUNetPlans.json").read_text())
        ours, theirs = (p["configurations"]["3d_fullres"] for p in (plans, published))
        assert _essentials(ours) == _essentials(theirs), folder.name
        assert np.allclose(ours["spacing"], theirs["spacing"])
        assert plans["transpose_forward"] == published["transpose_forward"]
        compared += 1
    assert compared == 60


def test_what_cannot_be_planned(nnunet_env: Path) -> None:
    with pytest.raises(PlanError, match="planner 'huge'; allowed are default, resenc_m"):
        planner_class("huge")
    with pytest.raises(PlanError, match="allowed are PlainConvUNet, ResidualEncoderUNet"):
        feature_map_size((8, 8), "x.Transformer", {}, 2)
    _prepare(nnunet_env, "Dataset001_A", [[1.0, 1.0, 1.0]], [[99, 99, 99]], 1)
    with pytest.raises(PlanError, match="Dataset001_A: nnU-Net's planner failed"):
        plan_nnunet("Dataset001_A", gpu_memory_gb=1e-6)
