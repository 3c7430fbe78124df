"""Which classes are scored, by which ids."""

from __future__ import annotations

from pathlib import Path

import pytest

from satunet.datasets.catalogue import load_catalogue
from satunet.datasets.raw import Dataset
from satunet.errors import UserError
from satunet.jobs.files import write_json
from satunet.labels.scored import ScoredClass, ScoredClasses, classes_of_dataset, classes_of_file, classes_of_masks


def dataset(labels: dict[str, tuple[int, ...]], *, name: str = "Dataset050_Own", ignore: int | None = None) -> Dataset:
    return Dataset(
        id=50,
        name=name,
        folder=Path(name),
        channel_names=("CT",),
        modalities=("ct",),
        labels=labels,
        ignore_label=ignore,
    )


KIDNEYS = {"kidney": (1,), "kidney tumor": (2,), "kidney cyst": (3,), "spleen": (4,)}


def test_an_organ_with_its_lesions_or_as_listed() -> None:
    whole = classes_of_dataset(dataset(KIDNEYS, ignore=5))
    assert whole.ids == {"kidney": (1, 2, 3), "kidney cyst": (3,), "kidney tumor": (2,), "spleen": (4,)}
    assert whole.by_name["kidney"].includes == ("kidney cyst", "kidney tumor")
    assert whole.by_name["kidney"].excludes == ()
    assert whole.lesions == {"kidney cyst", "kidney tumor"}
    assert (whole.allowed_ids, whole.ignore_id) == ({1, 2, 3, 4, 5}, 5)
    listed = classes_of_dataset(dataset(KIDNEYS), organs="listed")
    assert listed.ids == dict(sorted(KIDNEYS.items()))
    assert listed.by_name["kidney"].excludes == ("kidney cyst", "kidney tumor")
    assert listed.by_name["kidney"].includes == ()
    assert listed.lesions == whole.lesions


def test_unions_by_rule_are_not_scored() -> None:
    found = classes_of_dataset(dataset({"left kidney": (1,), "right kidney": (2,)}))
    assert found.names == ("left kidney", "right kidney")


def test_a_published_dataset_is_scored_by_its_publication() -> None:
    record = load_catalogue().by_name("CHAOS_MRI")
    assert record is not None
    own = dataset({name: (i,) for name, i in record.labels.items()}, name=record.folder)
    assert classes_of_dataset(own).ids == {n: tuple(ids) for n, ids in sorted(record.classes.items())}
    listed = classes_of_dataset(own, organs="listed")
    assert len(listed.classes) == len(record.labels)
    assert classes_of_dataset(own).by_name["kidney"].regions == ("abdomen",)


def test_a_file_and_folders_of_masks(tmp_path: Path) -> None:
    write_json(tmp_path / "dataset.json", {"labels": {"background": 0, "Liver": 1, "liver tumour": 2, "ignore": 3}})
    found = classes_of_file(tmp_path / "dataset.json")
    assert found.ids == {"liver": (1, 2), "liver tumor": (2,)}
    assert found.ignore_id == 3
    assert classes_of_file(tmp_path / "dataset.json", organs="listed").ids == {"liver": (1,), "liver tumor": (2,)}
    masks = classes_of_masks(["liver", "liver tumor", "liver"], tmp_path)
    assert [(c.name, c.ids, c.lesion) for c in masks.classes] == [("liver", (), False), ("liver tumor", (), True)]
    assert masks.allowed_ids is None


def test_parts_make_up_a_class_only_together() -> None:
    lungs = ScoredClasses(classes=(
        ScoredClass(name="lung", ids=(1, 2, 3), includes=("left", "right", "nodule")),
        ScoredClass(name="left", ids=(1,)), ScoredClass(name="right", ids=(2, 3)), ScoredClass(name="nodule", ids=(3,)),
    ))  # fmt: skip
    assert lungs.parts_of("lung", {"left", "right"}.__contains__) == ("left", "right")
    assert lungs.parts_of("lung", {"left", "nodule"}.__contains__) == ()
    assert lungs.parts_of("left", {"right"}.__contains__) == ()
    assert classes_of_masks(["a"], Path()).parts_of("a", lambda _: True) == ()


def test_choosing_classes_and_lesions() -> None:
    found = classes_of_dataset(dataset(KIDNEYS))
    some = found.only({"spleen", "kidney"}.__contains__)
    assert some.names == ("kidney", "spleen")
    assert some.allowed_ids == found.allowed_ids
    assert found.with_lesions({"spleen"}).lesions == {"spleen"}
    with pytest.raises(UserError, match="liver: not a scored class; scored are kidney"):
        found.with_lesions({"liver"})
    with pytest.raises(ValueError, match="listed more than once"):
        ScoredClasses(classes=(ScoredClass(name="a"), ScoredClass(name="a")))
