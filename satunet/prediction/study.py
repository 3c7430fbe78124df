"""Studies in a DICOM archive: their series become scans, and the results are stored in the archive."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from satunet.errors import SatunetError, UserError

if TYPE_CHECKING:  # the options are part of the command line, which imports nothing heavy
    from satunet.images.dicom import Series
    from satunet.images.dicom.web import Archive
    from satunet.jobs.progress import JobSummary
    from satunet.prediction.door.inputs import Scan

logger = logging.getLogger(__name__)

FETCHED = "dicom"
"""Sub-folder of the results in which fetched series are kept, so that a second run fetches only what is missing."""


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """Studies in a DICOM archive to segment.

    Attributes:
        dicomweb: Address of an archive's DICOMweb services, instead of -i (extra: dicomweb). Credentials are read from
            the environment: DICOMWEB_USER and DICOMWEB_PASSWORD, or DICOMWEB_TOKEN.
        study: StudyInstanceUIDs of the studies whose CT, MR, PET and ultrasound volumes are segmented.
        series: SeriesInstanceUIDs of the series to segment, if not all volumes of the studies.
        keep_local: Store nothing in the archive; results stay in the output folder.
    """

    dicomweb: Annotated[str | None, arg(metavar="URL")] = None
    study: Annotated[tuple[str, ...], arg(metavar="UID")] = ()
    series: Annotated[tuple[str, ...], arg(metavar="UID")] = ()
    keep_local: bool = False

    def __post_init__(self) -> None:
        if self.dicomweb is None and (self.study or self.series or self.keep_local):
            raise UserError("--study, --series and --keep_local need --dicomweb URL")
        if self.dicomweb is not None and not self.study:
            raise UserError("--dicomweb needs --study UID, the study in the archive to segment")


def fetch_scans(archive: Archive, options: StudyOptions, folder: Path) -> list[Scan]:
    """Fetch studies into a folder and return their scans.

    Args:
        archive: Archive with the studies.
        options: Studies to fetch.
        folder: Folder for the series: ``STUDY/SERIES/INSTANCE.dcm``.

    Returns:
        One scan per volume, named by series number and description; a series that could not be fetched becomes a scan
        that fails.

    Raises:
        ArchiveError: There is no such study, or the archive does not answer.
        UserError: The studies contain no volume, or not a requested series.
    """
    from satunet.jobs.file_names import unique_names
    from satunet.jobs.progress import progress_bar
    from satunet.prediction.door.inputs import OUR_FILES, Scan

    stored = [series for study in dict.fromkeys(options.study) for series in archive.series(study)]
    unknown = set(options.series) - {series.uid for series in stored}
    if unknown:
        raise UserError(f"the studies do not have series {', '.join(sorted(unknown))}")
    wanted = [s for s in stored if (s.uid in options.series if options.series else s.is_scan)]
    found: list[tuple[str, Path, Series]] = []
    with progress_bar("Fetching", len(wanted)) as advance:
        for one in wanted:
            own = folder / one.study / one.uid
            found += [(one.study, own, series) for series in archive.fetch(one, own)]
            advance(note=one.uid)
    if not found:
        others = ", ".join(sorted({s.modality or "unknown" for s in stored}))
        raise UserError(f"no volumes to segment: the studies have {len(stored)} series, of modality {others}")
    several = len(set(options.study)) > 1
    names = [f"{study}_{_name(series)}" if several else _name(series) for study, _, series in found]
    names = [n if names.count(n) == 1 else f"{n}_{series.uid}" for n, (_, _, series) in zip(names, found, strict=True)]
    return [
        Scan(path=own, name=name, modality=series.modality if series.modality != "other" else None, series=series)
        for name, (_, own, series) in zip(unique_names(names, taken=(*OUR_FILES, FETCHED)), found, strict=True)
    ]


def store_results(archive: Archive, output: Path, names: Iterable[str], combine: bool, summary: JobSummary) -> None:
    """Store the DICOM objects of scans in the archive; if an object is refused, its scan counts as failed.

    Args:
        archive: Archive to store the objects in.
        output: Folder of the results.
        names: Names of scans with results.
        combine: Whether results are combined label maps.
        summary: Summary to which failures and the number of stored objects are added.
    """
    from satunet.prediction.results.manifests import files_of
    from satunet.prediction.results.places import SUMMARY, manifest_file

    stored = 0
    for name in names:
        try:
            for file in files_of(manifest_file(output, name, combine)):
                if file.suffix == ".dcm":
                    archive.store(file)
                    stored += 1
        except (SatunetError, OSError) as error:
            summary.failed(name, error)
    summary.note("stored", f"{stored} objects in {archive.address}")
    summary.save(output / SUMMARY)


def _name(series: Series) -> str:
    return "_".join(part for part in (series.number, series.description) if part) or series.uid
