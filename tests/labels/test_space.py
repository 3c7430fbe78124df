from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import numpy as np
import pytest

from satunet.datasets.paths import all_dataset_names
from satunet.datasets.raw import Dataset, load_dataset
from satunet.errors import LabelSpaceError
from satunet.jobs.records import from_plain, to_plain
from satunet.labels import LabelSpace, build_label_space, normalize_name, text_variants
from satunet.prompts import PromptReader


def dataset(number: int, labels: dict[str, tuple[int, ...]], modality: str = "mri") -> Dataset:
    return Dataset(
        id=number,
        name=f"Dataset{number:03d}_X",
        folder=Path("nowhere"),
        channel_names=("0",),
        modalities=(modality,),
        labels=labels,
    )


A = dataset(1, {"Hippocampus_L": (1,), "Hippocampus_R": (2,), "tumour core": (3, 4)})
B = dataset(2, {"Left Hippocampus": (17,), "left atrium": (5,), "right atrium": (6,)}, "ct")
C = dataset(3, {"anterior hippocampus": (1,), "posterior hippocampus": (2,)})


def test_names_meet_and_unions_follow() -> None:
    space = build_label_space([A, B, C])
    assert space.ids_of("Dataset001_X", "left hippocampus") == (1,)
    assert space.ids_of("Dataset002_X", "left hippocampus") == (17,)
    assert space.ids_of("Dataset001_X", "hippocampus") == (1, 2)
    assert space.ids_of("Dataset003_X", "hippocampus") == (1, 2)
    assert space.info("hippocampus").inferred == "union of anterior and posterior; union of left and right"
    assert space.info("left hippocampus").modalities == ("ct", "mri")
    assert space.info("tumor core").lesion
    assert not space.info("hippocampus").lesion


def test_what_a_dataset_does_not_annotate_is_unknown_there() -> None:
    space = build_label_space([A, B])
    assert "right hippocampus" not in space.classes_of("Dataset002_X")
    assert "hippocampus" not in space.classes_of("Dataset002_X")  # one side is not the whole
    with pytest.raises(LabelSpaceError, match="does not annotate"):
        space.ids_of("Dataset002_X", "hippocampus")


def test_that_a_lesion_is_taken_into_its_organ_is_said() -> None:
    space = build_label_space([dataset(5, {"kidney": (1,), "kidney tumour": (2,)}, "ct")])
    assert space.ids_of("Dataset005_X", "kidney") == (1, 2)
    assert space.notes["Dataset005_X"] == ("'kidney' includes 'kidney tumor', which lies in it",)


def test_intrinsic_sides_are_not_united() -> None:
    assert "atrium" not in build_label_space([B])


def test_parts_of_something_with_more_parts_are_not_the_whole() -> None:
    lobes = dataset(4, {"superior lobe": (1,), "inferior lobe": (2,)})
    three = dataset(5, {"anterior horn": (1,), "posterior horn": (2,)})
    assert {c.inferred for c in build_label_space([lobes, three]).classes} == {None}


def test_all_lobes_of_a_lung_are_the_lung() -> None:
    left = {"lung_upper_lobe_left": (1,), "lung_lower_lobe_left": (2,)}
    right = {"right upper lung lobe": (3,), "right lower lung lobe": (4,)}
    middle = {"right middle lung lobe": (5,)}
    whole = build_label_space([dataset(1, {**left, **right, **middle})]).ids["Dataset001_X"]
    assert (whole["left lung"], whole["right lung"], whole["lung"]) == ((1, 2), (3, 4, 5), (1, 2, 3, 4, 5))
    part = build_label_space([dataset(1, {**left, **right})])
    assert "left lung" in part
    assert "right lung" not in part
    assert "lung" not in part


def test_two_spellings_in_one_dataset_are_one_class() -> None:
    space = build_label_space([dataset(1, {"brain stem": (1,), "Brainstem": (4,)})])
    assert space.ids_of("Dataset001_X", "brainstem") == (1, 4)


def test_the_space_does_not_depend_on_the_order(real_raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_raw", str(real_raw))
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    datasets = [load_dataset(n) for n in all_dataset_names()]
    expected = build_label_space(datasets)
    random.Random(3).shuffle(datasets)
    assert build_label_space(datasets) == expected
    brains = ("Dataset302_BrainRegions_MR", "Dataset306_FreeSurfer_MR", "Dataset322_Subcortical_MR")
    for name in ("left putamen", "right pallidum", "left caudate nucleus", "left thalamus"):
        assert set(brains) <= set(expected.info(name).datasets), name
    assert "Dataset309_Hippocampus_MR" in expected.info("hippocampus").datasets


def test_json_round_trip_and_versions(tmp_path: Path) -> None:
    space = build_label_space([A, B, C])
    space.save(tmp_path / "space.json")
    assert LabelSpace.load(tmp_path / "space.json") == space
    sparse = build_label_space([dataclasses.replace(A, ignore_label=9), B])
    assert sparse.ignored == {A.name: 9}
    sparse.save(tmp_path / "sparse.json")
    assert LabelSpace.load(tmp_path / "sparse.json") == sparse
    plain = to_plain(space)
    older = {k: v for k, v in plain.items() if k != "ignored"}
    assert from_plain(older, LabelSpace, source="older") == space
    for version in (1, 99):
        with pytest.raises(LabelSpaceError, match=f"version {version}"):
            from_plain(plain | {"version": version}, LabelSpace, source="x", error=LabelSpaceError)
    for wrong in ([], None, {}, plain | {"ids": 3}, plain | {"classes": [1]}, plain | {"ids": {"A": {"x": ["1"]}}}):
        (tmp_path / "wrong.json").write_text(json.dumps(wrong))
        with pytest.raises(LabelSpaceError, match=r"wrong\.json"):
            LabelSpace.load(tmp_path / "wrong.json")
    with pytest.raises(LabelSpaceError, match="none"):
        LabelSpace.load(tmp_path / "none.json")


@pytest.mark.parametrize("datasets", [[], [A, A]])
def test_no_dataset_or_one_twice(datasets: list[Dataset]) -> None:
    with pytest.raises(LabelSpaceError, match="each only once"):
        build_label_space(datasets)


def test_every_variant_of_a_class_means_that_class() -> None:
    space = build_label_space([A, B, C])
    for info in space.classes:
        variants = text_variants(info)
        assert variants[0] == info.name
        assert {normalize_name(v).canonical for v in variants} == {info.name}


class Letters:
    """An encoder whose similarity is the share of common letters; enough to test the rules."""

    def encode(self, texts: list[str]) -> np.ndarray:
        rows = np.array([[t.count(c) for c in "abcdefghijklmnopqrstuvwxyz"] for t in texts], dtype=np.float32)
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)


def test_prompts() -> None:
    space = build_label_space([A, B])
    (match,) = PromptReader(space).read("hippocampus on the left side")
    assert match.class_name == "left hippocampus"
    (match,) = PromptReader(space).read("Left Hipocampus")
    assert match.class_name == "left hippocampus"
    (unknown,) = PromptReader(space).read("coffee cup")
    assert (unknown.status, unknown.class_name) == ("unknown", None)


def test_a_sided_prompt_never_meets_the_other_side() -> None:
    space = build_label_space([dataset(1, {"right hippocampus": (1,), "liver": (2,)})])
    (match,) = PromptReader(space).read("left hippocampus", Letters())
    assert match.class_name is None
    assert all("right" not in name for name, _ in match.nearest)
