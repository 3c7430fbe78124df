"""Means that SAT's paper reports (arXiv 2312.17183), shown beside a benchmark of the same datasets and classes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from satunet.datasets.catalogue import load_catalogue, simple_name

SOURCE = "arXiv 2312.17183"


@dataclass(frozen=True, kw_only=True)
class PublishedMean:
    """A mean as published.

    Attributes:
        name: Name of what was measured.
        dsc: Mean DSC over classes, 0 to 1.
        nsd: Mean NSD at 1 mm, 0 to 1.
    """

    name: str
    dsc: float
    nsd: float


ALL_72_DATASETS = (
    PublishedMean(name="72 nnU-Nets", dsc=0.8054, nsd=0.7815),
    PublishedMean(name="SAT-Nano", dsc=0.7551, nsd=0.7376),
    PublishedMean(name="SAT-Pro", dsc=0.7881, nsd=0.7782),
    PublishedMean(name="SAT-Pro, fine-tuned per dataset", dsc=0.8141, nsd=0.8160),
)
"""Over all classes of all 72 datasets of SAT-DS, NSD at 1 mm."""


def published_means(
    scored: Iterable[tuple[str, str]], tolerances_mm: Iterable[float], policy: str
) -> tuple[PublishedMean, ...]:
    """Published means of exactly the datasets and classes that were scored; none if any of them, or a rule, differs.

    Args:
        scored: Dataset and class of every mean that counts.
        tolerances_mm: Tolerances of NSD: the general one, and those of single classes.
        policy: Name of the absence policy.
    """
    if any(t != 1.0 for t in tolerances_mm) or policy != "sat":
        return ()
    catalogue = load_catalogue()
    found = set()
    for dataset, class_name in scored:
        record = catalogue.by_name(dataset)
        if record is None:
            return ()
        found.add((simple_name(record.name), class_name))
    wanted = {(simple_name(r.name), name) for r in catalogue.records for name in r.classes}
    return ALL_72_DATASETS if found == wanted else ()
