"""What the starter's confidence is calibrated on: scans of its judges, and of other parts of the body."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from satunet.confidence.expected import CaseClasses, ClassStatistics
from satunet.datasets.raw import Dataset
from satunet.labels import LabelSpace
from satunet.trainers.synthetic.mixture import Group
from satunet.trainers.synthetic.starter import JUDGES, find_dataset, judges

ELSEWHERE = (
    "Dataset304_CardiacVentricles_MR", "Dataset310_LeftAtrium_MR", "Dataset311_LumbarVertebrae_MR",
    "Dataset314_Prostate_MR", "Dataset315_SoftTissueSarcoma_CT", "Dataset329_CardiacACDC_MR",
    "Dataset331_ProstateZones_MR",
)  # fmt: skip
"""Further datasets, none of which is trained on: most structures that the starter knows cannot be seen in their scans."""
_SPANS: Mapping[str, tuple[int, int]] = {
    "Brain": (0, 1), "FreeSurfer": (0, 1), "Hippocampus": (0, 1), "Subcortical": (0, 1), "HeadLabelMaps": (0, 1),
    "HeadNeck": (0, 3), "SpinalCord": (2, 3), "Cardiac": (4, 5), "LeftAtrium": (4, 5), "Lung": (3, 6), "Thorax": (3, 6),
    "Abdomen": (5, 8), "Spleen": (5, 7), "LumbarVertebrae": (6, 8), "Vertebra": (3, 8), "TotalSegmentator": (4, 9),
    "TrunkLabelMaps": (1, 9), "Prostate": (9, 9), "SoftTissueSarcoma": (9, 12),
}  # fmt: skip
"""Word of a dataset's name → from where to where its scans reach, along a body from 0, the head, to 12, the legs."""
_LONG = ("spinal cord", "vertebra", "aorta", "vena cava", "esophagus", "trachea", "rib", "autochthon", "skin", "fat", "muscle",
         "vein", "artery", "colon", "small bowel", "sarcoma", "tumor", "lesion", "bone", "white matter lesion")  # fmt: skip
"""Words of what may be seen anywhere between its datasets, or anywhere at all."""


def absent_classes(space: LabelSpace) -> dict[str, frozenset[str]]:
    """Dataset of :data:`JUDGES` and :data:`ELSEWHERE` → classes that none of its scans can show, because what annotates
    them is of another part of the body; classes whose place is in doubt are in neither.
    """
    spans: dict[str, tuple[int, int]] = {}
    for dataset, classes in space.ids.items():
        own = _span(dataset)
        if own is None:
            continue
        for name in classes:
            low, high = spans.get(name, (0, 12))
            spans[name] = (max(low, own[0]), min(high, own[1]))
    found = {}
    for dataset in (*JUDGES, *ELSEWHERE):
        reach = _span(dataset)
        if reach is not None:
            found[dataset] = frozenset(
                name
                for name, (low, high) in spans.items()
                if low <= high and (high < reach[0] or reach[1] < low) and not any(word in name for word in _LONG)
            )
    return found


def _span(dataset: str) -> tuple[int, int] | None:
    words = [word for word in _SPANS if word in dataset.partition("_")[2]]
    return _SPANS[max(words, key=len)] if words else None


def statistics_of(groups: Sequence[Group], space: LabelSpace) -> ClassStatistics:
    """Sizes and places of the classes in what the starter is trained on."""
    people = {(s.dataset, s.case): s for group in groups for s in group.subjects}
    return ClassStatistics.of(
        CaseClasses.of_labels(s.dataset, space.ids[s.dataset], s.labels.numpy(), s.spacing_mm) for s in people.values()
    )


def calibrating_judges(data: Path) -> list[tuple[Dataset, Sequence[str] | None]]:
    """Scans that confidence is calibrated on: those of :func:`judges`, and of :data:`ELSEWHERE` four each."""
    further = [find_dataset(data, name) for name in ELSEWHERE]
    few = [(d, tuple(c.identifier for c in d.training_cases())[:4]) for d in further]
    return [*judges(data), *few]
