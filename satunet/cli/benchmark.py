"""``satunet evaluate`` and ``satunet benchmark``."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import arg

from satunet.cli.options import DatasetIds, Device, Output, Processes, Verbose, dataset_names, default_processes

if TYPE_CHECKING:
    from satunet.evaluation.benchmark.competitors import Competitor
    from satunet.evaluation.scoring.rules import Rules

Tolerance = Annotated[float, arg(help="Tolerance of the normalised surface Dice, in mm.")]
Tolerances = Annotated[
    tuple[str, ...], arg(metavar="CLASS=MM", help="Tolerances of single classes that differ, such as aorta=2.")
]
Policy = Annotated[
    Literal["sat", "nnunet", "brats"],
    arg(
        help="Classes absent in reference and prediction: 'sat' scores them 1, 'nnunet' leaves them out; 'brats' is "
        "'sat' with distances of 374 mm for a class absent in one of the two."
    ),
]
Distances = Annotated[bool, arg(help="Leave HD95 and ASSD out: a quarter less time.")]


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Score predictions against references: DSC, NSD, HD95, ASSD, volumes and lesions of every class and case."""

    predictions: Annotated[Path, arg(aliases=["-p"], metavar="FOLDER", help="Label maps, or a folder of masks a case.")]
    references: Annotated[
        Path,
        arg(
            aliases=["-r"],
            metavar="FOLDER",
            help="Label maps, such as a dataset's labelsTs, or a folder of masks a case.",
        ),
    ]
    labels: Annotated[
        Path | None,
        arg(
            metavar="FILE", help="dataset.json that names the ids; the one beside the references' folder if not given."
        ),
    ] = None
    prediction_labels: Annotated[
        Path | None,
        arg(
            metavar="FILE",
            help="dataset.json that names the ids of predicted label maps, where they differ; the one in the folder of "
            "predictions, which nnU-Net leaves there, if not given.",
        ),
    ] = None
    output: Annotated[
        Path | None,
        arg(aliases=["-o"], metavar="FOLDER", help="For the tables; 'scores' in the predictions if not given."),
    ] = None
    tolerance: Tolerance = 1.0
    tolerances: Tolerances = ()
    policy: Policy = "sat"
    lesions: Annotated[
        tuple[str, ...],
        arg(metavar="CLASS", help="Classes whose lesions are counted one by one; those that are pathological by name."),
    ] = ()
    no_distances: Distances = False
    parquet: Annotated[bool, arg(help="Write per_case.parquet as well; needs pyarrow.")] = False
    processes: Processes = field(default_factory=default_processes)
    verbose: Verbose = False

    def run(self) -> int:
        """Write per_case.csv, per_class.csv and summary.json; a missing prediction is an error that is counted."""
        from satunet.errors import UserError
        from satunet.evaluation.report.tables import print_evaluation
        from satunet.evaluation.scoring.classes import classes_in_file, classes_in_folders
        from satunet.evaluation.scoring.run import evaluate_cases, references_in
        from satunet.jobs.progress import setup_logging
        from satunet.labels import normalize_name

        references = references_in(self.references)
        if not self.predictions.is_dir():  # before a log file makes it
            raise UserError(f"{self.predictions}: no such folder of predictions")
        output = self.output or self.predictions / "scores"
        setup_logging(output / "evaluate.log", verbose=self.verbose)
        folders = all(path.is_dir() for path in references.values())
        file = self.labels or self.references.parent / "dataset.json"
        listed = classes_in_folders(references) if folders and self.labels is None else classes_in_file(file)
        predicted = self.prediction_labels or self.predictions / "dataset.json"
        other = classes_in_file(predicted) if self.prediction_labels or predicted.is_file() else None
        lesions = {normalize_name(name).canonical for name in self.lesions} or set(listed.lesions)
        evaluation, summary = evaluate_cases(
            references,
            self.predictions,
            listed.classes,
            prediction_classes=None if other is None else other.classes,
            allowed_ids=listed.allowed_ids,
            ignore_id=listed.ignore_id,
            rules=scoring_rules(self.tolerance, self.tolerances, self.policy, not self.no_distances, lesions),
            processes=min(self.processes, len(references)),
        )
        evaluation.save(output, parquet=self.parquet)
        print_evaluation(evaluation)
        summary.note("mean DSC", f"{evaluation.mean('dsc'):.4f}")
        summary.note(f"mean NSD {self.tolerance:g} mm", f"{evaluation.mean('nsd'):.4f}")
        summary.note("tables", str(output))
        summary.show()
        return summary.exit_code


