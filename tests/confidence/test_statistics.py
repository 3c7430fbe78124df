"""Sizes and places of classes: bodies that are moved, and a structure that is in the wrong place."""

from __future__ import annotations

import math

import numpy as np
import pytest

from satunet.confidence.expected import CaseClasses, ClassStatistics

PLACES = {"a": (0, 0, 0), "b": (40, 0, 0), "c": (0, 50, 0), "d": (0, 0, 60), "e": (40, 50, 60)}


def bodies(count: int = 8, stray_mm: float = 2.0) -> list[CaseClasses]:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        shift = rng.normal(0, 300, 3)
        centres = {name: tuple(np.array(place) + shift + rng.normal(0, stray_mm, 3)) for name, place in PLACES.items()}
        found.append(CaseClasses(dataset="D", volumes_ml=dict.fromkeys(PLACES, 10.0), centres_mm=centres))
    return found


def test_a_body_moved_and_larger_is_in_place_and_one_structure_is_not() -> None:
    known = ClassStatistics.of(bodies())
    there = {name: tuple(1.2 * np.array(place) + [500, -70, 3]) for name, place in PLACES.items()}
    assert max(known.place_deviations(there).values()) < 1
    there["c"] = tuple(np.add(there["c"], (0, 80, 0)))
    found = known.place_deviations(there)
    assert max(found, key=found.__getitem__) == "c"
    assert found["c"] > 10
    assert max(v for k, v in found.items() if k != "c") < found["c"] / 4


def test_few_neighbours_say_nothing() -> None:
    known = ClassStatistics.of(bodies())
    assert known.place_deviations({name: PLACES[name] for name in "abc"}) == {}
    assert ClassStatistics.of([]).place_deviations(PLACES) == {}


def test_a_region_is_as_well_recognised_as_its_other_structures() -> None:
    other = {"v": (0, 0, 0), "w": (9, 0, 0), "x": (0, 9, 0), "y": (0, 0, 9)}
    several = [*bodies(), *(CaseClasses(dataset="E", volumes_ml=dict.fromkeys(other, 1.0), centres_mm=other),) * 3]
    known = ClassStatistics.of(several)
    here = dict.fromkeys(PLACES, 0.8) | {"a": 0.0}  # a is missing, its neighbours are there
    found = known.homes(here | {"v": 0.4, "w": 0.0, "x": 0.0, "y": 0.0, "z": 1.0})
    best = 4 * 0.8 / 5
    assert found["a"] == 1.0  # its others, 0.8 on average, are better than the region's mean
    assert found["b"] == pytest.approx(3 * 0.8 / 4 / best)
    assert found["v"] == 0.0
    assert found["w"] == pytest.approx(0.4 / 3 / best)
    assert "z" not in found  # in no map
    assert known.homes(here) == {}  # one region alone cannot be compared


def test_where_no_region_is_recognised_none_is_at_home() -> None:
    other = {"v": (0, 0, 0), "w": (9, 0, 0), "x": (0, 9, 0), "y": (0, 0, 9)}
    known = ClassStatistics.of([*bodies(), CaseClasses(dataset="E", volumes_ml={}, centres_mm=other)])
    found = known.homes(dict.fromkeys([*PLACES, *other], 0.03))
    assert list(found.values()) == [pytest.approx(0.1)] * 9


def test_sizes_are_geometric_means_and_few_cases_are_drawn_to_the_usual_spread() -> None:
    volumes = [5.0, 10.0, 20.0]
    cases = [CaseClasses(dataset="D", volumes_ml={"a": v}, centres_mm={"a": (0, 0, 0)}) for v in volumes]
    found = ClassStatistics.of(cases).sizes["a"]
    assert found.median_ml == pytest.approx(10)
    own = math.log(2)  # of 5, 10 and 20 around 10
    assert 0.35 < found.spread < own
    one = ClassStatistics.of(cases[:1])
    assert one.sizes["a"].spread == pytest.approx(0.35)
    assert one.size_deviation("a", 5 * math.exp(0.7)) == pytest.approx(2)
    assert one.size_deviation("a", 5 * math.exp(-0.7)) == pytest.approx(2)
    assert one.size_deviation("b", 5) is None
    assert one.size_deviation(None, 5) is None


def test_a_class_is_the_union_of_its_ids() -> None:
    labels = np.zeros((10, 10, 10), np.int16)
    labels[2:4, 2:4, 2:4] = 1
    labels[6:8, 2:4, 2:4] = 3
    labels[0, 0, 0] = -1  # nobody's
    found = CaseClasses.of_labels("D", {"left": (1,), "both": (1, 3), "gone": (7,)}, labels, (2.0, 1.0, 1.0))
    assert found.volumes_ml == pytest.approx({"left": 0.016, "both": 0.032})
    assert found.centres_mm["left"] == pytest.approx((5, 2.5, 2.5))
    assert found.centres_mm["both"] == pytest.approx((9, 2.5, 2.5))
