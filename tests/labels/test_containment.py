from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from satunet.datasets.raw import Dataset
from satunet.labels import build_label_space
from satunet.labels.containment import wholes_first, wholes_of
from satunet.labels.names import normalize_name
from satunet.labels.space import ClassInfo, LabelSpace


def space_of(*labels: list[str]) -> LabelSpace:
    return build_label_space(
        [
            Dataset(
                id=k, name=f"Dataset{k:03d}_A", folder=Path(), channel_names=("0",), modalities=("ct",),
                labels={n: (i,) for i, n in enumerate(names, 1)},
            )
            for k, names in enumerate(labels, 1)
        ]
    )  # fmt: skip


def test_parts_are_what_the_ids_say() -> None:
    space = space_of(
        ["left lung", "right lung", "liver", "liver tumor"],
        ["left kidney", "right kidney", *(f"vertebrae L{n}" for n in range(1, 6))],
    )
    wholes = wholes_of(space)
    assert wholes["left lung"] == {"lung"}
    assert wholes["liver tumor"] == {"liver"}
    assert wholes[normalize_name("vertebra L3").canonical] == {"lumbar vertebrae"}
    assert wholes["lung"] == wholes["liver"] == frozenset()


def test_a_side_is_part_of_its_base_where_no_dataset_has_both() -> None:
    info = {"lesion": False, "modalities": ("ct",), "datasets": (), "source_names": ()}
    space = LabelSpace(
        classes=(
            ClassInfo(name="left lung", base="lung", side="left", **info),
            ClassInfo(name="lung", base="lung", side=None, **info),
        )
    )
    assert wholes_of(space)["left lung"] == {"lung"}


def test_a_side_is_no_part_of_its_base_where_a_dataset_holds_them_apart() -> None:
    info = {"base": "lung", "modalities": ("ct",), "datasets": ("x",), "source_names": ()}
    classes = (ClassInfo(name="left lung", side="left", **info), ClassInfo(name="lung", side=None, **info))
    assert wholes_of(LabelSpace(classes=classes, ids={"x": {"left lung": (1,), "lung": (2,)}}))["left lung"] == set()


def test_what_contradicts_itself_is_no_part() -> None:
    info = {"base": "a", "side": None, "modalities": ("ct",), "datasets": ("x", "y"), "source_names": ()}
    space = LabelSpace(
        classes=tuple(ClassInfo(name=n, **info) for n in "abc"),
        ids={"x": {"a": (1,), "b": (1, 2), "c": (1,)}, "y": {"a": (1, 3), "b": (1, 2), "c": (1, 3)}},
    )
    assert wholes_of(space) == {"a": frozenset(), "b": frozenset(), "c": frozenset()}


@given(st.permutations(["lung", "left lung", "liver", "liver tumor", "right lung", "left upper lobe"]))
def test_wholes_come_first_and_the_order_is_kept_else(names: list[str]) -> None:
    wholes = {
        "left lung": frozenset({"lung"}), "right lung": frozenset({"lung"}),
        "left upper lobe": frozenset({"left lung", "lung"}), "liver tumor": frozenset({"liver"}),
    }  # fmt: skip
    ordered = wholes_first(names, wholes)
    assert sorted(ordered) == sorted(names)
    for part, of in wholes.items():
        assert all(ordered.index(whole) < ordered.index(part) for whole in of)
    unrelated = ["liver", "lung"] if names.index("liver") < names.index("lung") else ["lung", "liver"]
    assert [n for n in ordered if n in unrelated] == unrelated


@pytest.mark.slow
def test_every_part_of_the_reference_collection_has_a_whole_in_front() -> None:
    from satunet.models.import_sat import sat_label_space

    space = sat_label_space()
    wholes = wholes_of(space)
    place = {name: i for i, name in enumerate(wholes_first(space.class_names, wholes))}
    assert all(place[whole] < place[part] for part, of in wholes.items() for whole in of)
    for part, whole in (
        ("left lung", "lung"),
        ("liver tumor", "liver"),
        (normalize_name("vertebra C1").canonical, "vertebrae"),
    ):
        assert whole in wholes[part]
