"""Measures of masks as a DICOM Structured Report (template TID 1500), one group per segment; written by highdicom.

Every code is from the standard's context groups. Names and codes of measured structures are taken from the segments
themselves, so that the two objects cannot disagree. Measures without a code (shares of tissues by HU) are only in the
table of measures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from satunet.errors import EnvironmentProblemError
from satunet.images.dicom import Series
from satunet.jobs.files import atomic_path
from satunet.prediction.dicom_objects.codes import STRUCTURE, TISSUE
from satunet.prediction.dicom_objects.segmentation import series_number
from satunet.prediction.dicom_objects.source import read_source
from satunet.prediction.results.measures import Measures

_PROCEDURES = {
    "CT": "CTUnspecifiedBodyRegion",
    "MR": "MRIUnspecifiedBodyRegion",
    "PT": "PETUnspecifiedBodyRegion",
    "NM": "NMUnspecifiedBodyRegion",
}
"""Modality → keyword of the procedure in CID 100; for any other modality, it is just an imaging procedure."""
_UPTAKE_UNITS = {
    "BW": "StandardizedUptakeValueBodyWeight",
    "LBM": "StandardizedUptakeValueLeanBodyMassJames",
    "LBMJAMES128": "StandardizedUptakeValueLeanBodyMassJames128Multiplier",
    "LBMJANMA": "StandardizedUptakeValueLeanBodyMassJanma",
    "BSA": "StandardizedUptakeValueBodySurfaceArea",
    "IBW": "StandardizedUptakeValueIdealBodyWeight",
}
"""SUVType of a PET image → keyword of the unit in CID 85."""


@dataclass(frozen=True, kw_only=True)
class Reported:
    """Content of a report about one mask.

    Attributes:
        measures: Measures of the mask.
        certainty: Probability that the structure is present; ``None`` if it is not known.
    """

    measures: Measures
    certainty: float | None = None


@dataclass(frozen=True)
class _Segment:
    """A segment of a Segmentation, and its measures."""

    file: Any
    described: Any
    reported: Reported


def write_report(path: Path, series: Series, segmentations: Sequence[Path], reported: Sequence[Reported]) -> None:
    """Write the measures of all segments of one or more Segmentations.

    Args:
        path: The ``.dcm`` file to write.
        series: Series that was segmented.
        segmentations: Files from :func:`.segmentation.write_segmentations`, at least one.
        reported: One entry per segment, in the order of the segments.

    Raises:
        UnreadableImageError: The series cannot carry results; see :func:`.source.read_source`.
        EnvironmentProblemError: highdicom is not installed.
    """
    try:
        import highdicom as hd
        from highdicom import sr
    except ImportError as error:
        raise EnvironmentProblemError("a DICOM report needs highdicom: pip install 'satunet[dicom]'") from error
    from pydicom.sr.codedict import codes

    from satunet import __version__

    source = read_source(series)
    segments = _segments(segmentations, reported)
    first = source.images[0]
    procedure = _PROCEDURES.get(str(first.get("Modality")))
    content = sr.MeasurementReport(
        observation_context=_context(),
        procedure_reported=getattr(codes.cid100, procedure) if procedure else codes.cid100.ImagingProcedure,
        imaging_measurements=[_group(segment, first) for segment in segments],
    )
    report = sr.ComprehensiveSR(
        evidence=[*{id(s.file): s.file for s in segments}.values(), *source.images],
        content=content[0],
        series_instance_uid=hd.UID(),
        series_number=2000 + series_number(series),
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="satunet",
        is_complete=True,
    )
    report.SeriesDescription = "satunet measures"
    report.ManufacturerModelName, report.SoftwareVersions, report.DeviceSerialNumber = "satunet", __version__, "0"
    with atomic_path(path) as temporary:
        report.save_as(temporary)


def _segments(files: Sequence[Path], reported: Sequence[Reported]) -> list[_Segment]:
    from pydicom import dcmread

    read = [dcmread(file, stop_before_pixels=True) for file in files]
    described = [(file, one) for file in read for one in file.SegmentSequence if one.SegmentNumber]  # 0 is background
    return [_Segment(file, one, of) for (file, one), of in zip(described, reported, strict=True)]


def _context() -> Any:
    from highdicom import sr
    from pydicom.sr.codedict import codes
    from pydicom.uid import generate_uid

    device = sr.DeviceObserverIdentifyingAttributes(
        uid=generate_uid(entropy_srcs=["satunet"]), name="satunet", manufacturer_name="satunet", model_name="satunet"
    )
    return sr.ObservationContext(
        observer_device_context=sr.ObserverContext(
            observer_type=codes.DCM.Device, observer_identifying_attributes=device
        )
    )


def _group(segment: _Segment, image: Any) -> Any:
    """Template TID 1411: the structure, the segment with its voxels, and its measures."""
    from highdicom import sr
    from pydicom.sr.codedict import codes

    from satunet import __version__

    one = segment.described
    return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=one.TrackingUID, identifier=one.TrackingID),
        referenced_segment=sr.ReferencedSegment(
            sop_class_uid=segment.file.SOPClassUID,
            sop_instance_uid=segment.file.SOPInstanceUID,
            segment_number=one.SegmentNumber,
            source_series=sr.SourceSeriesForSegmentation(image.SeriesInstanceUID),
        ),
        finding_category=_code(one.SegmentedPropertyCategoryCodeSequence),
        finding_type=_code(one.SegmentedPropertyTypeCodeSequence),
        finding_sites=_sites(one),
        algorithm_id=sr.AlgorithmIdentification(
            name="satunet", version=__version__, family=codes.cid7162.ArtificialIntelligence
        ),
        measurements=list(_measurements(segment.reported, image)),
    )


def _code(sequence: Any) -> Any:
    from highdicom.sr import CodedConcept

    code = CodedConcept.from_dataset(sequence[0])
    return CodedConcept(code.value, code.scheme_designator, code.meaning)  # without modifiers


def _sites(segment: Any) -> Any:
    """Site of a segment, with its side: its region, or else the structure itself."""
    from highdicom.sr import FindingSite

    kind = segment.SegmentedPropertyTypeCodeSequence[0]
    region = segment.get("AnatomicRegionSequence")
    side = kind.get("SegmentedPropertyTypeModifierCodeSequence")
    if region:
        side = region[0].get("AnatomicRegionModifierSequence") or side
    category = segment.SegmentedPropertyCategoryCodeSequence[0].CodeValue
    general = kind.CodeValue in (STRUCTURE.value, TISSUE.value)
    if not region and (general or category not in (STRUCTURE.value, TISSUE.value)):
        return None
    place = region or segment.SegmentedPropertyTypeCodeSequence
    return [FindingSite(anatomic_location=_code(place), laterality=_code(side) if side else None)]


def _measurements(reported: Reported, image: Any) -> Iterator[Any]:
    from highdicom.sr import Measurement
    from pydicom.sr.codedict import codes

    measures, ibsi, units = reported.measures, codes.IBSI, codes.UCUM
    for name, value, unit in (
        (ibsi.VolumeFromVoxelSummation, measures.volume_ml, units.CubicCentimeter),
        (ibsi.SurfaceAreaOfMesh, measures.surface_cm2, units.SquareCentimeter),
        (ibsi.MajorAxisIn3DLength, measures.major_axis_mm, units.Millimeter),
        (ibsi.MinorAxisIn3DLength, measures.minor_axis_mm, units.Millimeter),
        (ibsi.LeastAxisIn3DLength, measures.least_axis_mm, units.Millimeter),
    ):
        yield Measurement(name=name, value=round(value, 4), unit=unit)
    intensity = _intensity(image)
    if intensity is not None:
        name, unit = intensity
        for derivation, value in (
            (codes.SCT.Mean, measures.mean),
            (codes.SCT.StandardDeviation, measures.deviation),
        ):
            yield Measurement(name=name, value=round(value, 4), unit=unit, derivation=derivation)
    if reported.certainty is not None:
        yield Measurement(
            name=codes.DCM.CertaintyOfFinding, value=round(100 * reported.certainty, 1), unit=units.Percent
        )


def _intensity(image: Any) -> tuple[Any, Any] | None:
    """Code and unit of an image's values; ``None`` if they have no known meaning."""
    from pydicom.sr.codedict import codes

    modality = str(image.get("Modality"))
    if modality == "CT":
        return codes.DCM.AttenuationCoefficient, codes.UCUM.HounsfieldUnit
    if modality == "MR":
        return codes.DCM.MRSignalIntensity, codes.UCUM.NoUnits
    if modality == "PT":
        units = str(image.get("Units"))
        if units == "BQML":
            return codes.DCM.NuclearMedicineTomographicActivity, codes.UCUM.BecquerelsPerMilliliter
        uptake = _UPTAKE_UNITS.get(str(image.get("SUVType") or "BW"))
        if units == "GML" and uptake is not None:
            return codes.DCM.StandardizedUptakeValue, getattr(codes.UCUM, uptake)
    return None
