"""The unified dataset on disk; its file names are defined only here.

::

    nnUNet_preprocessed/Dataset900_Unified/
        satunetPlans.json            .plan          the unified plan, in nnU-Net's format
        satunetPlans_impact.json     .impact        what the plan costs each dataset
        label_space.json             .label_space
        dataset_fingerprint.json     .fingerprint   merged from those of the datasets
        dataset.json                 .dataset_json
        splits_final.json            .splits
        satunetPlans_3d_fullres/     .store         preprocessed scans, see satunet.preprocessing.store.scans
    nnUNet_results/Dataset900_Unified/
        SATTrainer__satunetPlans__3d_fullres/       .results
            fold_0/                                 .model(0)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from satunet.datasets.paths import UNIFIED_DATASET, dataset_name_of, preprocessed_dir, results_dir

PLANS_NAME = "satunetPlans"
CONFIGURATION = "3d_fullres"
TRAINER = "SATTrainer"


@dataclass(frozen=True, kw_only=True)
class UnifiedFolder:
    """Paths of a unified dataset's files; they need not exist.

    Attributes:
        name: Folder name, ``DatasetNNN_Name``.
        plans_name: Name of the plan.
        configuration: Name of its configuration.
    """

    name: str = UNIFIED_DATASET
    plans_name: str = PLANS_NAME
    configuration: str = CONFIGURATION

    @classmethod
    def find(cls, dataset: int | str) -> UnifiedFolder:
        """The folder of an id or name.

        Raises:
            DatasetNotFoundError: No such dataset.
        """
        return cls(name=dataset_name_of(dataset))

    @property
    def folder(self) -> Path:
        """Folder in ``nnUNet_preprocessed``."""
        return preprocessed_dir() / self.name

    @property
    def plan(self) -> Path:
        """Unified plan."""
        return self.folder / f"{self.plans_name}.json"

    @property
    def impact(self) -> Path:
        """Costs of the plan for each dataset."""
        return self.folder / f"{self.plans_name}_impact.json"

    @property
    def label_space(self) -> Path:
        """Label space of the planned datasets."""
        return self.folder / "label_space.json"

    @property
    def fingerprint(self) -> Path:
        """Merged fingerprint of the planned datasets."""
        return self.folder / "dataset_fingerprint.json"

    @property
    def dataset_json(self) -> Path:
        """Dataset description that nnU-Net's tools read."""
        return self.folder / "dataset.json"

    @property
    def splits(self) -> Path:
        """Folds, as lists of scans."""
        return self.folder / "splits_final.json"

    @property
    def store_name(self) -> str:
        """nnU-Net's ``data_identifier``."""
        return f"{self.plans_name}_{self.configuration}"

    @property
    def store(self) -> Path:
        """Folder of the preprocessed scans."""
        return self.folder / self.store_name

    @property
    def results(self) -> Path:
        """Folder in ``nnUNet_results`` of the networks that were trained on the plan."""
        return results_dir() / self.name / f"{TRAINER}__{self.plans_name}__{self.configuration}"

    def model(self, fold: int | str) -> Path:
        """Folder of one fold's network.

        Args:
            fold: Number of the fold, or ``"all"``.
        """
        return self.results / f"fold_{fold}"
