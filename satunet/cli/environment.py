"""Does this installation work? Checks that say what is wrong and which command repairs it.

The usual trap: nnU-Net's network library needs ``timm``, which brings ``torchvision``. Beside a CPU build of torch, pip
may have installed torchvision's CUDA build. It cannot be imported ("operator torchvision::nms does not exist"), and
libraries that only check whether torchvision is installed then fail far from the cause. Without torchvision, all of
satunet works; only nnunetv2's lookup of trainers other than its standard one fails, because it imports all of them.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shlex
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.version import Version

from satunet.errors import EnvironmentProblemError, SatunetError

MINIMUM_NNUNET = (2, 8, 1)
MINIMUM_FREE_GB = 5.0


@dataclass(frozen=True, kw_only=True)
class EnvironmentIssue:
    """A finding of a check.

    Attributes:
        severity: ``"error"`` if satunet will fail, ``"note"`` if it is only good to know.
        message: Problem, and how to repair it.
    """

    severity: Literal["error", "note"]
    message: str

    def __post_init__(self) -> None:
        """Refuse any other severity."""
        if self.severity not in ("error", "note"):
            raise ValueError(f"severity {self.severity!r}; allowed are 'error' and 'note'")


def quick_check() -> None:
    """Look for known problems without importing anything heavy; every command that computes starts with this.

    Raises:
        EnvironmentProblemError: The installation cannot work; the message says how to repair it.
    """
    torch, vision = _version("torch"), _version("torchvision")
    if torch is None:
        raise EnvironmentProblemError(f"torch is not installed. Repair: {_pip('install torch')}")
    if vision is not None and _build(torch) == "cpu" and _build(vision) != "cpu":
        raise EnvironmentProblemError(_broken_torchvision())
    nnunet = _version("nnunetv2")
    if nnunet is None or Version(nnunet).release < MINIMUM_NNUNET:
        raise EnvironmentProblemError(_wrong_nnunet(nnunet))


def check_environment() -> list[EnvironmentIssue]:
    """Run every check, including imports (some seconds). Errors come first."""
    issues = [*check_torch(), *check_nnunet(), *check_text_encoder(), *check_folders()]
    return sorted(issues, key=lambda issue: issue.severity != "error")


def check_torch() -> list[EnvironmentIssue]:
    """Check whether torch and, if installed, torchvision can be imported, and what torch computes on."""
    try:
        import torch
    except Exception as error:  # a broken build raises OSError, ImportError, RuntimeError
        return [_error(f"torch cannot be imported ({error}). Repair: {_pip('install --force-reinstall torch')}")]
    issues = []
    if importlib.util.find_spec("torchvision") is not None:
        try:
            import torchvision  # noqa: F401
        except Exception:  # "operator torchvision::nms does not exist" is a RuntimeError
            issues.append(_error(_broken_torchvision()))
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 1e9
        where = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)} ({memory:.0f} GB)"
    elif torch.backends.mps.is_available():
        where = "Apple MPS"
    else:
        where = f"the CPU with {torch.get_num_threads()} threads"
    return [*issues, _note(f"torch {torch.__version__} computes on {where}")]


def check_nnunet() -> list[EnvironmentIssue]:
    """Check whether nnunetv2 is new enough, can be imported, and finds satunet's trainer for specialists."""
    version = _version("nnunetv2")
    if version is None or Version(version).release < MINIMUM_NNUNET:
        return [_error(_wrong_nnunet(version))]
    try:
        from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

        from satunet.trainers.specialist.trainer import SpecialistTrainer, register

        register()
        found = recursive_find_trainer_class_by_name(SpecialistTrainer.__name__)
        if found is not SpecialistTrainer:
            return [_error(f"nnunetv2 {version} does not find satunet's trainer for specialists by name")]
    except Exception as error:  # whatever a broken dependency of nnunetv2 raises
        return [_error(f"nnunetv2 {version} cannot be used ({type(error).__name__}: {error})")]
    issues = [_note(f"nnunetv2 {version} finds satunet's trainer")]
    if importlib.util.find_spec("torchvision") is None:
        issues.append(
            _note(
                "torchvision is not installed: satunet does not need it, but without it nnunetv2's own commands find no trainer except "
                "nnUNetTrainer; they need a torchvision that was built for this torch"
            )
        )
    return issues


def check_text_encoder() -> list[EnvironmentIssue]:
    """Check whether the offline text encoder can be loaded and embeds a text."""
    from satunet.text import load_text_encoder

    try:
        # A cache of its own: the user's cache would return the embedding without loading the model.
        with tempfile.TemporaryDirectory() as folder:
            encoder = load_text_encoder(cache_dir=Path(folder))
            width = encoder.encode(["liver"]).shape[1]
    except (SatunetError, ImportError, RuntimeError) as error:
        return [_error(f"the text encoder cannot be used ({error})")]
    return [_note(f"text encoder {encoder.name}: {width} values per text")]


def check_folders() -> list[EnvironmentIssue]:
    """Check whether nnU-Net's three folders are set, can be written to where necessary, and have free space."""
    issues = []
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        value = os.environ.get(name)
        if not value:
            issues.append(_note(f"{name} is not set; commands that need it will ask for it"))
            continue
        folder = Path(value).expanduser()
        if name == "nnUNet_raw":
            if not folder.is_dir():
                issues.append(_note(f"{name} is set to {folder}, which is not a folder"))
            continue  # only read from
        there = next((p for p in (folder, *folder.absolute().parents) if p.exists()), None)
        problem = "no part of the path exists" if there is None else _why_not_writable(there)
        if there is None or problem is not None:
            issues.append(_error(f"{name} is set to {folder}, which cannot be written to ({problem})"))
            continue
        free_gb = shutil.disk_usage(there).free / 1e9
        if free_gb < MINIMUM_FREE_GB:
            issues.append(_note(f"{name} is set to {folder}, and only {free_gb:.1f} GB are free on its disk"))
    return issues


def _why_not_writable(folder: Path) -> str | None:
    """Reason why a folder cannot be written to, found by trying: permissions do not show full disks, quotas or
    read-only mounts.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"satunet")
    except OSError as error:
        return error.strerror or str(error)
    return None


def _broken_torchvision() -> str:
    return (
        f"torchvision {_version('torchvision')} was not built for the torch {_version('torch')} beside it and cannot "
        "be imported, so that parts of transformers and nnU-Net fail too. satunet does not need it. "
        f"Repair: {_pip('uninstall -y torchvision')}"
    )


def _wrong_nnunet(version: str | None) -> str:
    wanted = ".".join(map(str, MINIMUM_NNUNET))
    received = "nnunetv2 is not installed" if version is None else f"nnunetv2 is {version}"
    return f"{received}; satunet needs {wanted} or newer. Repair: {_pip(f'install -U nnunetv2>={wanted}')}"


def _pip(arguments: str) -> str:
    """The pip command for this Python, ready to paste."""
    return shlex.join([sys.executable, "-m", "pip", *arguments.split()])


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _build(version: str) -> str:
    """Build of a version: ``cpu`` for ``2.13.0+cpu``; empty for a default build."""
    return Version(version).local or ""


def _error(message: str) -> EnvironmentIssue:
    return EnvironmentIssue(severity="error", message=message)


def _note(message: str) -> EnvironmentIssue:
    return EnvironmentIssue(severity="note", message=message)
