"""``satunet evaluate`` and ``satunet benchmark``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import OmitArgPrefixes, arg

from satunet.cli.options import DatasetIds, Device, Output, Processes, Verbose, dataset_names, default_processes
from satunet.evaluation.scoring.rules import Rules

if TYPE_CHECKING:
    from satunet.evaluation.benchmark.competitors import Competitor
    from satunet.labels.scored import ScoredClasses

Scoring = Annotated[Rules, OmitArgPrefixes]
"""The rules of scoring, whose fields are options of the command."""


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Score predictions against references: DSC, NSD, HD95, ASSD, volumes and lesions of every class and case."""

    predictions: Annotated[
        Path, arg(aliases=["-p"], metavar="FOLDER", help="Label maps, or one folder of masks per case.")
    ]
    references: Annotated[
        Path,
        arg(
            aliases=["-r"],
            metavar="FOLDER",
            help="Label maps, such as a dataset's labelsTs, or one folder of masks per case.",
        ),
    ]
    labels: Annotated[
        Path | None,
        arg(
            metavar="FILE",
            help="dataset.json that names the ids; the one beside the references' folder if not given. With a file that lists only some "
            "classes, only these are scored.",
        ),
    ] = None
    prediction_labels: Annotated[
        Path | None,
        arg(
            metavar="FILE",
            help="dataset.json that names the ids of predicted label maps, if they differ from the references'; the one that nnU-Net "
            "writes beside its predictions if not given.",
        ),
    ] = None
    output: Annotated[
        Path | None,
        arg(
            aliases=["-o"],
            metavar="FOLDER",
            help="Folder for the tables; 'scores' in the folder of predictions if not given.",
        ),
    ] = None
    rules: Scoring = field(default_factory=Rules)
    lesions: Annotated[
        tuple[str, ...],
        arg(
            metavar="CLASS",
            help="Classes whose lesions are scored one by one; those with pathological names if not given.",
        ),
    ] = ()
    parquet: Annotated[bool, arg(help="Write per_case.parquet as well; needs pyarrow.")] = False
    processes: Processes = field(default_factory=default_processes)
    verbose: Verbose = False

    def run(self) -> int:
        """Write per_case.csv, per_class.csv and summary.json; a missing prediction counts as a failure."""
        from satunet.errors import UserError
        from satunet.evaluation.report.tables import print_evaluation
        from satunet.evaluation.scoring.run import evaluate_cases, references_in
        from satunet.jobs.progress import setup_logging
        from satunet.labels import normalize_name
        from satunet.labels.scored import classes_of_file

        references = references_in(self.references)
        if not self.predictions.is_dir():  # checked before the log file creates it
            raise UserError(f"{self.predictions}: there is no such folder of predictions")
        output = self.output or self.predictions / "scores"
        setup_logging(output / "evaluate.log", verbose=self.verbose)
        classes = self._classes(references)
        if self.lesions:
            classes = classes.with_lesions([normalize_name(name).canonical for name in self.lesions])
        predicted = self.prediction_labels or self.predictions / "dataset.json"
        own_ids = self.prediction_labels is not None or predicted.is_file()
        evaluation, summary = evaluate_cases(
            references,
            self.predictions,
            classes,
            predicted=classes_of_file(predicted, organs=self.rules.organs) if own_ids else None,
            rules=self.rules,
            processes=min(self.processes, len(references)),
        )
        evaluation.save(output, parquet=self.parquet)
        print_evaluation(evaluation)
        summary.note("mean DSC", f"{evaluation.mean('dsc'):.4f}")
        summary.note(f"mean NSD {self.rules.tolerance_mm:g} mm", f"{evaluation.mean('nsd'):.4f}")
        summary.note("tables", str(output))
        summary.show()
        return summary.exit_code

    def _classes(self, references: Mapping[str, Path]) -> ScoredClasses:
        """The classes that a file or the references' folder lists."""
        from satunet.evaluation.scoring.masks import class_names_in
        from satunet.labels.scored import classes_of_file, classes_of_masks

        beside = self.references.parent / "dataset.json"
        if self.labels is None and all(path.is_dir() for path in references.values()):
            names = (name for folder in references.values() for name in class_names_in(folder))
            return classes_of_masks(names, next(iter(references.values())))
        if self.labels is None:
            return classes_of_file(beside, organs=self.rules.organs)
        listed = classes_of_file(self.labels, organs=self.rules.organs)
        # A file that lists only some classes does not say which id means that nobody labelled a voxel.
        ignore = listed.ignore_id
        if ignore is None and beside.is_file():
            ignore = classes_of_file(beside).ignore_id
        return replace(listed, allowed_ids=None, ignore_id=ignore)


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Compare the unified network with one nnU-Net per dataset: predictions, scores, tables and an HTML report."""

    datasets: DatasetIds
    output: Output
    model: Annotated[
        Path | None,
        arg(aliases=["-m"], metavar="MODEL", help="Model folder or name; the network of dataset 900 if not given."),
    ] = None
    folds: Annotated[
        tuple[str, ...],
        arg(
            name="fold",
            aliases=["-f"],
            help="Folds of the network and of the specialists; the model's only fold if not given.",
        ),
    ] = ()
    specialists: Annotated[bool, arg(help="Predict with the datasets' specialist nnU-Nets as well.")] = False
    competitors: Annotated[
        tuple[str, ...], arg(metavar="NAME=FOLDER", help="Predictions of other methods, in FOLDER/<dataset>.")
    ] = ()
    commands: Annotated[
        tuple[str, ...],
        arg(
            metavar="NAME=COMMAND",
            help="Competitors that predict by a command: {input} is a folder of scans, {output} the folder to write to; {dataset},"
            " {fold} and {classes} (a JSON file) may be used too.",
        ),
    ] = ()
    medsam: Annotated[
        str | None,
        arg(
            metavar="MODEL",
            help="MedSAM, prompted with boxes around the reference: name or folder of a SamModel for transformers, such as "
            "wanglab/medsam-vit-base.",
        ),
    ] = None
    medsam_boxes: Annotated[
        tuple[Literal["tight", "loose", "oracle"], ...],
        arg(help="Boxes for MedSAM; 'oracle' takes the tight box itself as the mask, without a network."),
    ] = ("tight",)
    rules: Scoring = field(default_factory=Rules)
    copy_baseline: Annotated[
        bool,
        arg(help="Also score a copy of the nearest training case's label map: a baseline that a network must beat."),
    ] = False
    correction: Annotated[
        Literal["holm", "bh", "none"], arg(help="How p-values are adjusted for the number of tests.")
    ] = "holm"
    device: Device = "auto"
    processes: Processes = field(default_factory=default_processes)
    verbose: Verbose = False

    def run(self) -> int:
        """Predict, score, compare; finished steps are not repeated."""
        from satunet.cli.environment import quick_check

        quick_check()
        from satunet.datasets.unified import UnifiedFolder
        from satunet.evaluation.benchmark.competitors.unified import UnifiedCompetitor
        from satunet.evaluation.benchmark.run import Contest
        from satunet.evaluation.run import run_benchmark
        from satunet.jobs.progress import setup_logging
        from satunet.models.choice import existing_model

        setup_logging(self.output / "benchmark.log", verbose=self.verbose)
        contest = Contest(
            unified=UnifiedCompetitor(
                model=existing_model(self.model) if self.model is not None else UnifiedFolder().results,
                output=self.output / "predictions",
                device=self.device,
            ),
            others=self._others(),
            output=self.output,
            folds=tuple(int(f) if f.isdigit() else f for f in self.folds) or (None,),
            rules=self.rules,
            correction=self.correction,
            processes=self.processes,
        )
        _, summary = run_benchmark(dataset_names(self.datasets), contest)
        summary.show()
        return summary.exit_code

    def _others(self) -> list[Competitor]:
        """The requested competitors, in the order of the report's columns."""
        from satunet.evaluation.benchmark.competitors.brought import CommandCompetitor, FolderCompetitor
        from satunet.evaluation.benchmark.competitors.medsam import MedSAMCompetitor
        from satunet.evaluation.benchmark.competitors.nearest_copy import NearestCopyCompetitor

        place = self.output / "predictions"
        folders = _named(self.competitors, "--competitors takes NAME=FOLDER")
        commands = _named(self.commands, "--commands takes NAME=COMMAND")
        found: list[Competitor] = []
        if self.specialists:
            # Imported only if needed: nnunetv2's trainer takes seconds to import.
            from satunet.evaluation.benchmark.competitors.specialist import SpecialistCompetitor

            found.append(SpecialistCompetitor(output=place, device=self.device))
        found += [FolderCompetitor(name=name, place=Path(folder)) for name, folder in folders]
        found += [CommandCompetitor(name=name, command=command, output=place) for name, command in commands]
        if self.medsam is not None:
            found += [
                MedSAMCompetitor(output=place, source=self.medsam, boxes=boxes, device=self.device)
                for boxes in dict.fromkeys(self.medsam_boxes)
            ]
        if self.copy_baseline:
            found.append(NearestCopyCompetitor(output=place))
        return found


def _named(texts: Sequence[str], expected: str) -> list[tuple[str, str]]:
    from satunet.errors import UserError

    wrong = [text for text in texts if not text.partition("=")[0] or not text.partition("=")[2]]
    if wrong:
        raise UserError(f"{expected}, got {wrong}")
    return [(name, value) for name, _, value in (text.partition("=") for text in texts)]
