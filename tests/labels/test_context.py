"""Names that do not say of what they are, with the names that the Decathlon really has."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from satunet.datasets.raw import Dataset
from satunet.labels import build_label_space, text_variants
from satunet.labels.context import in_context
from satunet.planners.unified.review import review_label_space

DECATHLON = {
    "Dataset001_BrainTumour": (["edema", "non-enhancing tumor", "enhancing tumour"],
                               "Gliomas segmentation tumour and oedema in on brain images"),
    "Dataset002_Heart": (["left atrium"], "Left Atrium Segmentation"),
    "Dataset003_Liver": (["liver", "cancer"], "Liver and cancer segmentation"),
    "Dataset004_Hippocampus": (["Anterior", "Posterior"], "Left and right hippocampus segmentation"),
    "Dataset005_Prostate": (["PZ", "TZ"], "Prostate transitional zone and peripheral zone segmentation"),
    "Dataset006_Lung": (["cancer"], "Lung and cancer segmentation"),
    "Dataset007_Pancreas": (["pancreas", "cancer"], "Pancreas and cancer segmentation"),
    "Dataset008_HepaticVessel": (["Vessel", "Tumour"], "Hepatic vessels and tumour segmentation"),
    "Dataset009_Spleen": (["spleen"], "Spleen Segmentation"),
    "Dataset010_Colon": (["colon cancer primaries"], "Colon Cancer Segmentation"),
}  # fmt: skip


def dataset(name: str, labels: list[str], description: str = "") -> Dataset:
    ids = {label: (number,) for number, label in enumerate(labels, start=1)}
    return Dataset(
        id=int(name[7:10]), name=name, folder=Path(name), channel_names=("CT",), modalities=("ct",), labels=ids,
        description=description,
    )  # fmt: skip


def test_the_decathlons_names_are_those_of_its_organs() -> None:
    space = build_label_space([dataset(name, *given) for name, given in DECATHLON.items()])
    # the classes that SAT-DS gives the same ten datasets, as far as it has them
    expected = {
        "Dataset001_BrainTumour": {"brain edema": (1,), "non enhancing tumor": (2,), "enhancing tumor": (3,)},
        "Dataset002_Heart": {"left atrium": (1,)},
        "Dataset003_Liver": {"liver": (1, 2), "liver tumor": (2,)},
        "Dataset004_Hippocampus": {"anterior hippocampus": (1,), "posterior hippocampus": (2,), "hippocampus": (1, 2)},
        "Dataset005_Prostate": {"peripheral zone of prostate": (1,), "transition zone of prostate": (2,)},
        "Dataset006_Lung": {"lung tumor": (1,)},
        "Dataset007_Pancreas": {"pancreas": (1, 2), "pancreas tumor": (2,)},
        "Dataset008_HepaticVessel": {"liver vessel": (1,), "liver tumor": (2,)},
        "Dataset009_Spleen": {"spleen": (1,)},
        "Dataset010_Colon": {"colon cancer": (1,)},
    }
    for name, classes in expected.items():
        assert space.ids[name] == classes, name
    assert not [f for f in review_label_space(space) if f.kind == "generic"]
    assert "'cancer' is taken for 'liver tumor', by its class 'liver'" in space.notes["Dataset003_Liver"]
    # no wording of a class is one that another class has as well
    assert all("cancer" not in text_variants(info) for info in space.classes)


@pytest.mark.parametrize(
    ("name", "label", "expected"),
    [
        ("Dataset011_PulmonaryNodule", "nodule", "lung nodule"),
        ("Dataset012_HepaticLesions", "tumour", "liver tumor"),
        ("Dataset013_RenalCancer", "tumour", "kidney tumor"),
    ],
)
def test_an_adjective_names_its_organ(name: str, label: str, expected: str) -> None:
    assert build_label_space([dataset(name, [label])]).ids[name] == {expected: (1,)}


@pytest.mark.parametrize(
    ("name", "labels", "description", "expected"),
    [
        ("Dataset001_KidneyMasses", ["tumor", "cyst"], "", {"kidney tumor", "kidney cyst"}),
        ("Dataset001_Trial", ["left kidney", "right kidney", "tumour"], "", {"kidney tumor"}),
        ("Dataset001_Trial", ["lesion"], "Lesions of the liver, portal venous phase", {"liver lesion"}),
        ("Dataset001_Trial", ["liver", "spleen", "cancer"], "", {"cancer"}),
        ("Dataset001_LiverTrial", ["liver", "spleen", "cancer"], "", {"liver tumor"}),
        ("Dataset001_Trial", ["tumor"], "tumours of liver, lung and kidney", {"tumor"}),
        ("Dataset001_Liver", ["liver tumor", "cancer"], "", {"cancer"}),
        ("Dataset001_Pancreas", ["Head", "Body", "Tail"], "", {"pancreas head", "pancreas body", "pancreas tail"}),
    ],
)
def test_context_comes_from_classes_then_name_then_description(
    name: str, labels: list[str], description: str, expected: set[str]
) -> None:
    space = build_label_space([dataset(name, labels, description)])
    assert expected <= set(space.class_names)
    assert {"cancer", "tumor", "tumour"} & set(space.class_names) <= expected


def test_what_has_no_context_is_told_and_not_merged_unsaid() -> None:
    datasets = [dataset("Dataset001_A", ["tumor"]), dataset("Dataset002_B", ["Tumour", "liver", "spleen"])]
    space = build_label_space(datasets)
    (finding,) = [f for f in review_label_space(space) if f.kind == "generic"]
    assert finding.classes == ("tumor",)
    assert finding.datasets == ("Dataset001_A", "Dataset002_B")
    assert "does not say what it belongs to" in finding.message
    assert all("rename it in dataset.json" in space.notes[d.name][-1] for d in datasets)


def test_remarks_on_a_dataset_json_are_told() -> None:
    odd = dataclasses.replace(dataset("Dataset001_A", ["liver"]), remarks=("'air' has the id 0",))
    assert build_label_space([odd]).notes["Dataset001_A"] == ("'air' has the id 0",)


def test_a_bladder_is_the_urinary_one() -> None:
    assert in_context(dataset("Dataset050_CerebralTumour", ["tumour"]), {"tumour": "tumor"})[0] == {
        "tumour": "brain tumor"
    }
    _, where = in_context(dataset("Dataset050_BladderTumour", ["tumour"]), {"tumour": "tumor"})
    assert where == ("'tumour' is taken for 'bladder tumor', by its name, 'BladderTumour'",)
    space = build_label_space([dataset("Dataset050_BladderTumour", ["tumour"])])
    assert space.ids["Dataset050_BladderTumour"] == {"bladder tumor": (1,)}
