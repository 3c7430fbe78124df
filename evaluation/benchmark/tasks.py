"""The cases and classes of a dataset and fold that a benchmark scores, on the same splits for every competitor."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from satunet.datasets.people import People
from satunet.datasets.raw import Case, Dataset, read_labels, scan_id
from satunet.datasets.unified import UnifiedFolder
from satunet.errors import DatasetError, SatunetError
from satunet.images.content import voxel_digest
from satunet.images.image import read_image
from satunet.jobs.files import read_json
from satunet.jobs.records import MALFORMED
from satunet.labels import LabelSpace
from satunet.labels.scored import Organs, ScoredClasses, classes_of_dataset
from satunet.models.trained_scans import TrainedScans

DATASET_FILE = "dataset.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainedNetwork:
    """Facts about a unified network, whether or not it is in memory.

    Attributes:
        fold: Fold of its training.
        space: Classes it knows.
        dataset_name: Name of the unified dataset, whose split counts.
        trained: Scans that it was trained on, as far as its folder lists them.
        parameters: Number of weights.
        steps: Number of training steps, if its folder records them.
        disk_bytes: Size of its files.
    """

    fold: int | str
    space: LabelSpace
    dataset_name: str
    trained: TrainedScans = field(default_factory=TrainedScans)
    parameters: int | None = None
    steps: int | None = None
    disk_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Task:
    """The cases of a dataset that a fold's networks have not seen.

    Attributes:
        dataset: The dataset.
        fold: Fold that every competitor with folds uses.
        cases: Cases with a reference.
        classes: The classes to score.
        organs: Whether an organ is scored with the lesions in it.
        unknown: Classes of the dataset that the unified network was never taught.
        external: Whether the unified network was not trained on the dataset at all.
        trained_on: Whether the networks were trained on these cases because there are no others.
        left_out: Number of cases that are not scored because the unified network was trained on them.
        patients: Case → patient, for every case of the dataset; a patient in several datasets has one name.
    """

    dataset: Dataset
    fold: int | str
    cases: tuple[Case, ...]
    classes: ScoredClasses
    organs: Organs = "whole"
    unknown: tuple[str, ...] = ()
    external: bool = False
    trained_on: bool = False
    left_out: int = 0
    patients: Mapping[str, str] = field(default_factory=dict)

    @property
    def references(self) -> dict[str, Path]:
        """Case → label map."""
        return {c.identifier: c.label for c in self.cases if c.label is not None}

    @property
    def name(self) -> str:
        """``<dataset>/fold_<fold>``, which is also where its files are."""
        return f"{self.dataset.name}/fold_{self.fold}"

    def scan_name(self, case: str, channel: int) -> str:
        """Name of a scan's prediction."""
        return case if len(self.dataset.channel_names) == 1 else f"{case}_{channel:04d}"

    def patient(self, case: str) -> str:
        """The patient of a case."""
        return self.patients.get(case, f"{self.dataset.name}/{case}")


def make_task(
    dataset: Dataset, network: TrainedNetwork, *, organs: Organs = "whole", people: People | None = None
) -> Task:
    """Make the task for a dataset and fold.

    It has the test cases with a reference or, if there are none, the validation cases of the fold that are not also
    trained on (as they are in a dataset with only one case). If the unified network was not trained on the dataset, or
    its fold is "all", it has the test cases or, if there are none, all cases except those with a scan that the network
    lists as trained on, by name or by content. A network of fold "all" that has seen them all is scored on them.

    Args:
        dataset: The dataset.
        network: The unified network.
        organs: Whether an organ is scored with the lesions in it.
        people: Cases of the same person; by default every case is of a different person.

    Raises:
        DatasetError: There are no cases, or no classes that the network knows.
    """
    external = dataset.name not in network.space.ids
    cases = tuple(c for c in dataset.test_cases() if c.label is not None)
    trained_on, left_out = False, 0
    if not cases:
        every = dataset.training_cases()
        wanted = {c.identifier for c in every} if external else set(_validation_cases(dataset, network))
        cases = tuple(c for c in every if c.identifier in wanted)
        if external or network.fold == "all":
            seen = seen_cases(dataset, cases, network.trained)
            left_out = len(seen) if len(seen) < len(cases) else 0
            trained_on = not external and not left_out and (bool(seen) or not network.trained.known)
            cases = tuple(c for c in cases if not left_out or c.identifier not in seen)
    every_class = classes_of_dataset(dataset, organs=organs, known=network.space)
    classes = every_class.only(network.space.__contains__)
    if not cases:
        raise DatasetError(
            f"{dataset.name}: no test case has a reference, and fold {network.fold} holds out no case of it"
        )
    if not classes.classes:
        raise DatasetError(f"{dataset.name}: the model knows none of its {len(every_class.classes)} classes")
    return Task(
        dataset=dataset,
        fold=network.fold,
        cases=cases,
        classes=classes,
        organs=organs,
        unknown=tuple(name for name in every_class.names if name not in network.space),
        external=external,
        trained_on=trained_on,
        left_out=left_out,
        patients={case: "/".join((people or People()).of(dataset.name, case)) for case in cases_of(dataset)},
    )


