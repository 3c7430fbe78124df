"""Colours of structures; CIELAB is scikit-image's."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from satunet.datasets.catalogue import load_catalogue
from satunet.images.colours import colour_of, colours_of, css


def lab(name: str) -> np.ndarray:
    color = pytest.importorskip("skimage.color")
    return np.asarray(color.rgb2lab(np.array(colour_of(name)) / 255))


def test_classes_of_one_dataset_are_told_apart() -> None:
    """In datasets of a legend's size; a whole and its side may be nearer, for they have one hue on purpose."""
    for record in load_catalogue().records:
        if len(record.classes) <= 30:
            apart = 20 if len(record.classes) <= 16 else 10
            for a, b in combinations(sorted(record.classes), 2):
                same = {w.replace("left ", "").replace("right ", "") for w in (a, b)}
                assert np.linalg.norm(lab(a) - lab(b)) > (8 if len(same) == 1 else apart), (record.name, a, b)


def test_every_class_has_a_colour_of_its_own() -> None:
    classes = load_catalogue().class_names
    assert len({colour_of(c) for c in classes}) == len(classes) == 451


def test_the_left_side_is_the_lighter_one() -> None:
    pairs = [(c, c.replace("left ", "right ")) for c in load_catalogue().class_names if "left " in c]
    twins = [(a, b) for a, b in pairs if b in load_catalogue().class_names]
    assert len(twins) > 100
    for left, right in (*twins, ("left what", "right what")):
        assert lab(left)[0] > lab(right)[0] + 8, left


def test_saturated_reds_are_lesions() -> None:
    for name in load_catalogue().class_names:
        lightness, a, b = lab(name)
        hue, chroma = np.degrees(np.arctan2(b, a)) % 360, np.hypot(a, b)
        lesion = name in load_catalogue().lesions or "cyst" in name or "hyperintensities" in name
        assert lesion == bool((hue < 62 or hue > 340) and chroma > 58), (name, lightness, hue, chroma)


def test_spelling_does_not_matter() -> None:
    assert colour_of("Left_Kidney") == colour_of("left  kidney") == colours_of(["liver", "LEFT KIDNEY"])[1]


@given(st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=8))
def test_any_names_have_colours(names: list[str]) -> None:
    found = colours_of(names)
    assert len(found) == len(names)
    assert all(0 <= v <= 255 for colour in found for v in colour)
    assert all(len(css(c)) == 7 for c in found)
    assert found == colours_of(names)


def test_unknown_names_of_one_legend_differ() -> None:
    names = [f"structure {k}" for k in range(8)]
    for a, b in combinations(colours_of(names), 2):
        assert np.linalg.norm(np.subtract(a, b)) > 40
