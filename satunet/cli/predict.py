"""``satunet predict``: masks of prompts for files and folders of scans."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import OmitArgPrefixes, arg

from satunet.cli.options import Output, Scheduler, Verbose
from satunet.jobs.wording import counted
from satunet.models.choice import ModelChoice
from satunet.prediction.options import PredictOptions
from satunet.prediction.study import StudyOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from satunet.images.dicom.web import Archive
    from satunet.prediction.door.inputs import Scan
    from satunet.prediction.door.jobs import ScanJob
    from satunet.prediction.predictor import Predictor

_ROWS_SHOWN = 40


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Segment scans by text prompts: one mask per prompt, in each scan's own grid, affine and format."""

    input: Annotated[
        tuple[Path, ...],
        arg(aliases=["-i"], metavar="PATH", help="Scans, or folders of scans (NIfTI, NRRD, MHA, MHD) or DICOM series."),
    ] = ()
    pairs: Annotated[
        Path | None,
        arg(metavar="FILE", help='JSON list or JSON lines of {"image": …, "prompts": […]}, instead of -i and -p.'),
    ] = None
    archive: OmitArgPrefixes[StudyOptions] = field(default_factory=StudyOptions)
    output: Output
    prompts: Annotated[
        tuple[str, ...],
        arg(aliases=["-p"], metavar="TEXT", help='Prompts: what to segment, such as "liver" "left kidney".'),
    ] = ()
    prompt_file: Annotated[Path | None, arg(metavar="FILE", help="Text file with one prompt per line.")] = None
    all: Annotated[
        bool,
        arg(
            help="Segment every class that the model knows in the scan's modality and that is worth looking for in a scan of its size."
        ),
    ] = False
    models: OmitArgPrefixes[ModelChoice] = field(default_factory=ModelChoice)
    prediction: OmitArgPrefixes[PredictOptions] = field(default_factory=PredictOptions)
    statistics: Annotated[bool, arg(help="Write statistics.csv: voxels, volume and intensity of every mask.")] = False
    dry_run: Annotated[bool, arg(help="Only show scans, modalities, prompts and windows; nothing is written.")] = False
    scheduler: Scheduler = None
    verbose: Verbose = False

    def run(self) -> int:
        """Predict; a scan that cannot be used is counted, and the others continue."""
        from satunet.cli.environment import quick_check

        quick_check()
        self._check_call()
        if self.archive.dicomweb is None:
            return self._predict(self._scans(), self.prediction)
        return self._predict_studies(self.archive.dicomweb)

    def _predict_studies(self, address: str) -> int:
        """Fetch studies, predict them, store the results."""
        import tempfile
        from contextlib import ExitStack

        from satunet.images.dicom.web import Archive
        from satunet.prediction.study import FETCHED, fetch_scans

        archive = Archive(address)
        outputs = replace(self.prediction.outputs, dicom_seg=True, rtstruct=True)
        with ExitStack() as stack:
            folder = self.output / FETCHED
            if self.dry_run:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="satunet-study-")))
            scans = fetch_scans(archive, self.archive, folder)
            return self._predict(
                scans,
                replace(self.prediction, outputs=outputs),
                None if self.archive.keep_local else archive,
            )

    def _predict(self, scans: list[Scan], prediction: PredictOptions, archive: Archive | None = None) -> int:
        # A wrong call should fail before anything heavy is loaded, and a wrong prompt before the weights are loaded.
        from satunet.prediction.door.jobs import Vocabulary, resolve

        vocabulary = Vocabulary.of(self.models.describe())
        if not self.dry_run:
            from satunet.jobs.progress import setup_logging
            from satunet.prediction.door.limits import require_writable
            from satunet.prediction.results.places import LOG

            require_writable(self.output)
            setup_logging(self.output / LOG, verbose=self.verbose)
        jobs = resolve(scans, self._prompts(), vocabulary, prediction)
        if self.dry_run:
            return _show(self._predictor(prediction), jobs)
        lists = [file for file in (self.pairs, self.prompt_file) if file is not None]
        if self.scheduler is not None:
            from satunet.prediction.cluster import predict_on_cluster

            summary = predict_on_cluster(
                jobs, self.output, self.models, prediction, scheduler=self.scheduler, inputs=lists
            )
        else:
            from satunet.prediction.folder import predict_jobs

            summary = predict_jobs(jobs, self.output, self._predictor(prediction), inputs=lists)
        names, combine = [job.name for job in jobs], prediction.outputs.combine
        if archive is not None:
            from satunet.prediction.study import store_results

            there = set(summary.done_items) | set(summary.skipped_items)
            store_results(archive, self.output, [name for name in names if name in there], combine, summary)
        if self.statistics:
            from satunet.prediction.results.manifests import write_statistics

            summary.note("statistics", str(write_statistics(self.output, names, combine)))
        summary.show()
        _show_results(self.output, names, combine)
        return summary.exit_code

    def _check_call(self) -> None:
        from satunet.errors import PromptError, UserError

        if sum((bool(self.input), self.pairs is not None, self.archive.dicomweb is not None)) != 1:
            raise UserError("say which scans with one of: -i PATH …, --pairs FILE, --dicomweb URL --study UID")
        given = sum((bool(self.prompts), self.prompt_file is not None, self.all, self.pairs is not None))
        if given != 1:
            raise PromptError('say what to segment with one of: -p "liver" …, --prompt_file FILE, --all, --pairs FILE')

    def _scans(self) -> list[Scan]:
        from satunet.prediction.door.inputs import collect_scans, read_pairs

        return read_pairs(self.pairs) if self.pairs is not None else collect_scans(self.input)

    def _prompts(self) -> tuple[str, ...] | None:
        from satunet.prediction.door.inputs import read_prompts

        if self.prompt_file is not None:
            return read_prompts(self.prompt_file)
        return self.prompts or None

    def _predictor(self, prediction: PredictOptions) -> Predictor:
        from satunet.prediction.predictor import Predictor

        return Predictor(self.models.load(), prediction)


