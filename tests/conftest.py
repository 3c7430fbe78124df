"""Fixtures for all tests."""

from __future__ import annotations

import fcntl
import locale
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

import tests.typechecking  # noqa: F401  pytest's --jaxtyping-packages names it, and imports its package alone

# The same examples in every run, so that a red run has its cause in the change; `--hypothesis-profile=default` explores.
settings.register_profile("reproducible", derandomize=True, deadline=None)
settings.load_profile("reproducible")


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--golden`` writes the golden loss curve anew; ``--precision`` says what 'auto' means; ``--complete`` refuses skips."""
    parser.addoption("--golden", action="store_true", help="write the golden loss curve anew")
    parser.addoption(
        "--precision", choices=("bfloat16", "float16", "float32"), help="compute in it wherever a test asks for 'auto'"
    )
    parser.addoption(
        "--complete", action="store_true", help="fail if a test skips for want of what scripts/setup installs"
    )


def pytest_configure(config: pytest.Config) -> None:
    """What 'auto' means here, and in the processes that tests start."""
    if precision := config.getoption("--precision"):
        os.environ["SATUNET_PRECISION"] = precision


MAY_BE_ABSENT = (
    r"the reference material \(\.\./shared\)", r"the real datasets \(\.\./shared/data\)", "no list of prompts there",
    r"no GPU$", r"needs a GPU$", "root writes everywhere", "mounting a small disk is not allowed",
    "needs Linux and a C compiler", r"no C\+\+ compiler", "git is not here", "chromium is not installed",
    "Orthanc is not installed", r"(plastimatch|segimage2itkimage|itkimage2segimage|tid1500reader|dcm2niix|dcmqi) is not installed",
    r"(napari|no Qt|Xvfb|nginx or openssl|Qt does not start)",
    "could not import 'panoptica'",  # it holds numpy below 2.3
    "monailabel is not installed",  # it brings a server's worth of packages, and another version of MONAI
)  # fmt: skip
"""Why a test may skip after ``scripts/setup``: data beside the project, hardware, rights, programs that pip has not."""


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """With ``--complete``, name the tests that skip for another reason."""
    if config.getoption("--complete"):
        for test, why in _unexpected(terminalreporter):
            terminalreporter.write_line(f"SKIPPED, and set-up brings what it needs: {test}: {why}", red=True)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """With ``--complete``, a run with such tests has failed."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if session.config.getoption("--complete") and reporter is not None and _unexpected(reporter):
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED


def _unexpected(reporter: Any) -> list[tuple[str, str]]:
    """Tests and files that skipped for another reason than those of :data:`MAY_BE_ABSENT`."""
    reasons = [(r.nodeid, str(r.longrepr[2]).removeprefix("Skipped: ")) for r in reporter.stats.get("skipped", [])]
    return [(test, why) for test, why in reasons if not any(re.match(known, why) for known in MAY_BE_ABSENT)]


REPOSITORY = Path(__file__).resolve().parent.parent

LONGEST = ("tests/pipeline/", "tests/drills/", "tests/demo/", "tests/trainers/")
"""Folders with tests of a minute. They run first: no process is left with one while the others have nothing to do."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Folders of :data:`LONGEST` first, each in one piece, so that no fixture of a file or folder is made twice."""
    items.sort(key=lambda item: next((i for i, f in enumerate(LONGEST) if item.nodeid.startswith(f)), len(LONGEST)))


def _of_this_run(factory: pytest.TempPathFactory) -> Path:
    """The temporary folder that the test processes of this run share."""
    folder = factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that the first test process that asks for it makes, for all of them.

    Args:
        factory: pytest's.
        name: Name of the folder.
        make: Function that makes and fills the folder.
    """
    folder = _of_this_run(factory) / name
    done = folder.with_name(f"{name}.done")
    with folder.with_name(f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of this run's own: a knowledge tree in the user's cache would change how prompts are read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SATUNET_CACHE", str(_of_this_run(tmp_path_factory) / "satunet_cache"))
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


@pytest.fixture(scope="session", autouse=True)
def small_pictures() -> Iterator[None]:
    """Matplotlib's settings for tests, and for the processes that they start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MATPLOTLIBRC", str(Path(__file__).with_name("matplotlibrc")))
        yield


@pytest.fixture
def nnunet_env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Fresh, empty nnU-Net folders in the environment; returns their parent (``raw``, ``preprocessed``, ``results``)."""
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    return tmp_path


@pytest.fixture(autouse=True)
def same_locale() -> Iterator[None]:
    """GDCM, with which tests write DICOM files, leaves the locale C, in which Python reads no UTF-8."""
    before = locale.setlocale(locale.LC_ALL)
    yield
    locale.setlocale(locale.LC_ALL, before)
