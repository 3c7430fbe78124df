"""Rules that derive further classes from those that a dataset lists, for datasets that are not in the catalogue.

A rule derives only what the names make certain: a structure is the union of its left and right sides, a series the
union of all its levels, a lung the union of all its lobes, and a tumor of an organ is part of the organ. An incomplete
series does not count as the whole: missing levels in the field of view would be trained as background.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from satunet.labels.names import normalize_name

Ids = tuple[int, ...]
Unite = Callable[[str, Iterable[str], str], None]

_PARTS = (("anterior", "posterior"), ("upper", "lower"), ("superior", "inferior"))
# "upper lobe" and "lower lobe" do not make up a structure called "lobe".
_NO_WHOLE = {
    "process", "limb", "lobe", "division", "segment", "part", "gyrus", "horn", "wall", "border", "root", "pole",
}  # fmt: skip
_CHAMBERS = ("heart atrium", "heart ventricle")
_LUNGS = {"left": ("upper", "lower"), "right": ("upper", "middle", "lower")}
# (region, number of levels of every spine, number of levels that some spines have)
_SPINE = (("cervical", 7, 7), ("thoracic", 12, 13), ("lumbar", 5, 6))
_LESION_OF = re.compile(r"^(?P<organ>.+) (?:tumor|cyst|cancer|lesion|metastasis|nodule|infection|abscess|hematoma)$")
_OVERLAP = re.compile(r"^(?P<both>.+) overlap$")
_LONE_THORACIC = re.compile(r"^t\s?(\d{1,2})$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Derived:
    """Classes of a dataset after the rules.

    Attributes:
        ids: Class → ids, including listed classes.
        rules: Derived class → rule that derived it.
        notes: Notes on listed classes whose ids the rules changed, one sentence each.
    """

    ids: dict[str, Ids]
    rules: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def canonical_names(sources: Iterable[str]) -> dict[str, str]:
    """Label names of one dataset → canonical names.

    On its own, ``T1`` may be an MRI sequence or a vertebra; if ``L1`` or ``C1`` is listed too, it is the vertebra.
    """
    names = {source: normalize_name(source).canonical for source in sources}
    spine = any(re.match(r"^(cervical|lumbar) vertebrae \d", name) for name in names.values())
    for source in names:
        level = _LONE_THORACIC.match(source.strip())
        if spine and level:
            names[source] = normalize_name(f"vertebra T{level[1]}").canonical
    return names


def derive(listed: Mapping[str, Ids]) -> Derived:
    """Apply all rules to the classes that a dataset lists."""
    ids = dict(listed)
    notes: list[str] = []
    _resolve_overlaps(ids, notes)
    own = dict(ids)
    rules: dict[str, str] = {}

    def unite(name: str, parts: Iterable[str], rule: str) -> None:
        parts = tuple(parts)
        if name and name not in ids and all(part in ids for part in parts):
            ids[name] = _union(ids[part] for part in parts)
            rules[name] = rule

    for name in sorted(own):
        parsed = normalize_name(name)
        if parsed.side == "left":
            unite(parsed.base, (name, normalize_name(f"right {parsed.base}").canonical), "union of left and right")
        _unite_parts(name, own, unite)
    for chamber in _CHAMBERS:
        unite(chamber, (f"left {chamber}", f"right {chamber}"), "union of left and right")
    for side, lobes in _LUNGS.items():
        unite(f"{side} lung", [f"{side} lung {lobe} lobe" for lobe in lobes], "union of all lobes")
    unite("lung", ("left lung", "right lung"), "union of left and right")
    _unite_series(ids, unite)
    for name in sorted(own):
        lesion = _LESION_OF.match(name)
        organ = normalize_name(lesion["organ"]).canonical if lesion else None
        if organ in ids and not set(ids[name]) <= set(ids[organ]):
            ids[organ] = _union((ids[organ], ids[name]))
            notes.append(f"{organ!r} includes {name!r}, which lies in it")
    return Derived(ids=ids, rules=rules, notes=tuple(notes))


def _union(parts: Iterable[Ids]) -> Ids:
    return tuple(sorted({i for part in parts for i in part}))


def _resolve_overlaps(ids: dict[str, Ids], notes: list[str]) -> None:
    """Add the ids of labels named "A B overlap" to both A and B."""
    for name in sorted(ids):
        match = _OVERLAP.match(name)
        if match is None:
            continue
        parsed = normalize_name(match["both"])
        words = parsed.base.split()
        for cut in range(1, len(words)):
            halves = (" ".join(words[:cut]), " ".join(words[cut:]))
            pair = [normalize_name(f"{parsed.side or ''} {half}").canonical for half in halves]
            if all(part in ids for part in pair):
                values = ids.pop(name)
                for part in pair:
                    ids[part] = _union((ids[part], values))
                notes.append(f"{name!r} belongs to {pair[0]!r} and to {pair[1]!r}")
                break


def _unite_parts(name: str, own: Mapping[str, Ids], unite: Unite) -> None:
    parsed = normalize_name(name)
    words = parsed.base.split()
    for first, second in _PARTS:
        if words[0] == first and len(words) > 1 and not _NO_WHOLE & set(words):
            whole = " ".join(words[1:])
            prefix = f"{parsed.side} " if parsed.side else ""
            siblings = {n for n in own if n.endswith(f" {whole}") and n.startswith(prefix)}
            parts = (name, f"{prefix}{second} {whole}")
            # With a third sibling ("middle"), the two do not make up the whole.
            if siblings == set(parts):
                unite(f"{prefix}{whole}", parts, f"union of {first} and {second}")


def _unite_series(ids: Mapping[str, Ids], unite: Unite) -> None:
    regions = []
    for region, levels, most in _SPINE:
        names = [normalize_name(f"{region} vertebrae {level}").canonical for level in range(1, most + 1)]
        parts = names[:levels] + [name for name in names[levels:] if name in ids]
        unite(f"{region} vertebrae", parts, f"union of all {region} vertebrae")
        regions.append(f"{region} vertebrae")
    unite("vertebrae", regions, "union of cervical, thoracic and lumbar vertebrae")
    for side in ("left ", "right ", ""):
        parts = [f"{side}rib {number}" for number in range(1, 13)]
        unite(f"{side}rib", parts, "union of all ribs")
