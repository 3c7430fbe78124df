"""``satunet evaluate`` and ``satunet benchmark``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from satunet.cli.options import DatasetIds, Device, Output, Processes, Verbose, dataset_names, default_processes

Tolerance = Annotated[float, arg(help="Tolerance of the normalised surface Dice, in mm.")]
Policy = Annotated[
    Literal["sat", "nnunet"],
    arg(help="Classes absent in reference and prediction: 'sat' scores them 1, 'nnunet' leaves them out."),
]


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Score predictions against references: DSC and NSD of every class and case."""

    predictions: Annotated[Path, arg(aliases=["-p"], metavar="FOLDER", help="Label maps, or a folder of masks a case.")]
    references: Annotated[Path, arg(aliases=["-r"], metavar="FOLDER", help="Label maps, such as a dataset's labelsTs.")]
    labels: Annotated[
        Path | None,
        arg(
            metavar="FILE", help="dataset.json that names the ids; the one beside the references' folder if not given."
        ),
    ] = None
    output: Annotated[
        Path | None,
        arg(aliases=["-o"], metavar="FOLDER", help="For the tables; 'scores' in the predictions if not given."),
    ] = None
    tolerance: Tolerance = 1.0
    policy: Policy = "sat"
    processes: Processes = field(default_factory=default_processes)
    verbose: Verbose = False

    def run(self) -> int:
        """Write per_case.csv, per_class.csv and summary.json; a missing prediction is an error that is counted."""
        from satunet.datasets import Dataset, read_labels
        from satunet.evaluation.evaluate import evaluate_cases, references_in
        from satunet.labels import listed_classes
        from satunet.progress import setup_logging

        references = references_in(self.references)
        output = self.output or self.predictions / "scores"
        setup_logging(output / "evaluate.log", verbose=self.verbose)
        file = self.labels or self.references.parent / "dataset.json"
        labels, ignore = read_labels(file)
        classes = listed_classes(
            Dataset(id=0, name=file.parent.name, folder=file.parent, channel_names=(), modalities=(), labels=labels)
        )
        evaluation, summary = evaluate_cases(
            references,
            self.predictions,
            classes,
            allowed_ids={i for ids in labels.values() for i in ids} | ({ignore} if ignore is not None else set()),
            ignore_id=ignore,
            tolerance_mm=self.tolerance,
            policy=self.policy,
            processes=self.processes,
        )
        evaluation.save(output)
        summary.note("mean DSC", f"{evaluation.mean('dsc'):.4f}")
        summary.note(f"mean NSD {self.tolerance:g} mm", f"{evaluation.mean('nsd'):.4f}")
        summary.note("tables", str(output))
        summary.show()
        return summary.exit_code


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Compare the unified network with one nnU-Net per dataset: predictions, scores, a table and an HTML report."""

    datasets: DatasetIds
    output: Output
    model: Annotated[
        Path | None, arg(aliases=["-m"], metavar="FOLDER", help="Model folder; that of dataset 900 if not given.")
    ] = None
    fold: Annotated[str | None, arg(aliases=["-f"], help="Fold of both sides; the model's only one if not given.")] = (
        None
    )
    specialists: Annotated[bool, arg(help="Predict with the datasets' specialist nnU-Nets as well.")] = False
    competitors: Annotated[
        tuple[str, ...], arg(metavar="NAME=FOLDER", help="Predictions of others, in FOLDER/<dataset>.")
    ] = ()
    tolerance: Tolerance = 1.0
    policy: Policy = "sat"
    device: Device = "auto"
    processes: Processes = field(default_factory=default_processes)
    verbose: Verbose = False

    def run(self) -> int:
        """Predict, score, compare; what is done already is not done again."""
        from satunet.environment import quick_check
        from satunet.errors import UserError

        quick_check()
        from satunet.evaluation.run_benchmark import run_benchmark
        from satunet.progress import setup_logging
        from satunet.trainers.run import model_folder

        wrong = [c for c in self.competitors if "=" not in c]
        if wrong:
            raise UserError(f"--competitors takes NAME=FOLDER, got {wrong}")
        setup_logging(self.output / "benchmark.log", verbose=self.verbose)
        _, summary = run_benchmark(
            dataset_names(self.datasets),
            self.model or model_folder("Dataset900_Unified"),
            self.output,
            fold=self.fold,
            specialists=self.specialists,
            others={name: Path(folder) for name, _, folder in (c.partition("=") for c in self.competitors)},
            device=self.device,
            tolerance_mm=self.tolerance,
            policy=self.policy,
            processes=self.processes,
        )
        summary.show()
        return summary.exit_code
