"""Surface elements against the published implementation (surface-distance) and hand-derived areas."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from satunet.evaluation.scoring.measures.marching import surface_areas
from satunet.evaluation.scoring.measures.surface import (
    distances,
    find_surface,
    margin_of,
    search_radius,
    steps_within,
    surface_codes,
)

lookup_tables = pytest.importorskip("surface_distance.lookup_tables")


def cube_of(code: int) -> np.ndarray:
    """The 2×2×2 neighbourhood of one of our codes."""
    bits = [bool(code >> bit & 1) for bit in range(8)]
    return np.array(bits).reshape(2, 2, 2)


@pytest.mark.parametrize(
    "spacing_mm", [(1.0, 1.0, 1.0), (0.5, 0.5, 5.0), (3.0, 0.3, 1.1), (0.97, 1.31, 2.77), (8.0, 0.1, 0.1)]
)
def test_all_256_areas_equal_the_published_table(spacing_mm: tuple[float, float, float]) -> None:
    published = lookup_tables.create_table_neighbour_code_to_surface_area(spacing_mm)
    kernel = lookup_tables.ENCODE_NEIGHBOURHOOD_3D_KERNEL
    expected = [published[int((kernel * cube_of(code)).sum())] for code in range(256)]
    np.testing.assert_allclose(surface_areas(spacing_mm), expected, rtol=1e-12, atol=1e-12)


def test_code_of_a_single_voxel_has_each_corner_once() -> None:
    codes = surface_codes(np.ones((1, 1, 1), dtype=bool))
    assert codes.shape == (2, 2, 2)
    assert sorted(codes.ravel().tolist()) == [1, 2, 4, 8, 16, 32, 64, 128]


def test_areas_by_hand() -> None:
    areas = surface_areas((1.0, 2.0, 3.0))
    assert areas[0] == areas[255] == 0
    # A half-filled neighbourhood is one flat face across the axis that separates it.
    for axis, area in enumerate((6.0, 3.0, 2.0)):
        half = np.zeros((2, 2, 2), dtype=bool)
        half[(slice(None),) * axis + (0,)] = True
        code = sum(int(v) << bit for bit, v in enumerate(half.ravel()))
        assert areas[code] == pytest.approx(area)
    # One corner: the triangle through the middles of three edges, legs 0.5, 1, 1.5.
    triangle = 0.5 * math.sqrt((0.5 * 1) ** 2 + (1 * 1.5) ** 2 + (0.5 * 1.5) ** 2)
    assert areas[1] == pytest.approx(triangle)


def test_a_mask_and_its_complement_have_one_surface() -> None:
    areas = surface_areas((0.7, 1.9, 3.1))
    np.testing.assert_allclose(areas, areas[::-1])


def test_area_of_a_long_box() -> None:
    n = 40
    area = find_surface(np.ones((n, n, n), dtype=bool)).areas((1.0, 1.0, 1.0)).sum()
    # Faces lose a rim of half a voxel to chamfered edges and corners.
    faces, edges, corners = 6 * (n - 1) ** 2, 12 * (n - 1) * math.sqrt(0.5), 8 * surface_areas((1.0, 1.0, 1.0))[1]
    assert area == pytest.approx(faces + edges + corners)


@pytest.mark.parametrize("slab", [1, 5000, 1 << 22])
def test_a_surface_in_slabs_is_the_surface(slab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.random.default_rng(1).random((17, 9, 11)) > 0.6
    monkeypatch.setattr("satunet.evaluation.scoring.measures.surface._SLAB_VOXELS", slab)
    surface = find_surface(mask, (2, 0, 3))
    codes = surface_codes(mask)
    inside = surface.present[2:-3, :-1, 3:-4]
    np.testing.assert_array_equal(inside, (codes != 0) & (codes != 255))
    assert surface.present.sum() == inside.sum()
    np.testing.assert_array_equal(surface.codes, codes[inside])
    np.testing.assert_array_equal(surface.places, np.flatnonzero(surface.present))


@pytest.mark.parametrize("spacing_mm", [(1.0, 0.6, 3.0), (0.7, 0.7, 0.7)])
@pytest.mark.parametrize("radius_mm", [0.0, 0.7, 2.1, 30.0])
def test_distances_are_those_of_a_distance_transform(radius_mm: float, spacing_mm: tuple[float, float, float]) -> None:
    from scipy import ndimage

    rng = np.random.default_rng(3)
    margin = margin_of(spacing_mm, radius_mm)
    a, b = (find_surface(rng.random((14, 11, 9)) > t, margin) for t in (0.97, 0.995))
    expected = ndimage.distance_transform_edt(~b.present, sampling=spacing_mm).ravel()[a.places]
    found = distances(a, b, spacing_mm=spacing_mm, radius_mm=radius_mm)
    np.testing.assert_allclose(found, expected, rtol=1e-15)  # a distance that is a tolerance counts as close
    most = float(np.median(expected)) + 1e-9
    near = distances(a, b, spacing_mm=spacing_mm, radius_mm=radius_mm, most_mm=most)
    np.testing.assert_array_equal(near <= most, expected <= most)


def test_nothing_is_close_to_an_empty_surface() -> None:
    full, empty = find_surface(np.ones((2, 2, 2), dtype=bool)), find_surface(np.zeros((2, 2, 2), dtype=bool))
    assert np.isinf(distances(full, empty, spacing_mm=(1.0, 1.0, 1.0), radius_mm=0.0)).all()
    assert len(distances(empty, full, spacing_mm=(1.0, 1.0, 1.0), radius_mm=0.0)) == 0


def test_steps_come_nearest_first_and_end_at_the_radius() -> None:
    steps, lengths = steps_within((0.7, 1.0, 2.0), 2.1)
    assert steps[0].tolist() == [0, 0, 0]
    assert (np.diff(lengths) >= 0).all()
    assert {tuple(s) for s in steps.tolist()} >= {(3, 0, 0), (0, 2, 0), (0, 0, 1), (0, 0, -1)}  # 3 * 0.7 is 2.1
    assert lengths.max() <= 2.1 + 1e-9
    assert search_radius((1.0, 1.0, 1.0), 2.0) == 2.0
    assert search_radius((0.5, 0.5, 0.5), 20.0) < 3.0


def test_every_code_has_a_surface_but_all_and_nothing() -> None:
    areas = surface_areas((1.0, 1.0, 1.0))
    assert (areas[1:-1] > 0.2).all()
    assert sum(1 for _ in itertools.product((0, 1), repeat=8)) == len(areas)
