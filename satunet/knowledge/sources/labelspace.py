"""Our own label space as a source: names and label ids give the relations of sides, series, parts and lesions.

This source needs no other package and no licence. A class is part of another if its label ids are a proper subset of
the other's in some dataset, and the reverse is true in none; a lesion within an organ is a lesion of the organ.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from satunet.datasets.catalogue import load_catalogue
from satunet.datasets.raw import split_scan_id
from satunet.errors import DatasetError
from satunet.jobs.records import load_json, understanding
from satunet.knowledge.build import Imported
from satunet.knowledge.names import load_names
from satunet.knowledge.tree import Source, Term, name_key
from satunet.labels.names import normalize_name, other_side

if TYPE_CHECKING:
    from pathlib import Path

    from satunet.labels import LabelSpace

SOURCE = "classes"
PREFIX = "class:"
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth",
             "eleventh", "twelfth", "thirteenth")  # fmt: skip
_LEVEL = re.compile(r"^(?P<region>cervical|thoracic|lumbar|sacral) vertebrae (?P<number>\d+) \([ctls]\d+\)$")
_RIB = re.compile(r"^(?P<side>left |right )?rib (?P<number>\d+)$")
_DISC = re.compile(r"^intervertebral disc between (?P<upper>.+?) and (?P<lower>.+)$")
_REGIONS = ("cervical", "thoracic", "lumbar", "sacral")
_COUNTS = {"cervical": 7, "thoracic": 12, "lumbar": 5}


def class_id(name: str) -> str:
    """Id of a class's term."""
    return f"{PREFIX}{name}"


def import_catalogue() -> Imported:
    """Terms of all classes of the 72 datasets of SAT-DS, with relations from their names and label ids."""
    catalogue = load_catalogue()
    return import_classes(
        {record.name: record.classes for record in catalogue.records},
        lesions=catalogue.lesions,
        regions=catalogue.regions_of,
        version="SAT-DS, 72 datasets",
    )


def import_label_space(space: LabelSpace, scans: Mapping[str, Iterable[str]] | None = None) -> Imported:
    """Terms of the classes of a label space, such as that of a user's plan.

    Args:
        space: The label space.
        scans: Class → names of preprocessed scans that show it.
    """
    return import_classes(
        space.ids,
        lesions={c.name for c in space.classes if c.lesion},
        regions={c.name: c.regions for c in space.classes},
        names={c.name: c.source_names for c in space.classes},
        scans=scans,
        version=f"label space of {len(space.ids)} datasets",
    )


def scans_by_class(space: LabelSpace, folder: Path) -> dict[str, tuple[str, ...]]:
    """Class → scans in the store ``folder`` with a voxel of the class; only the scans' JSON records are read."""
    found: dict[str, list[str]] = {}
    for file in sorted(folder.glob("*__*.json")):
        record = load_json(file, what="the record of a scan", error=DatasetError)
        with understanding(file, "the record of a scan", DatasetError):
            dataset = split_scan_id(str(record["scan"]))[0]
            present = {int(label) for label, voxels in record["label_voxels"].items() if voxels}
        for name, ids in space.ids.get(dataset, {}).items():
            if present & set(ids):
                found.setdefault(name, []).append(record["scan"])
    return {name: tuple(scans) for name, scans in found.items()}


def import_classes(
    ids: Mapping[str, Mapping[str, tuple[int, ...]]],
    *,
    lesions: Iterable[str] = (),
    regions: Mapping[str, tuple[str, ...]] | None = None,
    names: Mapping[str, tuple[str, ...]] | None = None,
    scans: Mapping[str, Iterable[str]] | None = None,
    version: str,
) -> Imported:
    """Terms and relations of classes.

    Args:
        ids: Dataset → class → label ids.
        lesions: Classes that are pathological.
        regions: Class → body regions.
        names: Class → names in the datasets.
        scans: Class → names of scans that show it.
        version: Version of the source, in words.
    """
    imported = Imported(sources=[Source(name=SOURCE, version=version, licence="Apache-2.0")])
    datasets: dict[str, list[str]] = {}
    for dataset, classes in sorted(ids.items()):
        for name in classes:
            datasets.setdefault(name, []).append(dataset)
    known = set(datasets)
    for name in sorted(known):
        said = tuple(" ".join(n.replace("_", " ").split()).lower() for n in (names or {}).get(name, ()))
        term = Term(
            id=class_id(name),
            name=name,
            source=SOURCE,
            synonyms=tuple(dict.fromkeys(n for n in (*_spoken(name), *said) if name_key(n) != name_key(name))),
            definition=_definition(name),
            datasets=tuple(datasets[name]),
            scans=tuple((scans or {}).get(name, ())),
        )
        imported.add(term, f"class {name!r}")
    for region in sorted({r for name in known for r in (regions or {}).get(name, ())}):
        term = Term(id=f"region:{region}", name=f"{region} region", source=SOURCE,
                    definition=f"The part of the body that scans of the {region} show.")  # fmt: skip
        imported.add(term, f"region {region!r}")
    for head, kind, tail in sorted(_relations(known, ids, set(lesions), regions or {})):
        imported.relate(head, kind, tail, f"class {head.removeprefix(PREFIX)!r}")
    return imported


