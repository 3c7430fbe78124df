"""A plan alone is no dataset to train on."""

from __future__ import annotations

from pathlib import Path

import pytest

from satunet.errors import DatasetError
from satunet.trainers.config import TrainingChoices
from satunet.trainers.unified.run import run_training
from tests.prediction.conftest import make_model


def test_training_before_preprocessing_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    model, folder = make_model(), tmp_path / "preprocessed" / "Dataset900_Unified"
    folder.mkdir(parents=True)
    model.plan.save(folder / "satunetPlans.json")
    model.space.save(folder / "label_space.json")
    with pytest.raises(
        DatasetError, match=r"Dataset900_Unified: it is planned, but not preprocessed; 'satunet preprocess -d"
    ):
        run_training("Dataset900_Unified", config=TrainingChoices(), device="cpu")
    assert not (tmp_path / "results").exists()
