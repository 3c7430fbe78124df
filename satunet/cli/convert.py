"""``satunet convert``: other layouts → nnU-Net raw datasets."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import arg

from satunet.cli.options import Memory, Processes, Scheduler, Verbose, default_processes

if TYPE_CHECKING:
    from satunet.conversion import SourceDataset

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Make nnU-Net raw datasets from SAT-DS's jsonl files, folders of the Medical Segmentation Decathlon or DICOM
    series.

    Files that need no change are linked. Cases that are converted already and did not change are not converted again.
    """

    input: Annotated[
        tuple[Path, ...],
        arg(aliases=["-i"], metavar="PATH", help="Jsonl files or folders of them, TaskNN_Name folders, DICOM folders."),
    ]
    id: Annotated[
        int | None,
        arg(
            aliases=["-d"],
            help="Number of the dataset; with several inputs, the number for the first one that has none of its own.",
        ),
    ] = None
    name: Annotated[str | None, arg(help="Another name for the dataset, without the number.")] = None
    root: Annotated[
        Path | None,
        arg(metavar="FOLDER", help="Folder that the paths in jsonl files are relative to; searched for if not given."),
    ] = None
    split: Annotated[
        Path | None,
        arg(metavar="PATH", help="SAT-DS's patient split, or a folder with all splits: test patients go to imagesTs."),
    ] = None
    sequences: Annotated[
        Literal["cases", "channels"],
        arg(help="Scans that share a mask become separate cases, as SAT-DS publishes them, or channels of one case."),
    ] = "cases"
    labels: Annotated[
        Path | None, arg(metavar="FOLDER", help="Label maps for DICOM series, <case>.nii.gz, with a dataset.json.")
    ] = None
    link: Annotated[
        Literal["auto", "hard", "symbolic", "copy"], arg(help="How unchanged files get into the dataset.")
    ] = "auto"
    trust_shape: Annotated[
        bool,
        arg(
            help="Treat masks of the same shape as their scan as being on its grid, whatever position their headers give."
        ),
    ] = False
    processes: Processes = field(default_factory=default_processes)
    memory: Memory = None
    scheduler: Scheduler = None
    verbose: Verbose = False

    def run(self) -> int:
        """Convert one input after the other; returns 1 if some cases could not be converted."""
        from satunet.conversion import convert
        from satunet.datasets.paths import raw_dir
        from satunet.errors import UserError
        from satunet.jobs.progress import JobSummary, setup_logging
        from satunet.jobs.workers import Workers

        setup_logging(raw_dir() / ".conversion.log", verbose=self.verbose)
        workers = Workers(processes=self.processes, memory_gb=self.memory, scheduler=self.scheduler)
        inputs = _inputs(self.input)
        if self.name is not None and len(inputs) > 1:
            raise UserError(f"--name is for a single input, got {len(inputs)}")
        code = 0
        numbers = itertools.count(self.id) if self.id is not None else None
        for path in inputs:
            try:
                source = self._source(path, numbers, alone=len(inputs) == 1)
                summary = convert(source, link=self.link, trust_shape=self.trust_shape, processes=workers)
            except UserError as error:
                if len(inputs) == 1:
                    raise
                summary = JobSummary(f"conversion of {path}")
                summary.failed(str(path), error)
            summary.show()
            code = max(code, summary.exit_code)
        return code

    def _source(self, path: Path, numbers: Iterator[int] | None, *, alone: bool) -> SourceDataset:
        """The input as a dataset; if there are several, those without a number of their own get the next free one."""
        from satunet.conversion import NumberNeededError

        if numbers is None or alone:
            return self._read(path, self.id)
        try:
            return self._read(path, None)
        except NumberNeededError:
            return self._read(path, next(numbers))

    def _read(self, path: Path, dataset_id: int | None) -> SourceDataset:
        from satunet.conversion import is_msd, read_dicom, read_msd, read_sat_ds

        if path.suffix == ".jsonl":
            return read_sat_ds(
                path, root=self.root, split=self.split, sequences=self.sequences, dataset_id=dataset_id, name=self.name
            )
        if is_msd(path):
            return read_msd(path, dataset_id=dataset_id, name=self.name)
        return read_dicom(path, dataset_id=dataset_id, name=self.name, labels=self.labels)


def _inputs(paths: tuple[Path, ...]) -> list[Path]:
    """The inputs one by one: a folder of jsonl files, or of the Decathlon's tasks, stands for what is in it."""
    from satunet.errors import UserError

    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: no such file or folder")
        inside = sorted(path.glob("*.jsonl")) if path.is_dir() else []
        if path.is_dir() and not inside and not (path / "dataset.json").is_file():
            inside = sorted(p for p in path.glob("Task*_*") if (p / "dataset.json").is_file())
        found += inside or [path]
    return found
