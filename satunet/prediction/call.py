"""One call of prediction: what all of its scans share, and the way of a scan from a job to its results.

Before anything is computed, a call that cannot succeed is refused (:meth:`Call.begin`). A scan is then prepared
(:meth:`Call.prepare`), which finds out whether it is done already, and its results are written with a stamp of
everything that they depend on (:meth:`Call.combined`). :mod:`satunet.prediction.folder` says when each of this happens.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from satunet import __version__
from satunet.errors import UserError
from satunet.jobs.file_names import name_key
from satunet.jobs.fresh import FileState, Stamp
from satunet.jobs.records import to_plain
from satunet.jobs.wording import counted
from satunet.prediction.door.inputs import Scan
from satunet.prediction.door.jobs import ScanJob, Vocabulary
from satunet.prediction.door.limits import require_memory, require_writable
from satunet.prediction.door.modality import INTENSITIES
from satunet.prediction.door.worthwhile import told
from satunet.prediction.masks.found import Found, PreparedScan, Weighed
from satunet.prediction.options import PredictOptions
from satunet.prediction.predictor import Predictor
from satunet.prediction.results.manifests import MANIFEST_VERSION, why_not_done
from satunet.prediction.results.outputs import ScanResult
from satunet.prediction.results.places import STATISTICS, SUMMARY, Protected
from satunet.prompts.matching import PromptMatch

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Call:
    """Everything that all scans of a call share.

    Attributes:
        output: Folder for the results.
        predictor: Predictor with its models and options.
        protected: Files that no result may replace.
        memory: Scans that earlier calls prepared, if there may be several calls for one scan.
    """

    output: Path
    predictor: Predictor
    protected: Protected
    memory: ScanMemory | None = None

    @classmethod
    def begin(
        cls,
        jobs: Sequence[ScanJob],
        output: Path,
        predictor: Predictor,
        *,
        inputs: Iterable[Path] = (),
        memory: ScanMemory | None = None,
    ) -> Call:
        """Refuse calls that cannot succeed, before anything is computed.

        Raises:
            UserError: A result would replace an input, or the folder cannot be written to.
        """
        folders = [model.path for model in predictor.models]
        protected = protect(jobs, output, predictor.options, predictor.vocabulary, [*inputs, *folders])
        require_writable(output)
        return cls(output=output, predictor=predictor, protected=protected, memory=memory)

    def prepare(self, job: ScanJob) -> Prepared | None:
        """Read and preprocess a scan; ``None`` if it is done."""
        predictor = self.predictor
        combined = self.combined(job)
        reason = why_not_done(self.output, job, predictor.options.outputs, combined)
        if reason is None and not predictor.options.overwrite:
            return None
        logger.debug("%s: %s", job.name, reason or "done already, but predicted again as asked")
        outputs = predictor.options.outputs
        if job.scan.series is not None and outputs.dicom:
            from satunet.prediction.dicom_objects.source import read_source

            read_source(job.scan.series)  # refuses a series that cannot carry results before any work
        known = None if self.memory is None else self.memory.get(job.scan)
        before, files = known or (None, ())
        if before is None:
            require_memory(job.scan, [model.plan for model in predictor.models])
        stamp = Stamp.of(() if before else job.scan.files, combined)
        stamp = replace(stamp, files=files) if before else stamp  # of a known scan, no file is read again
        image = job.scan.read() if before is None else before.image
        job = job.settled(predictor.vocabulary, image)
        assert job.modality is not None and job.matches is not None  # settled
        scan = predictor.prepare(image, job.modality, job.matches, before=before)
        if self.memory is not None:
            self.memory.put(job.scan, scan, stamp.files)
        return Prepared(job=job, scan=scan, stamp=stamp)

    def result_of(self, prepared: Prepared) -> ScanResult:
        """The writer of a scan's results."""
        job, options = prepared.job, self.predictor.options
        how = job.modality_from
        how = f"a guess from its {how}; --modality decides" if how == INTENSITIES else how
        logger.info("%s: taken as %s (%s), %s", job.name, job.modality, how, counted(len(job.matches or ()), "prompt"))
        if job.not_looked_for:
            logger.info("%s: %s", job.name, told(job.not_looked_for))
        guesses = [m.class_name for m in job.matches or () if m.note.endswith("is a guess")]
        if guesses:
            shown = ", ".join(map(str, guesses[:5])) + (f" and {len(guesses) - 5} more" if len(guesses) > 5 else "")
            logger.warning(
                "%s: the model never learned %s from %s scans; their masks are guesses", job.name, shown, job.modality
            )
        manifest = {
            "version": MANIFEST_VERSION,
            "scan": job.name,
            "source": str(job.scan.path),
            "modality": job.modality,
            "modality_from": job.modality_from,
            "requested": None if job.requested is None else list(job.requested),
            "not_looked_for": list(job.not_looked_for),
            "model": [str(model.path) for model in self.predictor.models],
            "weights": "+".join(model.weights_hash for model in self.predictor.models),
            "options": asdict(options),
            "stamp": to_plain(prepared.stamp),
        }
        return ScanResult(
            output=self.output,
            job=job,
            scan=prepared.scan,
            outputs=options.outputs,
            manifest=manifest,
            wholes=self.wholes,
            protected=self.protected,
            space=self.predictor.vocabulary.space,
        )

    def write(self, result: ScanResult, position: int, found: Found) -> Weighed:
        """Restore and write one mask."""
        weighed = self.predictor.weigh(found, result.scan)
        result.write_mask(position, weighed.mask, found)
        return weighed

    def combined(self, job: ScanJob) -> dict[str, Any]:
        """Everything besides the scan on which its result depends."""
        options = self.predictor.options
        return {
            "models": [model.identity for model in self.predictor.models],
            "prompts": None if job.requested is None else list(job.requested),
            "modality": job.modality,
            "overlap": options.window_overlap,
            "mirror": options.mirror,
            "max_absent": options.max_absent,
            "min_confidence": options.min_confidence,
            "repair": options.repair,
            "postprocessing": asdict(options.postprocessing),
            "outputs": asdict(options.outputs),
            "version": __version__,
        }

    @cached_property
    def wholes(self) -> dict[str, frozenset[str]]:
        """Class → classes that it is part of; needed only for combined label maps."""
        return dict(self.predictor.anatomy.wholes) if self.predictor.options.outputs.combine else {}


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A job that is ready for the network.

    Attributes:
        job: Job with everything decided.
        scan: Preprocessed scan.
        stamp: Stamp of what the results are made from.
    """

    job: ScanJob
    scan: PreparedScan
    stamp: Stamp


class ScanMemory(Protocol):
    """Memory of prepared scans that are asked for repeatedly."""

    def get(self, scan: Scan) -> tuple[PreparedScan, tuple[FileState, ...]] | None:
        """The prepared scan and the state of its files, if they did not change since."""
        ...

    def put(self, scan: Scan, prepared: PreparedScan, files: tuple[FileState, ...]) -> None:
        """Remember both."""
        ...


def protect(
    jobs: Sequence[ScanJob], output: Path, options: PredictOptions, vocabulary: Vocabulary, inputs: Iterable[Path]
) -> Protected:
    """The files that the results of jobs must not replace: their scans, and other inputs.

    Raises:
        UserError: They would.
    """
    besides = [file for given in inputs for file in ([given] if not given.is_dir() else given.rglob("*"))]
    protected = Protected.of([*(file for job in jobs for file in job.scan.files), *besides])
    keys = Counter(name_key(job.name) for job in jobs)
    if twice := [job.name for job in jobs if keys[name_key(job.name)] > 1]:
        raise UserError(f"{len(twice)} scans would have results with the same name, such as {twice[0]!r}")
    every = [PromptMatch(prompt=n, class_name=n, status="known") for n in vocabulary.space.class_names]
    for job in jobs:
        protected.check_scan(output, job, options.outputs, every if job.matches is None else job.matches)
    for name in (SUMMARY, STATISTICS):
        protected.check(output / name)
    return protected
