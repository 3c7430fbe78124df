"""A stage for benchmarks: datasets, and stand-ins for the networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from satunet.datasets.raw import load_dataset
from satunet.errors import ModelError
from satunet.evaluation.benchmark.competitors import Competitor
from satunet.evaluation.benchmark.competitors.specialist import SpecialistCompetitor
from satunet.evaluation.benchmark.competitors.unified import UnifiedCompetitor
from satunet.evaluation.benchmark.conclusions.results import BenchmarkTables, DatasetResults
from satunet.evaluation.benchmark.run import Contest
from satunet.evaluation.benchmark.tasks import TrainedNetwork
from satunet.evaluation.run import run_benchmark
from satunet.evaluation.scoring.scores import Evaluation
from satunet.geometry import Grid
from satunet.images.image import read_label_map, write_label_map, write_volume
from satunet.jobs.files import mask_file_name, write_json
from satunet.jobs.progress import JobSummary
from satunet.labels import LabelSpace, build_label_space
from satunet.labels.scored import ScoredClass, ScoredClasses

GRID = Grid(shape=(12, 10, 8), affine=np.diag([1.0, 1.0, 2.0, 1.0]))
NAMES = ("Dataset001_A", "Dataset002_B", "Dataset003_C")


def scored(
    classes: Mapping[str, Sequence[int]], *, lesions: Sequence[str] = (), ignore_id: int | None = None
) -> ScoredClasses:
    """Classes to score; a class includes those whose ids are all its own."""
    found = tuple(
        ScoredClass(
            name=name,
            ids=tuple(ids),
            lesion=name in lesions,
            includes=tuple(n for n, other in classes.items() if set(other) < set(ids)),
        )
        for name, ids in classes.items()
    )
    allowed = {i for ids in classes.values() for i in ids} | ({ignore_id} if ignore_id is not None else set())
    return ScoredClasses(classes=found, allowed_ids=frozenset(allowed), ignore_id=ignore_id)


def in_datasets(
    results: Mapping[str, Mapping[str, Evaluation]],
    *,
    external: Sequence[str] = (),
    modalities: Mapping[str, str] | None = None,
    patients: Mapping[str, str] | None = None,
) -> dict[str, DatasetResults]:
    """Dataset → competitor → evaluation, as a benchmark hands it on."""
    return {
        name: DatasetResults(
            evaluations=by,
            external=name in external,
            modality=(modalities or {}).get(name, ""),
            patients=patients or {},
        )
        for name, by in results.items()
    }


def make_dataset(folder: Path, *, test_cases: bool) -> None:
    labels = {"background": 0, "liver": 1, "liver tumour": 2}
    write_json(folder / "dataset.json", {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 3,
                                         "file_ending": ".nii.gz"})  # fmt: skip
    array = np.zeros(GRID.shape, dtype=np.uint8)
    array[2:9, 2:8, 1:7], array[4:6, 4:6, 3:5] = 1, 2
    for images, references, cases in (("imagesTr", "labelsTr", "abc"), ("imagesTs", "labelsTs", "xyz")):
        for case in cases if test_cases or images == "imagesTr" else "":
            write_volume(folder / images / f"{case}_0000.nii.gz", array.astype(np.float32) * 50, like=GRID)
            write_label_map(folder / references / f"{case}.nii.gz", array, like=GRID)


def references_of(images: Sequence[Path]) -> list[tuple[str, Any]]:
    """Case and reference of each scan."""
    found = []
    for path in images:
        case, folder = path.name.split("_0000")[0], path.parent.parent
        labels = "labelsTs" if path.parent.name == "imagesTs" else "labelsTr"
        found.append((case, read_label_map(folder / labels / f"{case}.nii.gz").array))
    return found


@dataclass(kw_only=True)
class Stage:
    """Where a benchmark plays.

    Attributes:
        root: Parent of nnU-Net's folders.
        space: Classes of the unified network.
        fold: Fold that the stand-in for the unified network is of, if none is asked for.
        calls: Dataset and prompts of every folder that the unified network was asked to predict.
        loaded: Folds that were loaded.
        predict_scans: Stands in for the prediction of a folder.
        predict_cases: Stands in for nnunetv2's.
    """

    root: Path
    space: LabelSpace
    fold: int | str = 0
    calls: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    loaded: list[Any] = field(default_factory=list)
    predict_scans: Callable[..., JobSummary] = field(init=False)
    predict_cases: Callable[..., dict[str, str]] = field(init=False)

    def __post_init__(self) -> None:
        self.predict_scans, self.predict_cases = self.right_scans, self.moved_cases

    @property
    def model(self) -> Path:
        """Folder of the unified network."""
        return self.root / "results"

    def load(self, model: Path, fold: int | str | None, device: str) -> Any:
        """A predictor of a tiny network."""
        self.loaded.append(fold)
        return SimpleNamespace(
            model=SimpleNamespace(
                space=self.space,
                fold=self.fold if fold is None else fold,
                path=model,
                checkpoint="checkpoint_final.pth",
                network=torch.nn.Linear(3, 2),
                plan=SimpleNamespace(dataset_name="Dataset900_Unified"),
            )
        )

    def right_scans(self, jobs: Sequence[Any], output: Path, predictor: Any, prompts: Sequence[str]) -> JobSummary:
        """Masks that are right, of every scan but ``z``."""
        dataset = output.parent.name
        self.calls.append((dataset, tuple(prompts)))
        assert {job.modality for job in jobs} == {"ct"}
        summary = JobSummary("prediction")
        for case, labels in references_of([job.path for job in jobs]):
            if case == "z":
                summary.failures["z"] = "out of memory"
                continue
            if (output / case / "manifest.json").is_file():
                summary.skipped(case)
                continue
            summary.done(case)
            for name in prompts:
                ids = self.space.ids_of(dataset if dataset in self.space.ids else NAMES[0], name)
                write_label_map(output / case / f"{mask_file_name(name)}.nii.gz", np.isin(labels, ids), like=GRID)
            write_json(output / case / "manifest.json", {"seconds": 2.0, "prompts": []})
        return summary

    @staticmethod
    def moved_cases(
        name: str, cases: Sequence[tuple[str, Sequence[Path]]], output: Path, *, while_predicting: Any, **_: Any
    ) -> dict[str, str]:
        """Label maps that are moved by a voxel; the last dataset's network is not trained."""
        if name == NAMES[2]:
            raise ModelError("not trained")
        with while_predicting:
            for case, labels in references_of([images[0] for _, images in cases]):
                if not (output / f"{case}.nii.gz").is_file():
                    write_label_map(output / f"{case}.nii.gz", np.roll(labels, 1, axis=0), like=GRID)
        return {}

    def unified(self, **options: Any) -> UnifiedCompetitor:
        """The unified network."""
        return UnifiedCompetitor(
            model=self.model,
            output=self.root / "bench" / "predictions",
            device="cpu",
            load=self.load,
            predict_scans=lambda *arguments: self.predict_scans(*arguments),
            **options,
        )

    def specialist(self) -> SpecialistCompetitor:
        """The specialists."""
        return SpecialistCompetitor(
            output=self.root / "bench" / "predictions",
            device="cpu",
            predict_cases=lambda *arguments, **options: self.predict_cases(*arguments, **options),
        )

    def contest(self, *others: Competitor, **options: Any) -> Contest:
        """A contest of the unified network with others."""
        options.setdefault("unified", self.unified())
        return Contest(others=others, output=self.root / "bench", **options)

    def run(
        self, names: Sequence[str], *others: Competitor, pictures: bool = False, **options: Any
    ) -> tuple[BenchmarkTables, JobSummary]:
        """A benchmark, without what takes most of the time and is tested elsewhere."""
        return run_benchmark(names, self.contest(*others, **options), pictures=pictures)

    def network(self, **options: Any) -> TrainedNetwork:
        """What is known of the unified network."""
        return TrainedNetwork(fold=0, space=self.space, dataset_name="Dataset900_Unified", **options)


@pytest.fixture
def stage(nnunet_env: Path) -> Stage:
    """Two datasets with test cases, one without; a unified network that is right and a specialist that is not."""
    for name in NAMES:
        make_dataset(nnunet_env / "raw" / name, test_cases=name != NAMES[1])
    scans = {"train": [], "val": [f"{NAMES[1]}__b__0000"]}
    write_json(nnunet_env / "preprocessed" / "Dataset900_Unified" / "splits_final.json", [scans])
    return Stage(root=nnunet_env, space=build_label_space([load_dataset(n) for n in NAMES]))
