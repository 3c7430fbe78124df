"""Fixtures for all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

import tests.typechecking  # noqa: F401  pytest's --jaxtyping-packages names it, and imports its package alone

# The same examples in every run, so that a red run has its cause in the change; `--hypothesis-profile=default` explores.
settings.register_profile("reproducible", derandomize=True, deadline=None)
settings.load_profile("reproducible")


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--golden`` writes the golden loss curve anew; ``--precision`` says what 'auto' means."""
    parser.addoption("--golden", action="store_true", help="write the golden loss curve anew")
    parser.addoption(
        "--precision", choices=("bfloat16", "float16", "float32"), help="compute in it wherever a test asks for 'auto'"
    )


def pytest_configure(config: pytest.Config) -> None:
    """What 'auto' means here, and in the processes that tests start."""
    if precision := config.getoption("--precision"):
        os.environ["SATUNET_PRECISION"] = precision


REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of this run's own: a knowledge tree in the user's cache would change how prompts are read."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # the workers of a run share it
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SATUNET_CACHE", str(folder / "satunet_cache"))
        yield


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of reference material beside the project; the test is skipped where it is absent."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip("the reference material (../shared) is not here")
    return folder


@pytest.fixture(scope="session")
def real_raw(shared_dir: Path) -> Path:
    """A ``nnUNet_raw`` of real datasets; the test is skipped where it is absent."""
    folder = shared_dir / "data" / "nnUNet_raw"
    if not folder.is_dir():
        pytest.skip("the real datasets (../shared/data) are not here")
    return folder


@pytest.fixture
def nnunet_env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Fresh, empty nnU-Net folders in the environment; returns their parent (``raw``, ``preprocessed``, ``results``)."""
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    return tmp_path
