"""Review of a label space: suspicious entries that a person should check before training.

The label space is not changed. Names that should be merged, classes that mean different things in different datasets,
and swapped sides are recognised from fingerprints alone, without opening a scan.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from satunet.labels import LabelSpace, normalize_name
from satunet.labels.context import is_generic
from satunet.planners.fingerprint.dataset import CaseFingerprint, DatasetFingerprint

SIMILAR_FROM = 88.0
"""Smallest similarity, in percent of their letters, at which two names may mean the same."""
KINDS = ("generic", "names", "sides", "volumes", "cropped", "unseen")
"""Kinds of findings, in the order in which they are reported."""
VOLUME_RATIO = 4.0
"""Smallest ratio of a class's median volumes in two datasets at which it may be two structures."""
# Words that tell structures apart, however similar their names are otherwise.
_DISTINGUISHING = frozenset(
    [
        "left",
        "right",
        "anterior",
        "posterior",
        "superior",
        "inferior",
        "upper",
        "lower",
        "middle",
        "medial",
        "lateral",
        "internal",
        "external",
        "minimus",
        "medius",
        "maximus",
        "cervical",
        "thoracic",
        "lumbar",
        "sacral",
        "artery",
        "vein",
        "vena",
        "aorta",
        "tumor",
        "cyst",
        "cancer",
        "lesion",
        "nodule",
        "edema",
        "scar",
        "lobe",
        "cortex",
        "white",
        "grey",
        "matter",
        "cartilage",
        "third",
        "fourth",
        "lateral",
        "inner",
        "outer",
        "deep",
        "glottis",
        "supraglottis",
        "common",
        "tibia",
        "femur",
        "tibial",
        "femoral",
        "atrium",
        "ventricle",
        "long",
        "short",
        "transition",
        "peripheral",
        "ascending",
        "descending",
    ]
)
# Words that are often added to a name without changing its meaning.
_OPTIONAL = frozenset(
    [
        "gland",
        "nucleus",
        "bone",
        "muscle",
        "organ",
        "proper",
        "structure",
        "region",
        "area",
        "whole",
        "body",
        "of",
        "the",
    ]
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something a person should look at.

    Attributes:
        kind: One of :data:`KINDS`.
        classes: Classes it is about.
        datasets: Datasets it is about.
        message: Message, in one sentence.
    """

    kind: str
    classes: tuple[str, ...]
    datasets: tuple[str, ...]
    message: str


def review_label_space(
    space: LabelSpace, fingerprints: Sequence[DatasetFingerprint] = (), kinds: Collection[str] = KINDS
) -> list[Finding]:
    """Find everything that looks wrong in a label space.

    Args:
        space: The label space.
        fingerprints: Fingerprints of its datasets; without one, or with one that nnunetv2 made, labels are not checked.
        kinds: Kinds of findings to look for; the others cost no time.
    """
    known = [f for f in fingerprints if f.dataset in space.ids and not f.approximate]
    found = {
        "generic": _generic(space),
        "names": _similar_names(space),
        "sides": _sides(space, known),
        "volumes": _volumes(space, known),
        "cropped": _cropped(space, known),
        "unseen": _unseen(space, known),
    }  # generators: those that are not wanted do not run
    return [finding for kind in KINDS if kind in kinds for finding in found[kind]]


def _generic(space: LabelSpace) -> Iterator[Finding]:
    """Classes with generic names, which merge whatever the datasets mean by them."""
    for info in space.classes:
        if is_generic(info.name) and info.source_names:
            named = ", ".join(info.datasets)
            one = f"one class of {len(info.datasets)} datasets ({named})" if len(info.datasets) > 1 else f"in {named}"
            yield Finding(
                kind="generic",
                classes=(info.name,),
                datasets=info.datasets,
                message=f"{info.name!r}, {one}, does not say what it belongs to: name it in dataset.json, as 'liver tumor'",
            )


def _cropped(space: LabelSpace, fingerprints: Sequence[DatasetFingerprint]) -> Iterator[Finding]:
    """Classes that lie where a scan is zero, and are lost when it is cropped to its nonzero voxels."""
    for fingerprint in fingerprints:
        losing = [c for c in fingerprint.cases if c.cropped_voxels]
        for name, ids in sorted(space.ids[fingerprint.dataset].items()):
            cases = [c for c in losing if any(c.cropped_voxels.get(i) for i in ids)]
            if not cases:
                continue
            lost = sum(c.cropped_voxels.get(i, 0) for c in cases for i in ids)
            every = sum(c.label_voxels.get(i, 0) for c in cases for i in ids)
            yield Finding(
                kind="cropped",
                classes=(name,),
                datasets=(fingerprint.dataset,),
                message=f"{name!r}: {lost / every:.0%} of its voxels in {len(cases)} cases of {fingerprint.dataset}, such "
                f"as {cases[0].case}, lie where the scan is zero, and are cut away with it",
            )


def _similar_names(space: LabelSpace) -> Iterator[Finding]:
    from rapidfuzz import fuzz, process

    sorted_words = [" ".join(sorted(name.split())) for name in space.class_names]
    similarity = process.cdist(sorted_words, sorted_words, scorer=fuzz.ratio, score_cutoff=SIMILAR_FROM)
    words = [frozenset(name.split()) for name in space.class_names]
    for i, name in enumerate(space.class_names):
        for j in range(i + 1, len(words)):
            only, others_only = words[i] - words[j], words[j] - words[i]
            different = only | others_only
            optional = different <= _OPTIONAL
            if not optional and similarity[i, j] < SIMILAR_FROM:
                continue
            if different & _DISTINGUISHING or any(c.isdigit() for word in different for c in word):
                continue
            first, second = space.info(name), space.info(space.class_names[j])
            # If a dataset lists both, they differ.
            if set(first.datasets) & set(second.datasets) or not (first.source_names and second.source_names):
                continue
            yield Finding(
                kind="names",
                classes=(first.name, second.name),
                datasets=tuple(sorted({*first.datasets, *second.datasets})),
                message=f"{first.name!r} and {second.name!r} may be the same structure; no dataset lists both",
            )


def _sides(space: LabelSpace, fingerprints: Sequence[DatasetFingerprint]) -> Iterator[Finding]:
    for fingerprint in fingerprints:
        classes = space.ids[fingerprint.dataset]
        for name in sorted(classes):
            if "left" not in name.split():
                continue
            other = normalize_name(name.replace("left", "right")).canonical
            if other not in classes:
                continue
            pairs = [(_centre(case, classes[name]), _centre(case, classes[other])) for case in fingerprint.cases]
            shown = [(left, right) for left, right in pairs if left is not None and right is not None]
            # Centroids are in RAS millimetres: x grows towards the patient's right.
            wrong = sum(left >= right for left, right in shown)
            if wrong:
                yield Finding(
                    kind="sides",
                    classes=(name, other),
                    datasets=(fingerprint.dataset,),
                    message=f"{name!r} lies to the right of {other!r} in {wrong} of {len(shown)} cases",
                )


def _volumes(space: LabelSpace, fingerprints: Sequence[DatasetFingerprint]) -> Iterator[Finding]:
    """One finding per pair of datasets, because a field of view that cuts off organs does so for many at once."""
    pairs: dict[tuple[str, str], dict[str, tuple[float, float]]] = {}
    for info in space.classes:
        if info.lesion:
            continue
        medians = {}
        for fingerprint in fingerprints:
            ids = space.ids[fingerprint.dataset].get(info.name, ())
            if not ids:
                continue
            volumes = [v for case in fingerprint.cases if (v := _volume_ml(case, ids)) > 0]
            if volumes:
                medians[fingerprint.dataset] = float(np.median(volumes))
        if len(medians) < 2:
            continue
        small, large = min(medians, key=medians.__getitem__), max(medians, key=medians.__getitem__)
        if medians[large] >= VOLUME_RATIO * medians[small]:
            pairs.setdefault((small, large), {})[info.name] = (medians[small], medians[large])
    for (small, large), classes in sorted(pairs.items()):
        named = "; ".join(f"{name} {a:.3g} and {b:.3g}" for name, (a, b) in classes.items())
        yield Finding(
            kind="volumes",
            classes=tuple(classes),
            datasets=(small, large),
            message=f"median ml in {small} and {large}: {named}",
        )


def _unseen(space: LabelSpace, fingerprints: Sequence[DatasetFingerprint]) -> Iterator[Finding]:
    for fingerprint in fingerprints:
        seen = {label for case in fingerprint.cases for label, voxels in case.label_voxels.items() if voxels}
        missing = tuple(name for name, ids in sorted(space.ids[fingerprint.dataset].items()) if not seen & set(ids))
        if missing:
            named = ", ".join(repr(name) for name in missing[:3]) + (" …" if len(missing) > 3 else "")
            yield Finding(
                kind="unseen",
                classes=missing,
                datasets=(fingerprint.dataset,),
                message=f"{fingerprint.dataset} lists {named} ({len(missing)} in all), but no case has a voxel of it",
            )


def _centre(case: CaseFingerprint, ids: Sequence[int]) -> float | None:
    """Position of a class along left → right in mm."""
    shown = [(case.label_voxels.get(i, 0), case.label_centroids_mm[i][0]) for i in ids if i in case.label_centroids_mm]
    total = sum(voxels for voxels, _ in shown)
    return sum(voxels * place for voxels, place in shown) / total if total else None


def _volume_ml(case: CaseFingerprint, ids: Sequence[int]) -> float:
    return sum(case.label_voxels.get(i, 0) for i in ids) * math.prod(case.spacing) / 1000
