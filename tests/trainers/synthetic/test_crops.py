"""Crops at any spacing: what stays, what moves, and where."""

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from satunet.trainers.synthetic.crops import Deformation, crop_places, sample


def blocks() -> torch.Tensor:
    """(12, 10, 8) int16 labels, every octant its own."""
    x, y, z = torch.meshgrid(torch.arange(12) >= 6, torch.arange(10) >= 5, torch.arange(8) >= 4, indexing="ij")
    return (1 + x.long() + 2 * y.long() + 4 * z.long()).short()


def places(deformation=Deformation(), *, patch=(12, 10, 8), centre=(5.5, 4.5, 3.5), spacing=1.0, seed=0, **more):  # noqa: B008
    rng = np.random.default_rng(seed)
    return crop_places(centre, patch, (spacing,) * 3, (1.0, 1.0, 1.0), deformation, rng, **more)


def test_without_a_deformation_a_crop_of_the_whole_is_the_volume():
    labels = blocks()
    assert torch.equal(sample(labels, places(), labels=True), labels.long())
    image = torch.randn(12, 10, 8)
    assert torch.allclose(sample(image, places(), labels=False), image, atol=1e-5)


def test_a_mirrored_crop_is_the_volume_from_right_to_left():
    labels = blocks()
    assert torch.equal(sample(labels, places(mirrored=True), labels=True), labels.long().flip(0))


@pytest.mark.parametrize("spacing", [0.5, 2.0])
def test_a_crop_covers_what_its_spacing_says(spacing):
    found = places(patch=(4, 4, 4), spacing=spacing)
    extent = found[-1, -1, -1] - found[0, 0, 0]
    assert torch.allclose(extent, torch.full((3,), 3 * spacing))
    assert torch.allclose(found.reshape(-1, 3).mean(0), torch.tensor([5.5, 4.5, 3.5]))


def test_voxels_of_an_anisotropic_volume_are_found_in_millimetres():
    rng = np.random.default_rng(0)
    found = crop_places((5, 5, 5), (3, 3, 3), (1.0, 1.0, 1.0), (1.0, 2.0, 4.0), Deformation(), rng)
    assert found[2, 1, 1].tolist() == [6, 5, 5]
    assert found[1, 2, 1].tolist() == [5, 5.5, 5]
    assert found[1, 1, 2].tolist() == [5, 5, 5.25]


def test_outside_of_the_volume_nothing_is_known():
    labels = blocks()
    found = sample(labels, places(patch=(16, 10, 8)), labels=True, outside=-1)
    assert (found[:2] == -1).all()
    assert (found[-2:] == -1).all()
    assert torch.equal(found[2:-2], labels.long())


def test_labels_and_images_are_taken_where_scipy_takes_them():
    bent = places(Deformation(rotation_deg=20, stretch=0.2, warp=0.2), patch=(9, 11, 10), seed=1)
    labels, image = blocks(), torch.randn(12, 10, 8)
    where = bent.permute(3, 0, 1, 2).numpy()
    inside = ((where > -0.5) & (where < np.array([12, 10, 8])[:, None, None, None] - 0.5)).all(0)
    assert 0.3 < inside.mean() < 1
    found = sample(labels, bent, labels=True, outside=-1).numpy()
    assert np.array_equal(found == -1, ~inside)
    assert np.array_equal(found[inside], map_coordinates(labels.numpy(), where, order=0, mode="nearest")[inside])
    values = sample(image, bent, labels=False).numpy()
    assert np.allclose(
        values[inside], map_coordinates(image.numpy(), where, order=1, mode="nearest")[inside], atol=1e-4
    )


def test_a_deformation_is_a_function_of_its_generator():
    bent = Deformation(rotation_deg=10, stretch=0.1, warp=0.05)
    assert torch.equal(places(bent, seed=3), places(bent, seed=3))
    assert not torch.equal(places(bent, seed=3), places(bent, seed=4))


def test_a_deformation_invents_no_label_and_keeps_most_of_each():
    labels = blocks()
    bent = Deformation(rotation_deg=3, stretch=0.02, warp=0.01)
    found = sample(labels, places(bent), labels=True)
    assert set(found.unique().tolist()) <= {0, *range(1, 9)}
    assert (found == labels.long()).float().mean() > 0.7


def test_finer_places_lie_evenly_in_each_voxel_of_the_crop():
    bent = Deformation(rotation_deg=10, stretch=0.1, warp=0.0, mirror=True)
    given = ((10.0, 12.0, 9.0), (8, 6, 4), (1.5, 2.0, 3.0), (1.0, 1.2, 0.8), bent)
    coarse = crop_places(*given, np.random.default_rng(4), mirrored=True)
    fine = crop_places(*given, np.random.default_rng(4), mirrored=True, fineness=2)
    assert fine.shape == (16, 12, 8, 3)
    middle = fine.reshape(8, 2, 6, 2, 4, 2, 3).mean((1, 3, 5))
    assert torch.allclose(middle, coarse, atol=1e-4)