def _relations(
    known: set[str],
    ids: Mapping[str, Mapping[str, tuple[int, ...]]],
    lesions: set[str],
    regions: Mapping[str, tuple[str, ...]],
) -> set[tuple[str, str, str]]:
    found: set[tuple[str, str, str]] = set()

    def relate(head: str, kind: str, tail: str) -> None:
        if head in known and tail in known and head != tail:
            found.add((class_id(head), kind, class_id(tail)))

    sides = {}
    for name in known:
        parsed = normalize_name(name)
        if parsed.side:
            sides[name] = parsed.base
            relate(name, f"{parsed.side}_variant_of", parsed.base)
            relate(name, "other_side", normalize_name(f"{other_side(parsed.side)} {parsed.base}").canonical)
        for other in _next_in_series(name):
            relate(name, "above", other)
            relate(other, "below", name)
        series = _series(name)
        if series:
            relate(name, "part_of", series)
        found |= {(class_id(name), "within", f"region:{region}") for region in regions.get(name, ())}
    for name, whole in _inclusions(ids):
        if sides.get(name) != whole:
            relate(name, "lesion_of" if name in lesions and whole not in lesions else "part_of", whole)
    return found


def _inclusions(ids: Mapping[str, Mapping[str, tuple[int, ...]]]) -> set[tuple[str, str]]:
    """Pairs (part, whole) of classes by inclusion of their ids; for each part, only the nearest wholes."""
    inside: dict[str, set[str]] = {}
    for classes in ids.values():
        sets = {name: set(values) for name, values in classes.items()}
        for name, own in sets.items():
            for other, theirs in sets.items():
                if own < theirs:
                    inside.setdefault(name, set()).add(other)
    # Two classes that contain each other in different datasets are not part and whole.
    certain = {name: {w for w in wholes if name not in inside.get(w, set())} for name, wholes in inside.items()}
    return {(n, w) for n, ws in certain.items() for w in ws if not any(w in certain.get(m, ()) for m in ws)}


def _spoken(name: str) -> tuple[str, ...]:
    """Synonyms of a class, from its name and our own table of names."""
    ours = load_names().synonyms
    return (*_said_by_rule(name), *ours.get(name, ()), *_sided_synonyms(name))


def _sided_synonyms(name: str) -> tuple[str, ...]:
    parsed = normalize_name(name)
    return tuple(f"{parsed.side} {other}" for other in load_names().synonyms.get(parsed.base, ()) if parsed.side)


def _said_by_rule(name: str) -> tuple[str, ...]:
    level = _LEVEL.match(name)
    if level:
        region, number = level["region"], int(level["number"])
        short = f"{region[0].upper()}{number}"
        spoken = [short, f"{short} vertebra", f"vertebra {short}", f"{region} vertebra {number}"]
        spoken.append(f"{_ORDINALS[number - 1]} {region} vertebra")
        spoken += {"C1": ["atlas", "atlas vertebra"], "C2": ["axis", "axis vertebra"]}.get(short, [])
        return tuple(spoken)
    disc = _DISC.match(name)
    if disc:
        upper, lower = _short(disc["upper"]), _short(disc["lower"])
        return (f"{upper}/{lower} disc", f"{upper}-{lower} intervertebral disc", f"disc between {upper} and {lower}")
    rib = _RIB.match(name)
    if rib:
        side, ordinal = rib["side"] or "", _ORDINALS[int(rib["number"]) - 1]
        return (f"{side}{ordinal} rib", f"{ordinal} rib {side}".strip())
    parsed = normalize_name(name)
    if parsed.side:
        base, side = parsed.base, parsed.side
        return (f"{base} {side}", f"{base} on the {side} side", f"{side}-sided {base}", f"{base} ({side})")
    return ()


def _definition(name: str) -> str:
    level = _LEVEL.match(name)
    if level:
        region, number = level["region"], int(level["number"])
        count = f" of {_COUNTS[region]}" if region in _COUNTS and number <= _COUNTS[region] else ""
        return f"The {_ORDINALS[number - 1]}{count} {region} vertebrae, counted from above."
    disc = _DISC.match(name)
    if disc:
        return f"The disc of cartilage between the vertebrae {_short(disc['upper'])} and {_short(disc['lower'])}."
    rib = _RIB.match(name)
    if rib:
        where = f" on the {rib['side'].strip()} side of the body" if rib["side"] else ""
        return f"The {_ORDINALS[int(rib['number']) - 1]} of twelve ribs, counted from above{where}."
    parsed = normalize_name(name)
    return f"The {parsed.base} on the {parsed.side} side of the body." if parsed.side else ""


def _short(vertebra: str) -> str:
    found = re.search(r"\(([ctls]\d+)\)", vertebra)
    return found[1].upper() if found else vertebra


def _next_in_series(name: str) -> tuple[str, ...]:
    """The next level below, by every name that it may have."""
    level = _LEVEL.match(name)
    if level:
        region, number = level["region"], int(level["number"])
        below = [f"{region} vertebrae {number + 1} ({region[0]}{number + 1})"]
        if number == _COUNTS.get(region):
            following = _REGIONS[_REGIONS.index(region) + 1]
            below = [f"{following} vertebrae 1 ({following[0]}1)"]
        return tuple(below)
    rib = _RIB.match(name)
    if rib:
        return (f"{rib['side'] or ''}rib {int(rib['number']) + 1}",)
    disc = _DISC.match(name)
    if disc:
        return tuple(
            f"intervertebral disc between {disc['lower']} and {after}" for after in _next_in_series(disc["lower"])
        )
    return ()


def _series(name: str) -> str | None:
    level = _LEVEL.match(name)
    if level:
        return f"{level['region']} vertebrae"
    if name in ("cervical vertebrae", "thoracic vertebrae", "lumbar vertebrae"):
        return "vertebrae"
    rib = _RIB.match(name)
    if rib:
        return f"{rib['side'] or ''}rib"
    return "intervertebral discs" if _DISC.match(name) else None
