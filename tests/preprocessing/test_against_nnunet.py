"""27 real datasets: what nnunetv2's own preprocessor makes of a scan, and what ours makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nnunetv2.preprocessing.normalization.default_normalization_schemes import (
    CTNormalization,
    NoNormalization,
    RescaleTo01Normalization,
    RGBTo01Normalization,
    ZScoreNormalization,
)
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from satunet.datasets.raw import read_dataset
from satunet.errors import PlanError
from satunet.geometry import Grid, reorient
from satunet.images.image import Image, read_image, read_label_map
from satunet.network.config import NetworkConfig
from satunet.plan import Normalization, UnifiedPlan
from satunet.preprocessing.transform import normalize, preprocess_image, preprocess_labels

NUMBERS = [n for n in range(301, 329) if n != 313]
NETWORK = NetworkConfig.auto(
    features_per_stage=(8, 16), strides=((1, 1, 1), (2, 2, 2)), kernel_sizes=((3, 3, 3),) * 2, text_dim=24
)
INTENSITIES = {"mean": 80.0, "std": 120.0, "percentile_00_5": -150.0, "percentile_99_5": 400.0}


def real_case(real_raw: Path, number: int, most: int = 72) -> tuple[Image, Image]:
    """Image and labels of a dataset's first case, at most ``most`` voxels along an axis, around its labels."""
    dataset = read_dataset(next(real_raw.glob(f"Dataset{number}_*")))
    case = dataset.training_cases()[0]
    assert case.label is not None
    image = read_image(case.images[0])
    labels = read_label_map(case.label, allowed_ids=dataset.label_ids, grid=image.grid)
    middle = np.argwhere(labels.array).mean(axis=0).astype(int)
    start = [int(np.clip(m - most // 2, 0, max(0, n - most))) for m, n in zip(middle, image.array.shape, strict=True)]
    window = tuple(slice(s, s + most) for s in start)
    affine = image.grid.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ start
    x, y, z = image.array[window].shape
    grid = Grid(shape=(x, y, z), affine=affine)
    return Image(array=image.array[window], grid=grid), Image(array=labels.array[window], grid=grid)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_real_scan_comes_out_as_from_nnunetv2(real_raw: Path, number: int) -> None:
    image, labels = real_case(real_raw, number)
    spacing = (1.0, 1.0, 3.0) if number % 2 else (1.5, 1.5, 1.5)
    plan = UnifiedPlan(
        spacing_mm=spacing,
        patch_size=(16, 16, 16),
        network=NETWORK,
        normalization={"other": Normalization.of_nnunet("ZScoreNormalization")},
    )
    prepared = preprocess_image(image, modality="other", plan=plan)
    ids = preprocess_labels(labels, prepared.geometry)

    turned, grid = reorient(image.array, image.grid, "RAS")
    content = plan.to_nnunet() | {"foreground_intensity_properties_per_channel": {"0": {}}}
    plans = PlansManager(content)
    listed = {"labels": {"background": 0, "any": 1}, "channel_names": {"0": "x"}, "file_ending": ".nii.gz"}
    expected, _, _ = DefaultPreprocessor(verbose=False).run_case_npy(
        np.ascontiguousarray(turned)[None],
        np.ones((1, *turned.shape), np.int16),
        {"spacing": list(grid.spacing_mm)},
        plans,
        plans.get_configuration("3d_fullres"),
        listed,
    )
    assert prepared.array.shape == expected.shape
    difference = np.abs(prepared.array - expected) / np.ptp(expected)
    assert np.percentile(difference, 99.9) < 1e-5
    assert difference.max() < 1e-4

    # Label maps by themselves: nnunetv2's cropping splits the background in two, -1 where the image is zero and 0
    # elsewhere, and a voxel that is half background on such an edge is then lost to a structure with less of it.
    inside = reorient(labels.array, labels.grid, "RAS")[0][prepared.geometry.crop]
    by_nnunet = resample_data_or_seg_to_shape(
        np.ascontiguousarray(inside)[None], prepared.geometry.shape, grid.spacing_mm, spacing, is_seg=True, order=1,
        order_z=0, force_separate_z=None,
    )  # fmt: skip
    assert (ids != by_nnunet).mean() <= 1e-4
    assert set(np.unique(ids)) <= set(np.unique(labels.array))


def cut_out(seed: int = 0) -> np.ndarray:
    """A volume of a body with a hole of zeros in it, zeros around."""
    volume = np.random.default_rng(seed).normal(90, 150, size=(20, 18, 16)).astype(np.float32)
    body = np.zeros(volume.shape, bool)
    body[3:17, 2:15, 4:13] = True
    body[8:10, 7:9, 7:9] = False
    return volume * body


@pytest.mark.parametrize(
    ("scheme", "peer", "use_mask"),
    [
        ("CTNormalization", CTNormalization, False),
        ("ZScoreNormalization", ZScoreNormalization, False),
        ("ZScoreNormalization", ZScoreNormalization, True),
        ("NoNormalization", NoNormalization, False),
        ("RescaleTo01Normalization", RescaleTo01Normalization, False),
    ],
)
def test_nnunets_schemes_are_here_too(scheme: str, peer: Any, use_mask: bool) -> None:
    from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero

    volume = cut_out()
    cropped, outside, _ = crop_to_nonzero(volume[None].copy(), np.zeros((1, *volume.shape), np.int16))
    expected = peer(use_mask_for_norm=use_mask, intensityproperties=INTENSITIES).run(cropped[0].copy(), outside[0])
    found = normalize(cropped[0], Normalization.of_nnunet(scheme, use_mask=use_mask, intensities=INTENSITIES))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_colours_are_scaled_as_by_nnunet() -> None:
    volume = np.random.default_rng(0).integers(0, 256, size=(6, 5, 4)).astype(np.float32)
    found = normalize(volume, Normalization.of_nnunet("RGBTo01Normalization"))
    np.testing.assert_allclose(found, RGBTo01Normalization(False, {}).run(volume.copy()), atol=1e-6)


def test_a_plan_keeps_schemes_of_both_kinds(tmp_path: Path) -> None:
    schemes = {
        "ct": Normalization.of_nnunet("CTNormalization", intensities=INTENSITIES),
        "mri": Normalization.of_nnunet("ZScoreNormalization", use_mask=True),
        "pet": Normalization(percentiles=(0.5, 99.5)),
        "other": Normalization.of_nnunet("RescaleTo01Normalization"),
    }
    plan = UnifiedPlan(
        spacing_mm=(1.0, 1.0, 1.0), patch_size=(16, 16, 16), network=NETWORK, normalization=dict(schemes)
    )
    plan.save(tmp_path / "plan.json")
    assert UnifiedPlan.load(tmp_path / "plan.json").normalization == schemes


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"mean": 1.0}, "go together"),
        ({"mean": 1.0, "std": 0.0}, "go together"),
        ({"unit_range": True, "nonzero": True}, "unit_range"),
        ({"clip": (2.0, 1.0)}, "lower, upper"),
    ],
)
def test_schemes_that_contradict_themselves_are_refused(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(PlanError, match=reason):
        Normalization(**change)


def test_unknown_schemes_are_refused() -> None:
    with pytest.raises(PlanError, match="allowed are CTNormalization"):
        Normalization.of_nnunet("Histogram")
    with pytest.raises(PlanError, match="percentile_00_5"):
        Normalization.of_nnunet("CTNormalization")
