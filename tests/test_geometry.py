from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from satunet.geometry import Grid, box_of, reorient, same_grid
from satunet.jobs.records import from_plain, to_plain

ORIENTATIONS = [
    "".join(letters) for axes in itertools.permutations(("RL", "AP", "SI")) for letters in itertools.product(*axes)
]


def rotation(rng: np.random.Generator) -> np.ndarray:
    q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return q


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_reorient_keeps_every_voxel_in_its_place(orientation: str) -> None:
    rng = np.random.default_rng(1)
    array = rng.random((2, 4, 5, 6))
    affine = np.diag([2.0, -3.0, 4.0, 1.0])
    affine[:3, 3] = (7, -8, 9)
    grid = Grid(shape=(4, 5, 6), affine=affine)
    turned, turned_grid = reorient(array, grid, orientation)
    assert turned_grid.orientation == orientation
    for index in ((0, 0, 0), (3, 4, 5), (1, 2, 3)):
        place = grid.affine @ (*index, 1)
        i, j, k = np.rint(np.linalg.inv(turned_grid.affine) @ place)[:3].astype(int)
        assert np.array_equal(turned[:, i, j, k], array[(slice(None), *index)])


@given(
    seed=st.integers(0, 10_000), shape=st.tuples(*[st.integers(1, 6)] * 3), orientation=st.sampled_from(ORIENTATIONS)
)
@settings(max_examples=60, deadline=None)
def test_reorient_there_and_back_is_the_identity_for_oblique_grids(
    seed: int, shape: tuple[int, int, int], orientation: str
) -> None:
    rng = np.random.default_rng(seed)
    affine = np.eye(4)
    affine[:3, :3] = rotation(rng) * rng.uniform(0.3, 8, 3)
    affine[:3, 3] = rng.uniform(-200, 200, 3)
    grid = Grid(shape=shape, affine=affine)
    array = rng.random(shape)
    turned, turned_grid = reorient(array, grid, orientation)
    back, back_grid = reorient(turned, turned_grid, grid.orientation)
    assert np.array_equal(back, array)
    assert same_grid(back_grid, grid)


def test_spacing_and_volume_are_those_of_the_affine() -> None:
    grid = Grid(shape=(2, 2, 2), affine=np.diag([-0.5, 2.0, 3.0, 1.0]))
    assert grid.spacing_mm == (0.5, 2.0, 3.0)
    assert grid.voxel_ml == pytest.approx(0.003)
    assert grid.orientation == "LAS"


@pytest.mark.parametrize("affine", [np.zeros((4, 4)), np.full((4, 4), np.nan), np.eye(3)])
def test_a_grid_refuses_affines_that_place_nothing(affine: np.ndarray) -> None:
    with pytest.raises(ValueError, match="affine"):
        Grid(shape=(2, 2, 2), affine=affine)


def test_same_grid_measures_the_far_corner() -> None:
    a = Grid(shape=(100, 100, 100), affine=np.eye(4))
    tilted = np.eye(4)
    tilted[0, 1] = 2e-3  # nothing at the origin, 0.2 mm at the far corner
    assert not same_grid(a, Grid(shape=a.shape, affine=tilted))
    assert same_grid(a, Grid(shape=a.shape, affine=tilted), tolerance=0.21)


@pytest.mark.parametrize("voxel_mm", [0.001, 0.7, 10.0])
@pytest.mark.parametrize(("voxels", "same"), [(0.05, True), (0.15, False), (0.5, False)])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_same_grid_counts_in_voxels(voxel_mm: float, voxels: float, same: bool, axis: int) -> None:
    affine = np.diag([voxel_mm, voxel_mm, 5 * voxel_mm, 1])
    moved = affine.copy()
    moved[axis, 3] += voxels * affine[axis, axis]
    assert same_grid(Grid(shape=(9, 9, 9), affine=affine), Grid(shape=(9, 9, 9), affine=moved)) is same


def test_a_header_that_rounds_its_spacing_is_on_the_same_grid() -> None:
    exact, rounded = np.diag([0.703125, 0.703125, 1.25, 1]), np.diag([0.7031, 0.7031, 1.25, 1])
    assert same_grid(Grid(shape=(512, 512, 200), affine=exact), Grid(shape=(512, 512, 200), affine=rounded))


def test_grids_of_any_unit_are_grids() -> None:
    assert Grid(shape=(2, 2, 2), affine=np.diag([1e-4, 1e-4, 1e-4, 1])).spacing_mm == (1e-4, 1e-4, 1e-4)
    flat = np.eye(4)
    flat[:3, 2] = (1, 1e-6, 0)  # the third axis lies in the plane of the others
    with pytest.raises(ValueError, match="affine"):
        Grid(shape=(2, 2, 2), affine=flat)


def test_reorient_refuses_a_code_that_is_none() -> None:
    grid = Grid(shape=(2, 2, 2), affine=np.eye(4))
    with pytest.raises(ValueError, match="RRS"):
        reorient(np.zeros((2, 2, 2)), grid, "RRS")


def test_grid_json_round_trip() -> None:
    grid = Grid(shape=(2, 3, 4), affine=np.diag([1.5, 2, 3, 1]))
    assert same_grid(from_plain(to_plain(grid), Grid, source="grid"), grid, tolerance=0)


@given(st.lists(st.tuples(*[st.integers(0, 6)] * 3), max_size=5))
def test_the_box_of_a_mask_holds_all_its_voxels_and_touches_them_on_every_side(
    places: list[tuple[int, int, int]],
) -> None:
    mask = np.zeros((7, 7, 7), dtype=bool)
    for place in places:
        mask[place] = True
    box = box_of(mask)
    if not places:
        assert box is None
        return
    assert box is not None
    for axis, part in enumerate(box):
        assert (part.start, part.stop) == (min(p[axis] for p in places), max(p[axis] for p in places) + 1)
