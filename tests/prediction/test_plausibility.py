"""Contradictions between masks: blocks in a grid whose axes are turned, so that only millimetres can tell."""

from __future__ import annotations

import numpy as np
import pytest

from satunet.confidence.expected import ClassSize, ClassStatistics
from satunet.geometry import Grid
from satunet.prediction.masks.boxed import BoxedMask
from satunet.prediction.masks.plausibility import (
    Anatomy,
    Structure,
    centre_mm,
    clearly_outside,
    doubts,
    intersection,
    place_in_row,
    repaired,
)

# i runs downwards, j to the left, k to the front; 2, 1 and 3 mm
TURNED = Grid(shape=(30, 30, 30), affine=np.array([[0.0, -1, 0, 0], [0, 0, 3, 0], [-2.0, 0, 0, 0], [0, 0, 0, 1]]))


def structure(name: str, *box: tuple[int, int]) -> Structure:
    mask = np.ones([stop - start for start, stop in box], bool)
    return Structure(name=name, mask=BoxedMask.of(mask, tuple(start for start, _ in box), TURNED.shape))


def told(*structures: Structure, **anatomy: object) -> dict[str, tuple[str, ...]]:
    found = doubts(structures, TURNED, Anatomy(**anatomy))  # type: ignore[arg-type]
    return {s.name: d for s, d in zip(structures, found, strict=True) if d}


LOW_J, HIGH_J = ((5, 9), (2, 6), (5, 9)), ((5, 9), (20, 24), (5, 9))  # right and left in the patient


def test_sides() -> None:
    assert told(structure("left kidney", *HIGH_J), structure("right kidney", *LOW_J)) == {}
    swapped = [structure("left kidney", *LOW_J), structure("right kidney", *HIGH_J)]
    assert told(*swapped) == {
        "left kidney": ("lies to the right of 'right kidney'",),
        "right kidney": ("lies to the left of 'left kidney'",),
    }
    left, right = repaired(swapped, TURNED, Anatomy())
    assert (left.mask, right.mask) == (swapped[1].mask, swapped[0].mask)


def test_containment() -> None:
    lobe, lung = structure("lobe", (0, 10), (0, 4), (0, 4)), structure("lung", (4, 20), (0, 8), (0, 8))
    wholes = {"lobe": frozenset({"lung"})}
    # 40 % of it lie outside, of which 2 of 8 mm as near as borders of two masks may differ
    assert told(lobe, lung, wholes=wholes) == {"lobe": ("30 % of it lies outside 'lung'",)}
    assert told(lobe, lung) == {}
    inside, same = repaired([lobe, lung], TURNED, Anatomy(wholes=wholes))
    assert inside.mask.voxels == 6 * 16
    assert same.mask is lung.mask
    assert told(inside, same, wholes=wholes) == {}
    far = structure("lobe", (22, 28), (0, 4), (0, 4))
    assert told(far, lung, wholes=wholes) == {"lobe": ("100 % of it lies outside 'lung'",)}
    assert repaired([far, lung], TURNED, Anatomy(wholes=wholes))[0].mask is far.mask  # nothing would be left of it
    blurred = structure("lung", (1, 20), (0, 8), (0, 8))
    assert told(lobe, blurred, wholes=wholes) == {}
    assert repaired([lobe, blurred], TURNED, Anatomy(wholes=wholes))[0].mask is lobe.mask


def test_clearly_outside_is_a_distance_in_millimetres() -> None:
    rng = np.random.default_rng(1)
    for _ in range(10):
        part, whole = (
            BoxedMask.of(rng.uniform(size=(6, 9, 5)) < density, tuple(rng.integers(0, 20, 3)), TURNED.shape)
            for density in (0.4, 0.05)
        )
        a, b = (np.argwhere(mask.full) * TURNED.spacing_mm for mask in (part, whole))
        apart = np.sqrt(((a[:, None] - b[None]) ** 2).sum(2)).min(1)
        assert clearly_outside(part, whole, TURNED) == pytest.approx(float((apart > 3).mean()))


def test_order_of_vertebrae_and_ribs() -> None:
    names = ("thoracic vertebrae 12 (t12)", "lumbar vertebrae 1 (l1)", "lumbar vertebrae 2 (l2)")
    rows = [structure(name, (6 * k, 6 * k + 5), (3, 6), (3, 6)) for k, name in enumerate(names)]
    assert told(*rows) == {}
    a, b, c = rows
    wrong = [a, Structure(name=b.name, mask=c.mask), Structure(name=c.name, mask=b.mask)]
    assert told(*wrong) == {b.name: (f"lies below {c.name!r}",), c.name: (f"lies above {b.name!r}",)}
    assert [s.mask for s in repaired(wrong, TURNED, Anatomy())] == [a.mask, b.mask, c.mask]
    ribs = [structure("left rib 2", (0, 3), (3, 6), (3, 6)), structure("right rib 1", (8, 9), (3, 6), (3, 6))]
    assert told(*ribs) == {}  # sides are rows of their own
    assert place_in_row("L6 vertebra") < place_in_row("vertebrae_S1")  # type: ignore[operator]
    assert place_in_row("vertebrae") is None


def test_sizes() -> None:
    sizes = ClassStatistics(sizes={"liver": ClassSize(median_ml=1500, spread=0.25, cases=9)})
    assert told(structure("liver", (0, 10), (0, 10), (0, 10)), statistics=sizes) == {
        "liver": ("has 6.0 ml, but 909.8 to 2,473.1 ml in training",)
    }


def test_centres_and_intersections_are_those_of_whole_arrays() -> None:
    rng = np.random.default_rng(0)
    a, b = (BoxedMask.of(rng.uniform(size=(9, 8, 7)) < 0.5, start, TURNED.shape) for start in ((2, 3, 4), (6, 5, 9)))
    assert np.array_equal(intersection(a, b).full, a.full & b.full)
    centre = TURNED.affine @ np.append(np.argwhere(a.full).mean(0), 1)
    assert centre_mm(a, TURNED) == pytest.approx(tuple(centre[:3]))
    away = BoxedMask.of(np.ones((2, 2, 2), bool), (28, 28, 28), TURNED.shape)
    assert intersection(a, away).voxels == 0
