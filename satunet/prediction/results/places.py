"""Paths of a scan's results, and files that results must not replace."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from satunet.errors import UserError
from satunet.jobs.file_names import name_key, unique_names
from satunet.prediction.door.jobs import ScanJob
from satunet.prediction.options import Outputs
from satunet.prompts.matching import PromptMatch

MANIFEST = "manifest.json"
STATISTICS = "statistics.csv"
SUMMARY = "prediction_summary.json"
LOG = "predict.log"
PROBABILITY = "_probability"
INSTANCES = "_instances"
MEASURES = "measures.csv"


def mask_names(matches: Sequence[PromptMatch]) -> list[str]:
    """Names of the masks' files, without endings: unique, even beside the files of probabilities and instances."""
    return unique_names([match.prompt for match in matches], suffixes=("", PROBABILITY, INSTANCES))


def manifest_file(output: Path, name: str, combine: bool) -> Path:
    """Path of a scan's manifest."""
    return output / f"{name}.json" if combine else output / name / MANIFEST


@dataclass(frozen=True, kw_only=True)
class Protected:
    """Files that no output may replace (scans, lists, models), by whatever path they are reached.

    Attributes:
        identities: Device and inode of each file.
    """

    identities: frozenset[tuple[int, int]] = frozenset()

    @classmethod
    def of(cls, files: Iterable[Path]) -> Protected:
        """Protect those files that exist; links count as their targets."""
        return cls(identities=frozenset(i for i in map(_identity, files) if i is not None))

    def check(self, path: Path) -> None:
        """Refuse an output that would replace a protected file.

        Raises:
            UserError: The path leads to a protected file.
        """
        if _identity(path) in self.identities:
            raise UserError(f"{path}: this result would replace an input; give another folder for the results (-o)")

    def check_scan(self, output: Path, job: ScanJob, outputs: Outputs, matches: Sequence[PromptMatch]) -> None:
        """Refuse a scan whose results would replace a protected file, before anything is computed.

        Raises:
            UserError: A result would replace a protected file or be taken for a scan, or has no valid name.
        """
        if Path(job.name).name != job.name or job.name in ("", "..") or "\\" in job.name:
            raise UserError(
                f"{job.scan.path}: {job.name!r} cannot be the name of its results; it must be a single part of a path"
            )
        self.check(manifest_file(output, job.name, outputs.combine))
        if outputs.combine:
            for ending in (
                job.scan.ending,
                "_segmentation.dcm",
                "_structures.dcm",
                "_report.dcm",
                "_preview.png",
                f"_{MEASURES}",
            ):
                self.check(output / f"{job.name}{ending}")
            if job.scan.series is None and job.scan.path.resolve().parent == output.resolve():
                raise UserError(
                    f"{output}: label maps would be written among the scans, and the next run would take them for scans; give "
                    "another folder for the results (-o)"
                )
            return
        folder = output / job.name
        if not folder.is_dir():
            self.check(folder)
            return
        names = {
            name_key(f"{n}{tail}{job.scan.ending}")
            for n in mask_names(matches)
            for tail in ("", PROBABILITY, INSTANCES)
        }
        for file in folder.iterdir():
            if name_key(file.name) in names or file.suffix.lower() in (".dcm", ".png", ".csv"):
                self.check(file)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