def _show_results(output: Path, names: Sequence[str], combine: bool) -> None:
    """Print what was found as a table, which is cut off after its first rows if there are many."""
    import sys

    from satunet.cli.printing import print_rows
    from satunet.prediction.results.manifests import result_rows

    rows = result_rows(output, names, combine)
    if rows:
        print_rows(rows[:_ROWS_SHOWN], "What was found")
    if len(rows) > _ROWS_SHOWN:
        sys.stdout.write(f"and {len(rows) - _ROWS_SHOWN} more; --statistics writes all of them to a table\n")


def _show(predictor: Predictor, jobs: Sequence[ScanJob]) -> int:
    """Print what would be done; returns 1 if a scan cannot be used."""
    from satunet.cli.printing import print_rows
    from satunet.prediction.door.limits import require_memory
    from satunet.prediction.door.worthwhile import told

    rows: list[dict[str, object]] = []
    wrong = False
    for job in jobs:
        row: dict[str, object] = {"scan": job.name}
        try:
            require_memory(job.scan, [model.plan for model in predictor.models])
            image = job.scan.read()
            job = job.settled(predictor.vocabulary, image)
            matches = job.matches or ()
            scan = predictor.prepare(image, job.modality or "other", matches)
            row |= {
                "modality": f"{job.modality} ({job.modality_from})",
                "shape": image.grid.shape,
                "spacing": [round(v, 2) for v in image.grid.spacing_mm],
                "windows": predictor.windows(scan, matches),
                "prompts": len(matches),
            }
            if job.not_looked_for:
                row["note"] = told(job.not_looked_for)
        except Exception as error:
            row["problem"] = str(error)
            wrong = True
        rows.append(row)
    print_rows(rows, f"{counted(len(rows), 'scan')}, windows of {predictor.model.plan.patch_size}")
    asked = {m.prompt: m for job in jobs for m in job.matches or ()}
    if asked:
        print_rows(
            [
                {
                    "prompt": m.expanded_from or m.prompt,
                    "class": m.class_name or "",
                    "status": m.status,
                    "nearest": [n for n, _ in m.nearest],
                    "note": m.note,
                }
                for m in asked.values()
            ],
            "Prompts",
        )
    return 1 if wrong else 0