def scoring_rules(
    tolerance: float, tolerances: Sequence[str], policy: str, distances: bool, lesions: Collection[str]
) -> Rules:
    """Rules from what was typed.

    Raises:
        UserError: A tolerance that is not CLASS=MM, or not a length.
    """
    from satunet.errors import UserError
    from satunet.evaluation.scoring.rules import Rules, absence_policy
    from satunet.labels import normalize_name

    own = {}
    for text in tolerances:
        name, equals, value = text.rpartition("=")
        try:
            own[normalize_name(name).canonical] = float(value)
        except ValueError:
            equals = ""
        if not equals:
            raise UserError(f"--tolerances takes CLASS=MM, such as aorta=2; got {text!r}")
    return Rules(
        tolerance_mm=tolerance,
        tolerances_mm=own,
        policy=absence_policy(policy),
        distances=distances,
        lesions=frozenset(lesions),
    )


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Compare the unified network with one nnU-Net per dataset: predictions, scores, tables and an HTML report."""

    datasets: DatasetIds
    output: Output
    model: Annotated[
        Path | None, arg(aliases=["-m"], metavar="FOLDER", help="Model folder; that of dataset 900 if not given.")
    ] = None
    folds: Annotated[
        tuple[str, ...],
        arg(name="fold", aliases=["-f"], help="Folds of both sides; the model's only one if not given."),
    ] = ()
    specialists: Annotated[bool, arg(help="Predict with the datasets' specialist nnU-Nets as well.")] = False
    competitors: Annotated[
        tuple[str, ...], arg(metavar="NAME=FOLDER", help="Predictions of others, in FOLDER/<dataset>.")
    ] = ()
    commands: Annotated[
        tuple[str, ...],
        arg(
            metavar="NAME=COMMAND",
            help="Competitors that predict by a command: {input} is a folder of scans, {output} where to write; {dataset},"
            " {fold} and {classes} (a JSON file) may be used too.",
        ),
    ] = ()
    medsam: Annotated[
        str | None,
        arg(
            metavar="MODEL",
            help="MedSAM, prompted with boxes of the reference: a SamModel of transformers by name or folder, such as "
            "wanglab/medsam-vit-base.",
        ),
    ] = None
    medsam_boxes: Annotated[
        tuple[Literal["tight", "loose", "oracle"], ...],
        arg(help="Boxes for MedSAM; 'oracle' takes the tight box for the mask, without a network."),
    ] = ("tight",)
    tolerance: Tolerance = 1.0
    tolerances: Tolerances = ()
    policy: Policy = "sat"
    no_distances: Distances = False
    correction: Annotated[
        Literal["holm", "bh", "none"], arg(help="How p-values are adjusted for the number of tests.")
    ] = "holm"
    device: Device = "auto"
    processes: Processes = field(default_factory=default_processes)
    verbose: Verbose = False

    def run(self) -> int:
        """Predict, score, compare; what is done already is not done again."""
        from satunet.cli.environment import quick_check

        quick_check()
        from satunet.datasets.unified import UnifiedFolder
        from satunet.evaluation.benchmark.run import Contest, run_benchmark
        from satunet.jobs.progress import setup_logging

        setup_logging(self.output / "benchmark.log", verbose=self.verbose)
        contest = Contest(
            model=self.model or UnifiedFolder().results,
            output=self.output,
            folds=tuple(int(f) if f.isdigit() else f for f in self.folds) or (None,),
            specialists=self.specialists,
            folders={
                name: Path(folder) for name, folder in _named(self.competitors, "--competitors takes NAME=FOLDER")
            },
            commands=dict(_named(self.commands, "--commands takes NAME=COMMAND")),
            more=self._medsam(),
            rules=scoring_rules(self.tolerance, self.tolerances, self.policy, not self.no_distances, ()),
            correction=self.correction,
            device=self.device,
            processes=self.processes,
        )
        _, summary = run_benchmark(dataset_names(self.datasets), contest)
        summary.show()
        return summary.exit_code

    def _medsam(self) -> list[Competitor]:
        from satunet.evaluation.benchmark.medsam import MedSAMCompetitor

        if self.medsam is None:
            return []
        place = self.output / "predictions"
        return [
            MedSAMCompetitor(output=place, source=self.medsam, boxes=boxes, device=self.device)
            for boxes in dict.fromkeys(self.medsam_boxes)
        ]


def _named(texts: Sequence[str], expected: str) -> list[tuple[str, str]]:
    from satunet.errors import UserError

    wrong = [text for text in texts if not text.partition("=")[0] or not text.partition("=")[2]]
    if wrong:
        raise UserError(f"{expected}, got {wrong}")
    return [(name, value) for name, _, value in (text.partition("=") for text in texts)]
