"""Zooming of label maps: what nnU-Net's augmentation gives, at a cost that does not grow with the number of labels."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from satunet.trainers.unified.batches.zoom import Zoom, zoom_labels


def by_masks(labels: np.ndarray, places: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """By interpolating the mask of each label in float64: the winner, and by how much it won."""
    points = np.meshgrid(*places, indexing="ij")
    known = np.unique(np.append(labels, 0))
    padded = np.pad(labels, 2)
    scores = np.stack(
        [
            map_coordinates(
                (padded == k).astype(float), [p + 2 for p in points], order=1, mode="constant", cval=float(k == 0)
            )
            for k in known
        ]
    )
    ordered = np.sort(scores, axis=0)
    margin = ordered[-1] - ordered[-2] if len(known) > 1 else np.ones(scores.shape[1:])
    return known[scores.argmax(0)], margin


@given(
    shape=st.tuples(*[st.integers(1, 7)] * 3),
    size=st.tuples(*[st.integers(1, 9)] * 3),
    factor=st.floats(0.4, 2.5),
    classes=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_each_point_takes_the_label_that_covers_most_of_it(
    shape: tuple[int, int, int], size: tuple[int, int, int], factor: float, classes: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes + 1, shape).astype(np.int32)
    places = [(np.arange(m) - (m - 1) / 2) * factor + (n - 1) / 2 + rng.uniform(-0.4, 0.4)
              for m, n in zip(size, shape, strict=True)]  # fmt: skip
    found = zoom_labels(torch.from_numpy(labels), tuple(torch.from_numpy(p).float() for p in places)).numpy()
    expected, margin = by_masks(labels, places)
    clear = margin > 1e-4  # float32 against float64
    np.testing.assert_array_equal(found[clear], expected[clear])
    assert set(np.unique(found)) <= {0, *np.unique(labels)}


def test_of_two_equally_large_labels_the_nearest_voxel_decides() -> None:
    labels = torch.tensor([3, 1], dtype=torch.int32).reshape(2, 1, 1)
    middle = torch.zeros(1)
    for x, label in ((0.0, 3), (0.49, 3), (0.51, 1), (1.0, 1)):
        assert zoom_labels(labels, (torch.tensor([x]), middle, middle)).item() == label


@pytest.mark.parametrize("classes", [2, 60])
def test_it_is_what_batchgeneratorsv2_gives(classes: int) -> None:
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform

    patch = (40, 32, 24)
    blocks = np.random.default_rng(1).integers(0, classes, (10, 8, 6))
    labels = torch.from_numpy(np.kron(blocks, np.ones((4, 4, 4))).astype(np.int32))[None]
    image = torch.rand(1, *patch)
    changed = 0
    for seed in range(4):
        results = []
        for transform in (SpatialTransform, Zoom):
            np.random.seed(seed)
            results.append(
                transform(
                    patch, patch_center_dist_from_border=0, random_crop=False, p_elastic_deform=0, p_rotation=0,
                    p_scaling=1, scaling=(0.7, 1.4), p_synchronize_scaling_across_axes=1, bg_style_seg_sampling=False,
                )(image=image.clone(), segmentation=labels.clone())
            )  # fmt: skip
        peer, ours = results
        assert torch.equal(peer["image"], ours["image"])
        assert (peer["segmentation"] != ours["segmentation"]).float().mean() < 1e-3, "it rounds scores to float16"
        changed += not torch.equal(ours["segmentation"], labels)
    assert changed >= 2, "a zoom of almost 1 changes nothing"


def test_the_cost_does_not_grow_with_the_labels() -> None:
    def seconds(classes: int) -> float:
        blocks = np.random.default_rng(0).integers(0, classes, (8, 8, 8))
        labels = torch.from_numpy(np.kron(blocks, np.ones((6, 6, 6))).astype(np.int32))
        place = (torch.arange(48) - 23.5) * 0.8 + 23.5
        taken = []
        for _ in range(3):
            began = time.process_time()
            zoom_labels(labels, (place, place, place))
            taken.append(time.process_time() - began)
        return min(taken)

    assert seconds(200) < 4 * seconds(10) + 0.05  # by masks it would be 20 times
