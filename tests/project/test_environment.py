"""The environment checks find each trap and name the command that repairs it."""

from __future__ import annotations

import importlib.metadata
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from satunet.cli import environment
from satunet.cli.environment import EnvironmentIssue, check_folders, check_nnunet, check_torch, quick_check
from satunet.errors import EnvironmentProblemError

GOOD = {"torch": "2.13.0+cpu", "nnunetv2": "2.8.1"}
PIP = shlex.join([sys.executable, "-m", "pip"])
Installed = Callable[[dict[str, str]], None]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Installed:
    """Call it with {package: version} to pretend that these, and no others, are installed."""

    def pretend(versions: dict[str, str]) -> None:
        def version(name: str) -> str:
            if name not in versions:
                raise importlib.metadata.PackageNotFoundError(name)
            return versions[name]

        monkeypatch.setattr(importlib.metadata, "version", version)

    return pretend


@pytest.mark.parametrize(
    "versions",
    [
        GOOD,
        GOOD | {"torchvision": "0.29.2+cpu"},
        GOOD | {"torch": "2.13.0", "torchvision": "0.29.2"},
        GOOD | {"torch": "2.13.0+cu130", "torchvision": "0.29.2+cu130"},
        GOOD | {"nnunetv2": "2.9"},
        GOOD | {"nnunetv2": "2.10.0.dev1"},
        GOOD | {"nnunetv2": "3.0"},
    ],
)
def test_quick_check_accepts(installed: Installed, versions: dict[str, str]) -> None:
    installed(versions)
    quick_check()


@pytest.mark.parametrize(
    ("versions", "received", "repair"),
    [
        (GOOD | {"torchvision": "0.29.2"}, "torchvision 0.29.2", "uninstall -y torchvision"),
        (GOOD | {"torchvision": "0.29.2+cu130"}, "torch 2.13.0+cpu", "uninstall -y torchvision"),
        ({"nnunetv2": "2.8.1"}, "torch is not installed", "install torch"),
        ({"torch": "2.13.0"}, "nnunetv2 is not installed", "install -U 'nnunetv2>=2.8.1'"),
        (GOOD | {"nnunetv2": "2.8.0"}, "nnunetv2 is 2.8.0", "install -U 'nnunetv2>=2.8.1'"),
        (GOOD | {"nnunetv2": "2.6.2"}, "nnunetv2 is 2.6.2", "install -U 'nnunetv2>=2.8.1'"),
        (GOOD | {"nnunetv2": "1.7.1"}, "nnunetv2 is 1.7.1", "install -U 'nnunetv2>=2.8.1'"),
    ],
)
def test_quick_check_refuses(installed: Installed, versions: dict[str, str], received: str, repair: str) -> None:
    installed(versions)
    with pytest.raises(EnvironmentProblemError) as caught:
        quick_check()
    assert received in str(caught.value)
    assert str(caught.value).endswith(f"Repair: {PIP} {repair}")


def test_quick_check_imports_nothing_heavy() -> None:
    script = "import sys; from satunet.cli.environment import quick_check; quick_check(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, encoding="utf-8", timeout=60, check=True)
    assert not {"torch", "torchvision", "numpy", "nnunetv2"}.intersection(done.stdout.split())


def test_this_installation_passes_its_own_check() -> None:
    quick_check()


def broken(folder: Path, module: str, error: str) -> None:
    (folder / module).mkdir()
    (folder / module / "__init__.py").write_text(error)


def test_torchvision_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(tmp_path, "torchvision", "raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    (found,) = errors(check_torch())
    assert "torchvision" in found
    assert found.endswith(f"Repair: {PIP} uninstall -y torchvision")


def test_torch_that_cannot_be_imported(tmp_path: Path) -> None:
    broken(tmp_path, "torch", "raise OSError('libtorch_cpu.so: cannot open shared object file')")
    script = "from satunet.cli.environment import check_torch; print(*(i.message for i in check_torch()))"
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, encoding="utf-8", env=environment, timeout=60
    )
    assert "torch cannot be imported (libtorch_cpu.so: cannot open shared object file)" in done.stdout
    assert "install --force-reinstall torch" in done.stdout


def test_nnunetv2_finds_our_trainer_whatever_else_is_missing() -> None:
    assert not errors(check_nnunet())


def test_nnunetv2_too_old(installed: Installed) -> None:
    installed({"nnunetv2": "2.5"})
    (found,) = errors(check_nnunet())
    assert "nnunetv2 is 2.5; satunet needs 2.8.1 or newer" in found


def test_missing_variables_are_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(name, raising=False)
    issues = check_folders()
    assert [i.severity for i in issues] == ["note"] * 3
    assert [i.message.split()[0] for i in issues] == ["nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"]


def test_good_folders_raise_no_issue(nnunet_env: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_results", str(nnunet_env / "to" / "be" / "made"))
    monkeypatch.setattr(environment, "MINIMUM_FREE_GB", 0.0)
    assert check_folders() == []
    assert not (nnunet_env / "to").exists()  # a check makes nothing


def test_a_file_where_a_folder_should_be(nnunet_env: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = nnunet_env / "file"
    file.write_text("")
    monkeypatch.setattr(environment, "MINIMUM_FREE_GB", 0.0)
    monkeypatch.setenv("nnUNet_preprocessed", str(file))
    monkeypatch.setenv("nnUNet_results", str(file / "below"))
    found = errors(check_folders())
    assert len(found) == 2
    assert found[0].startswith(f"nnUNet_preprocessed is set to {file}, which cannot be written to")
    assert found[1].startswith(f"nnUNet_results is set to {file / 'below'}, which cannot be written to")


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_without_write_permission(nnunet_env: Path) -> None:
    (nnunet_env / "results").chmod(0o500)
    (found,) = errors(check_folders())
    assert "nnUNet_results" in found


def test_little_room_is_a_note(nnunet_env: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type(shutil.disk_usage(nnunet_env))(100, 99, 1_200_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    issues = check_folders()
    assert [i.severity for i in issues] == ["note", "note"]
    assert all("only 1.2 GB are free" in i.message for i in issues)


def test_severity_is_validated() -> None:
    with pytest.raises(ValueError, match="'warning'; allowed are 'error' and 'note'"):
        EnvironmentIssue(severity="warning", message="x")  # type: ignore[arg-type]


def errors(issues: list[EnvironmentIssue]) -> list[str]:
    return [i.message for i in issues if i.severity == "error"]
