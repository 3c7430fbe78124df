"""The label space of SAT-DS, against its published terminology; and the rules that need no catalogue."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from satunet.datasets.catalogue import Catalogue, load_catalogue, simple_name
from satunet.datasets.raw import Dataset, read_dataset
from satunet.errors import LabelSpaceError
from satunet.labels import LabelSpace, build_label_space, normalize_name
from satunet.labels.unions import canonical_names, derive


@pytest.fixture(scope="module")
def terminology(shared_dir: Path) -> dict[str, dict[str, list[str]]]:
    return json.loads((shared_dir / "reference" / "sat_ds" / "terminology_list.json").read_text())


@pytest.fixture(scope="module")
def published(shared_dir: Path) -> list[Dataset]:
    return [read_dataset(folder) for folder in sorted((shared_dir / "reference" / "sat_ds" / "datasets").iterdir())]


@pytest.fixture(scope="module")
def space(published: list[Dataset]) -> LabelSpace:
    return build_label_space(published)


def test_names_and_modalities_are_the_published_ones(space: LabelSpace, terminology: dict) -> None:
    pairs = {f"{modality}_{info.name}" for info in space.classes for modality in info.modalities}
    assert pairs == set(terminology["all"])
    assert (len(space.classes), len(pairs)) == (451, 498)
    lesions = {name.partition("_")[2] for name in terminology["abnormal"]}
    assert {info.name for info in space.classes if info.lesion} == lesions


def test_every_dataset_has_its_published_classes(
    space: LabelSpace, terminology: dict, published: list[Dataset]
) -> None:
    listed = {simple_name(k).replace("mri", "mr"): v for k, v in terminology["dataset_based"].items()}
    assert len(published) == len(listed) == 72
    for dataset in published:
        wanted = {name.partition("_")[2] for name in listed[simple_name(dataset.name[11:])]}
        assert set(space.classes_of(dataset.name)) == wanted, dataset.name


def test_regions_are_the_published_ones(space: LabelSpace, terminology: dict) -> None:
    found = {(region, info.name) for info in space.classes for region in info.regions}
    wanted = {(r, name.partition("_")[2]) for r, names in terminology["region_based"].items() for name in names}
    assert found == wanted


def test_the_rules_alone_agree_with_the_catalogue_where_names_say_all(
    space: LabelSpace, published: list[Dataset]
) -> None:
    by_rule = build_label_space(published, Catalogue(name="nothing", records=()))
    differing = {d.name[11:] for d in published if by_rule.ids[d.name] != space.ids[d.name]}
    # Where names do not say what lies in what: whole tumors, lobes of the liver, lobes of the brain, a heart in parts …
    # In TotalSegmentator, the lobes of the lungs are not taken together.
    assert differing == {
        "BrainAtlas", "BrainPTM", "BraTS2023GLI", "BraTS2023MEN", "BraTS2023MET", "BraTS2023PED", "BraTS2023SSA",
        "CouinaudLiver", "COVID19", "DAPAtlas", "HANSeg", "LAScarQS22Task1", "MRSpineSeg", "MSDProstate", "MyoPS2020",
        "NSCLC", "SegRap2023Task1", "TotalSegmentatorOrgans", "TotalSegmentatorVertebrae", "VerSe",
    }  # fmt: skip


def test_every_published_name_is_canonical() -> None:
    names = load_catalogue().class_names
    assert len(names) == 451
    for name in names:
        parsed = normalize_name(name)
        assert parsed.canonical == name
        if parsed.side:
            assert normalize_name(f"{parsed.base} on the {parsed.side} side").canonical == name


def _dataset(name: str, labels: dict[str, int]) -> Dataset:
    return Dataset(
        id=int(name[7:10]),
        name=name,
        folder=Path(name),
        channel_names=("CT",),
        modalities=("ct",),
        labels={k: (v,) for k, v in labels.items()},
    )


def test_another_numbering_of_a_known_dataset_changes_nothing() -> None:
    record = next(r for r in load_catalogue().records if r.name == "KiTS23")
    shuffled = dict(zip(record.labels, (30, 10, 20), strict=True))
    space = build_label_space([_dataset("Dataset534_KiTS23", shuffled)])
    assert space.ids["Dataset534_KiTS23"] == {"kidney": (10, 20, 30), "kidney tumor": (10,), "kidney cyst": (20,)}
    assert space.notes["Dataset534_KiTS23"] == ("known to the catalogue as KiTS23",)


def test_a_dataset_that_only_has_the_name_is_treated_by_rule() -> None:
    space = build_label_space([_dataset("Dataset034_KiTS23", {"kidney": 1, "stone": 2})])
    # of what it is a stone, the other class says
    assert set(space.classes_of("Dataset034_KiTS23")) == {"kidney", "kidney stone"}
    assert "its labels differ" in space.notes["Dataset034_KiTS23"][0]


def test_thoracic_levels_need_other_levels_beside_them() -> None:
    assert canonical_names(["T1", "L1"])["T1"] == "thoracic vertebrae 1 (t1)"
    assert canonical_names(["T1", "T2"]) == {"T1": "t1", "T2": "t2"}


def test_series_are_united_when_complete_only() -> None:
    levels = {f"lumbar vertebrae {n} (l{n})": (n,) for n in range(1, 6)}
    assert derive(levels).ids["lumbar vertebrae"] == (1, 2, 3, 4, 5)
    assert "vertebrae" not in derive(levels).ids
    six = derive(levels | {"lumbar vertebrae 6 (l6)": (9,)})
    assert six.ids["lumbar vertebrae"] == (1, 2, 3, 4, 5, 9)
    del levels["lumbar vertebrae 3 (l3)"]
    assert "lumbar vertebrae" not in derive(levels).ids
    ribs = {f"{side} rib {n}": (n + 20 * (side == "left"),) for side in ("left", "right") for n in range(1, 13)}
    united = derive(ribs).ids
    assert len(united["rib"]) == 24
    assert united["left rib"] == tuple(range(21, 33))
    assert united["rib 7"] == (7, 27)


def test_lesions_belong_to_their_organ_and_overlaps_to_both() -> None:
    found = derive({"liver": (1,), "liver tumor": (2,), "left kidney": (3,), "right kidney": (4,), "kidney cyst": (5,)})
    assert found.ids["liver"] == (1, 2)
    assert found.ids["kidney"] == (3, 4, 5)
    assert found.ids["left kidney"] == (3,)
    assert len(found.notes) == 2
    both = derive({"left lens": (1,), "left optic nerve": (2,), "left lens optic nerve overlap": (3,)})
    assert both.ids == {"left lens": (1, 3), "left optic nerve": (2, 3)}


def test_a_label_without_a_name_is_refused_with_its_file() -> None:
    dataset = dataclasses.replace(_dataset("Dataset001_A", {}), labels={"liver": (3,), " ": (4,)})
    with pytest.raises(LabelSpaceError, match=r"Dataset001_A.*dataset\.json: the label ' ' \(ids \[4\]\) has no name"):
        build_label_space([dataset])


def test_an_id_cannot_be_left_and_right() -> None:
    dataset = dataclasses.replace(
        _dataset("Dataset001_A", {}), labels={"left kidney": (1, 2), "right kidney": (2,), "liver": (3,)}
    )
    with pytest.raises(LabelSpaceError, match=r"Dataset001_A.*'left kidney' and its right side share label ids \[2\]"):
        build_label_space([dataset])


names = st.sampled_from(load_catalogue().class_names)


@given(st.dictionaries(names, st.integers(1, 999), min_size=1, max_size=30))
def test_rules_only_ever_add(listed: dict[str, int]) -> None:
    found = derive({name: (i,) for name, i in listed.items()})
    assert set(found.rules).isdisjoint(listed)
    for name, i in listed.items():
        assert i in found.ids[name]
    assert {i for ids in found.ids.values() for i in ids} == set(listed.values())
