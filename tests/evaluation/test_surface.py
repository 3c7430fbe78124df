"""Surface elements against the published implementation (surface-distance) and hand-derived areas."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from satunet.evaluation.surface import close_area, surface_areas, surface_codes

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
    _, area = close_area(
        *[surface_codes(np.ones((n, n, n), dtype=bool))] * 2, spacing_mm=(1.0, 1.0, 1.0), tolerance_mm=0.0
    )
    # Faces lose a rim of half a voxel to chamfered edges and corners.
    faces, edges, corners = 6 * (n - 1) ** 2, 12 * (n - 1) * math.sqrt(0.5), 8 * surface_areas((1.0, 1.0, 1.0))[1]
    assert area == pytest.approx(faces + edges + corners)


@pytest.mark.parametrize("tolerance_mm", [0.0, 0.9, 1.0, 2.5, 7.0, 30.0])
def test_ball_search_equals_distance_transform(tolerance_mm: float, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    a, b = (surface_codes(rng.random((14, 11, 9)) > t) for t in (0.97, 0.93))
    spacing_mm = (1.0, 0.6, 3.0)
    results = []
    for most in (10**9, 0):
        monkeypatch.setattr("satunet.evaluation.surface._MOST_OFFSETS", most)
        results.append(close_area(a, b, spacing_mm=spacing_mm, tolerance_mm=tolerance_mm))
    assert results[0] == results[1]


def test_nothing_is_close_to_an_empty_surface() -> None:
    full, empty = surface_codes(np.ones((2, 2, 2), dtype=bool)), surface_codes(np.zeros((2, 2, 2), dtype=bool))
    close, area = close_area(full, empty, spacing_mm=(1.0, 1.0, 1.0), tolerance_mm=100.0)
    assert (close, area > 0) == (0, True)
    assert close_area(empty, full, spacing_mm=(1.0, 1.0, 1.0), tolerance_mm=100.0) == (0, 0)


def test_every_code_has_a_surface_but_all_and_nothing() -> None:
    areas = surface_areas((1.0, 1.0, 1.0))
    assert (areas[1:-1] > 0.2).all()
    assert sum(1 for _ in itertools.product((0, 1), repeat=8)) == len(areas)
