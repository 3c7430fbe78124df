from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from satunet.demo.synthetic import make_synthetic_datasets
from satunet.planners.options import PlanOptions
from satunet.preprocessing.pipeline import plan_and_preprocess
from tests.conftest import made_once


@pytest.fixture(scope="session")
def planned_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nnU-Net folders with two synthetic datasets, planned and preprocessed."""
    return made_once(tmp_path_factory, "planned", _plan)


def _plan(root: Path) -> None:
    with pytest.MonkeyPatch.context() as environment:
        for name in ("raw", "preprocessed", "results"):
            (root / name).mkdir(parents=True)
            environment.setenv(f"nnUNet_{name}", str(root / name))
        names = make_synthetic_datasets(root / "raw", cases=2)
        summary = plan_and_preprocess(
            names,
            PlanOptions(spacing_mm=(4, 4, 4), patch_size=(16, 16, 16), batch_size=2, base_features=4, gpu_memory_gb=1),
        )
    assert summary.exit_code == 0


@pytest.fixture
def planned(planned_once: Path, nnunet_env: Path) -> Path:
    """A copy of it, in the environment."""
    for name in ("raw", "preprocessed"):
        shutil.copytree(planned_once / name, nnunet_env / name, dirs_exist_ok=True)
    return nnunet_env


@pytest.fixture(autouse=True)
def quick_progress_png(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """nnU-Net draws ``progress.png`` in a second an epoch; tests that look at it are marked ``progress_png``."""
    if "progress_png" not in request.keywords:
        from nnunetv2.training.logging.nnunet_logger import LocalLogger

        monkeypatch.setattr(LocalLogger, "plot_progress_png", lambda self, folder: None)