def cases_of(dataset: Dataset) -> list[str]:
    """Names of all cases of a dataset, for training and for testing."""
    training = dataset.training_cases() if (dataset.folder / "imagesTr").is_dir() else ()
    return [c.identifier for c in (*training, *dataset.test_cases())]


def predicted_ids(task: Task, predictions: Path) -> ScoredClasses | None:
    """Classes with their ids in predicted label maps, from the ``dataset.json`` that nnU-Net writes beside them.

    ``None`` if there is no such file, or its labels are those of the reference.

    Raises:
        DatasetError: It is malformed.
    """
    file = predictions / DATASET_FILE
    if not file.is_file():
        return None
    labels, ignore = read_labels(file)
    if labels == task.dataset.labels:
        return None
    return classes_of_dataset(replace(task.dataset, labels=labels, ignore_label=ignore), organs=task.organs)


def trained_cases(split: Sequence[Mapping[str, Sequence[str]]], fold: int | str) -> set[str]:
    """Cases that a fold of an nnU-Net was trained on."""
    if fold == "all":
        return {case for part in split for case in (*part["train"], *part["val"])}
    return set(split[int(fold)]["train"])


def scans_of(dataset: Dataset, case: str) -> set[str]:
    """Names of a case's scans, one per channel."""
    return {scan_id(dataset.name, case, channel) for channel in range(len(dataset.channel_names))}


def seen_cases(dataset: Dataset, cases: Iterable[Case], trained: TrainedScans) -> frozenset[str]:
    """Cases with a scan that a network lists as trained on, by name or by content."""
    return frozenset(
        case.identifier
        for case in cases
        if any(scan in trained for scan in scans_of(dataset, case.identifier))
        or (trained.voxels and _shown(case, trained))
    )


def _shown(case: Case, trained: TrainedScans) -> bool:
    """Whether a scan of a case has the same voxels as one that was trained on."""
    for path in case.images:
        try:
            about = path.stat()
            if trained.shows(_voxel_digest(path, about.st_mtime_ns, about.st_size)):
                return True
        except (OSError, SatunetError) as error:  # prediction will fail for it, and be counted then
            logger.warning("%s: it is not known whether it was trained on (%s)", path, error)
    return False


@functools.lru_cache(maxsize=1 << 16)
def _voxel_digest(path: Path, *_: int) -> str:
    """Digest of a scan that has not changed: several folds and competitors ask for it."""
    return voxel_digest(read_image(path))


def _validation_cases(dataset: Dataset, network: TrainedNetwork) -> list[str]:
    fold = network.fold
    if fold == "all":
        return [c.identifier for c in dataset.training_cases()]
    file = UnifiedFolder(name=network.dataset_name).splits
    try:
        folds = read_json(file)
        split = folds[int(fold)] if int(fold) < len(folds) else None
    except (OSError, *MALFORMED) as error:
        raise DatasetError(f"{file}: no validation scans of fold {fold} ({error})") from error
    if split is None:
        raise DatasetError(f"{file}: no validation scans of fold {fold}; it has {len(folds)} folds")
    try:
        scans, trained = set(split["val"]), set(split["train"])
    except (OSError, *MALFORMED) as error:
        raise DatasetError(f"{file}: no validation scans of fold {fold} ({error})") from error
    found = []
    for case in dataset.training_cases():
        own = scans_of(dataset, case.identifier)
        if own & scans and not own & trained:
            found.append(case.identifier)
    return found
