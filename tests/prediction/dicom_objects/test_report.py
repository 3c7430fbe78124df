"""Reports of measures, read back by pydicom alone and by dcmqi's reader, and validated by dciodvfy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from satunet.images.dicom import find_series, read_series
from satunet.prediction.dicom_objects import Kind, Reported, segmentation, write_report, write_segmentations
from satunet.prediction.results.measures import Measures, measure
from tests.prediction.dicom_objects.archives import CLASSES, boxed, volume, write_ct, write_enhanced
from tests.prediction.dicom_objects.test_source import japanese
from tests.prediction.dicom_objects.test_validators import errors, program, run

pytest.importorskip("highdicom")
pydicom = pytest.importorskip("pydicom")

NAMES = {"liver tumor": None, "肝臓の左 kidney": "left kidney", "my thing": None}


def pet(units: str, kind: str | None) -> Any:
    def edit(image: Any, _: int) -> None:
        image.Units, image.RescaleType = units, None
        if kind is not None:
            image.SUVType = kind

    return edit


def reported(
    folder: Path, *, several: bool = False, kind: Kind = "auto", **archive: Any
) -> tuple[Path, list[Path], list[Measures]]:
    """A report of three masks, its Segmentations, and what was measured."""
    if archive.pop("enhanced", False):
        write_enhanced(folder / "ct", volume(), (3, 0, 1, 2, 5, 4))
    else:
        write_ct(folder / "ct", volume(), **archive)
    (series,) = find_series(folder / "ct")
    image = read_series(series)
    masks = [np.zeros(image.grid.shape, bool) for _ in NAMES]
    masks[0][1:4, 1:9, 1:4] = masks[1][6:9, 2:8, 1:5] = masks[2][12, 3, 0] = True
    if several:
        masks[2] |= masks[0]
    named = [*zip(NAMES, map(boxed, masks), strict=True)]
    named.insert(1, ("nothing", boxed(np.zeros(image.grid.shape, bool))))
    classes = [*NAMES.values()]
    classes.insert(1, None)
    files = write_segmentations(folder / "seg.dcm", series, named, classes=classes, kind=kind)
    found = [
        measure(mask, image.grid, image.array, hu_offset=0 if series.modality == "ct" else None) for _, mask in named
    ]
    known = [m for m in found if m is not None]
    file = folder / "Segmentation report.dcm"
    write_report(file, series, files, [Reported(measures=m, certainty=0.75 if m is known[0] else None) for m in known])
    assert [s.uid for s in find_series(folder)] == [series.uid]  # a report is no image to segment
    return file, files, known


def items(node: Any, meaning: str) -> list[Any]:
    """Items of a name, at any depth."""
    found = []
    for item in node.get("ContentSequence", ()):
        name = item.get("ConceptNameCodeSequence")
        found += [item] if name and name[0].CodeMeaning == meaning else []
        found += items(item, meaning)
    return found


def numbers(group: Any) -> dict[tuple[str, ...], tuple[float, str]]:
    """(code, derivation) → value and unit."""
    found = {}
    for item in group.ContentSequence:
        if item.ValueType == "NUM":
            derived = tuple(d.ConceptCodeSequence[0].CodeMeaning for d in items(item, "Derivation"))
            value = item.MeasuredValueSequence[0]
            unit = value.MeasurementUnitsCodeSequence[0]
            unit = unit.get("CodeValue") or unit.LongCodeValue
            found[(item.ConceptNameCodeSequence[0].CodeValue, *derived)] = (float(value.NumericValue), unit)
    return found


@pytest.mark.parametrize("several", [False, True])
def test_pydicom_reads_what_was_measured(tmp_path: Path, several: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segmentation, "_FRAMES_BYTES", 2 * volume().size)
    file, segmentations, measures = reported(tmp_path, several=several)
    assert len(segmentations) == (2 if several else 1)
    report = pydicom.dcmread(file)
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    assert (str(report.PatientName), report.StudyInstanceUID[-4:], report.Modality) == ("Doe^Jane", "77.1", "SR")
    groups = items(report, "Measurement Group")
    assert len(groups) == 3
    by_instance = {str(s.SOPInstanceUID): s for s in map(pydicom.dcmread, segmentations)}
    for group, name, known in zip(groups, NAMES, measures, strict=True):
        (reference,) = items(group, "Referenced Segment")
        (one,) = reference.ReferencedSOPSequence
        (segment,) = [
            s
            for s in by_instance[one.ReferencedSOPInstanceUID].SegmentSequence
            if s.SegmentNumber == one.ReferencedSegmentNumber
        ]
        assert segment.SegmentLabel == items(group, "Tracking Identifier")[0].TextValue == name
        assert segment.TrackingUID == items(group, "Tracking Unique Identifier")[0].UID
        found = numbers(group)
        certainty = found.pop(("111012",), None)
        assert certainty == ((75, "%") if name == "liver tumor" else None)
        assert found == {
            ("YEKZ",): (pytest.approx(known.volume_ml, abs=1e-4), "cm3"),
            ("C0JK",): (pytest.approx(known.surface_cm2, abs=1e-4), "cm2"),
            ("TDIC",): (pytest.approx(known.major_axis_mm, abs=1e-4), "mm"),
            ("P9VJ",): (pytest.approx(known.minor_axis_mm, abs=1e-4), "mm"),
            ("7J51",): (pytest.approx(known.least_axis_mm, abs=1e-4), "mm"),
            ("112031", "Mean"): (pytest.approx(known.mean, abs=1e-4), "[hnsf'U]"),
            ("112031", "Standard Deviation"): (pytest.approx(known.deviation, abs=1e-4), "[hnsf'U]"),
        }
    # 3 × 8 × 3 voxels of 1 × 1.5 × 2 mm
    assert numbers(groups[0])["YEKZ",] == (0.216, "cm3")
    tumor, kidney, thing = groups
    assert [items(g, "Finding")[0].ConceptCodeSequence[0].CodeMeaning for g in groups] == [
        "Neoplasm", "Kidney", "Anatomical Structure",
    ]  # fmt: skip
    assert [items(g, "Finding Site")[0].ConceptCodeSequence[0].CodeMeaning for g in (tumor, kidney)] == [
        "Liver",
        "Kidney",
    ]
    assert [i.ConceptCodeSequence[0].CodeMeaning for i in items(kidney, "Laterality")] == ["Left"]
    assert not items(thing, "Finding Site")


@pytest.mark.parametrize(
    ("modality", "edit", "expected"),
    [
        ("MR", None, ("110852", "1")),
        ("PT", pet("BQML", None), ("110821", "Bq/ml")),
        ("PT", pet("GML", None), ("126400", "g/ml{SUVbw}")),
        ("PT", pet("GML", "LBMJANMA"), ("126400", "g/ml{SUVlbm(Janma)}")),
        ("PT", pet("CNTS", None), None),
    ],
)
def test_intensities_have_the_code_and_unit_of_the_image(
    tmp_path: Path, modality: str, edit: Any, expected: tuple[str, str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CLASSES, "PT", "1.2.840.10008.5.1.4.1.1.128")
    file, _, _ = reported(tmp_path, modality=modality, edit=edit)
    found = numbers(items(pydicom.dcmread(file), "Measurement Group")[0])
    units = {(name[0], unit) for name, (_, unit) in found.items() if "Mean" in name}
    assert units == ({expected} if expected else set())
    assert (
        items(pydicom.dcmread(file), "Procedure reported")[0]
        .ConceptCodeSequence[0]
        .CodeMeaning.startswith({"MR": "MR", "PT": "PET"}[modality])
    )


@pytest.mark.parametrize("what", ["single", "multi-frame", "japanese", "MR"])
@pytest.mark.parametrize("kind", ["auto", "binary"])
def test_no_error_is_found(tmp_path: Path, what: str, kind: Kind) -> None:
    program("dciodvfy")
    archive: dict[str, dict[str, Any]] = {"multi-frame": {"enhanced": True}, "japanese": {"edit": japanese}}
    archive["MR"] = {"modality": "MR"}
    file, _, _ = reported(tmp_path, kind=kind, **archive.get(what, {}))
    found = set(errors(file))
    if kind == "auto":  # dciodvfy knows label maps, but not yet that a report may refer to their segments
        found = {error for error in found if "Referenced SOP Class that is not segmentation" not in error}
    assert found == set()


def test_dcmqi_reads_what_was_written(tmp_path: Path) -> None:
    reader = program("tid1500reader")
    file, (segmented,), measures = reported(tmp_path)
    run(reader, "--inputDICOM", file, "--outputMetadata", tmp_path / "read.json")
    read = json.loads((tmp_path / "read.json").read_text("utf-8"))
    assert [g["TrackingIdentifier"] for g in read["Measurements"]] == list(NAMES)
    assert [g["ReferencedSegment"] for g in read["Measurements"]] == [1, 2, 3]
    for group, known in zip(read["Measurements"], measures, strict=True):
        assert group["segmentationSOPInstanceUID"] == pydicom.dcmread(segmented).SOPInstanceUID
        found = {
            (item["quantity"]["CodeValue"], item.get("derivationModifier", {}).get("CodeMeaning")): float(item["value"])
            for item in group["measurementItems"]
        }
        assert found["YEKZ", None] == pytest.approx(known.volume_ml, abs=1e-4)
        assert found["C0JK", None] == pytest.approx(known.surface_cm2, abs=1e-4)
        assert found["112031", "Mean"] == pytest.approx(known.mean, abs=1e-4)
    assert read["Measurements"][1]["Finding"]["CodeMeaning"] == "Kidney"
    assert read["Measurements"][1]["Laterality"]["CodeMeaning"] == "Left"
