"""What a benchmark scores: the cases and classes of a dataset and fold, on the same splits for everybody."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from satunet.datasets.catalogue import load_catalogue
from satunet.datasets.raw import Case, Dataset, read_labels, scan_id
from satunet.datasets.unified import UnifiedFolder
from satunet.errors import DatasetError
from satunet.jobs.files import read_json
from satunet.labels import LabelSpace, build_label_space
from satunet.labels.build import catalogue_record

DATASET_FILE = "dataset.json"


@dataclass(frozen=True, kw_only=True)
class Task:
    """The cases of a dataset that a fold's networks have not seen.

    Attributes:
        dataset: The dataset.
        fold: Fold of every competitor that has folds.
        cases: Cases with a reference.
        classes: Class → ids.
        lesions: Classes that are pathological.
        unknown: Classes of the dataset that the unified network was never taught.
        external: Whether the unified network was not trained on the dataset at all.
        trained_on: Whether the cases were trained on, for want of others.
    """

    dataset: Dataset
    fold: int | str
    cases: tuple[Case, ...]
    classes: dict[str, tuple[int, ...]]
    lesions: frozenset[str] = frozenset()
    unknown: tuple[str, ...] = ()
    external: bool = False
    trained_on: bool = False

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


def make_task(dataset: Dataset, space: LabelSpace, fold: int | str, unified: str, trained: Container[str] = ()) -> Task:
    """What to score of a dataset.

    Test cases that have a reference, else the validation cases of the fold that it does not train on as well (as it
    does where a dataset has only one case); of a dataset that the unified network was not trained on, test cases or
    else all cases.

    Args:
        dataset: The dataset.
        space: Classes of the unified network.
        fold: The fold.
        unified: Name of the unified dataset, whose split counts.
        trained: Scans that the unified network was trained on, as far as its folder tells.

    Raises:
        DatasetError: No cases, no classes that the network knows, or another split than the network was trained by.
    """
    external = dataset.name not in space.ids
    cases = tuple(c for c in dataset.test_cases() if c.label is not None)
    trained_on = False
    if not cases:
        every = dataset.training_cases()
        if external:
            cases = every
        else:
            wanted = set(_validation_cases(dataset, fold, unified))
            cases = tuple(c for c in every if c.identifier in wanted)
            trained_on = fold == "all"
            seen = (
                []
                if trained_on
                else [c.identifier for c in cases if any(scan in trained for scan in _scans(dataset, c))]
            )
            if seen:
                raise DatasetError(
                    f"{dataset.name}: the network was trained on {len(seen)} of the {len(cases)} cases of fold {fold} "
                    f"that are to be scored, such as {seen[0]}; the split of {unified} has changed since"
                )
    every_class = classes_to_score(dataset)
    classes = {name: ids for name, ids in every_class.items() if name in space}
    if not cases:
        raise DatasetError(f"{dataset.name}: no test case has a reference, and fold {fold} holds out no case of it")
    if not classes:
        raise DatasetError(f"{dataset.name}: the model knows none of its {len(every_class)} classes")
    return Task(
        dataset=dataset,
        fold=fold,
        cases=cases,
        classes=classes,
        lesions=frozenset(name for name in classes if space.info(name).lesion),
        unknown=tuple(name for name in every_class if name not in space),
        external=external,
        trained_on=trained_on,
    )


def classes_to_score(dataset: Dataset) -> dict[str, tuple[int, ...]]:
    """Class → ids: what the catalogue lists for a published dataset, as its paper scores it; else what the dataset
    lists itself, without unions by rule. An organ has its lesions' ids too.
    """
    catalogue = load_catalogue()
    space = build_label_space([dataset], catalogue)
    published = catalogue_record(dataset, catalogue)[0] is not None
    ids = sorted(space.ids[dataset.name].items())
    return {name: own for name, own in ids if published or space.info(name).source_names}


def predicted_ids(task: Task, predictions: Path) -> dict[str, tuple[int, ...]] | None:
    """Class → ids in predicted label maps, by the ``dataset.json`` that nnU-Net leaves beside them.

    ``None`` where there is none, or it lists what the reference's does.

    Raises:
        DatasetError: It is malformed.
    """
    file = predictions / DATASET_FILE
    if not file.is_file():
        return None
    labels, ignore = read_labels(file)
    if labels == task.dataset.labels:
        return None
    return classes_to_score(replace(task.dataset, labels=labels, ignore_label=ignore))


def trained_cases(split: Sequence[Mapping[str, Sequence[str]]], fold: int | str) -> set[str]:
    """Cases that a fold of a nnU-Net was trained on."""
    if fold == "all":
        return {case for part in split for case in (*part["train"], *part["val"])}
    return set(split[int(fold)]["train"])


def _scans(dataset: Dataset, case: Case) -> set[str]:
    return {scan_id(dataset.name, case.identifier, channel) for channel in range(len(dataset.channel_names))}


def _validation_cases(dataset: Dataset, fold: int | str, unified: str) -> list[str]:
    if fold == "all":
        return [c.identifier for c in dataset.training_cases()]
    file = UnifiedFolder(name=unified).splits
    try:
        split = read_json(file)[int(fold)]
        scans, trained = set(split["val"]), set(split["train"])
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise DatasetError(f"{file}: no validation scans of fold {fold} ({error})") from error
    found = []
    for case in dataset.training_cases():
        own = _scans(dataset, case)
        if own & scans and not own & trained:
            found.append(case.identifier)
    return found
