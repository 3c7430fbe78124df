"""Does this installation work? Checks that say what is wrong and the command that repairs it.

The usual trap: nnU-Net's network library needs ``timm``, which brings ``torchvision``. Beside a CPU build of torch,
pip may have taken torchvision's CUDA build. It cannot be imported ("operator torchvision::nms does not exist"), and
libraries that only ask whether torchvision is there then fail far from the cause. Without it everything of satunet
works; what nnunetv2 loses is its lookup of trainers other than its standard one, which imports them all.
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
    """Something a check found.

    Attributes:
        severity: ``"error"``: satunet will fail; ``"note"``: good to know.
        message: What, and how to repair it.
    """

    severity: Literal["error", "note"]
    message: str

    def __post_init__(self) -> None:
        """Refuse a severity that no reader handles."""
        if self.severity not in ("error", "note"):
            raise ValueError(f"severity {self.severity!r}; allowed are 'error' and 'note'")


def quick_check() -> None:
    """Look for the known traps without importing anything heavy; every command that computes starts with it.

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
    """Every check, with imports (some seconds); errors first."""
    issues = [*check_torch(), *check_nnunet(), *check_text_encoder(), *check_folders()]
    return sorted(issues, key=lambda issue: issue.severity != "error")


def check_torch() -> list[EnvironmentIssue]:
    """Whether torch and, if it is there, torchvision can be imported, and what torch computes on."""
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
    """Whether nnunetv2 is new enough, can be imported, and finds satunet's trainer of specialists."""
    version = _version("nnunetv2")
    if version is None or Version(version).release < MINIMUM_NNUNET:
        return [_error(_wrong_nnunet(version))]
    try:
        from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

        from satunet.trainers.specialist.trainer import SpecialistTrainer, register

        register()
        found = recursive_find_trainer_class_by_name(SpecialistTrainer.__name__)
        if found is not SpecialistTrainer:
            return [_error(f"nnunetv2 {version} does not find satunet's trainer of specialists by name")]
    except Exception as error:  # whatever a broken dependency of nnunetv2 raises
        return [_error(f"nnunetv2 {version} cannot be used ({type(error).__name__}: {error})")]
    issues = [_note(f"nnunetv2 {version} finds satunet's trainer")]
    if importlib.util.find_spec("torchvision") is None:
        issues.append(
            _note(
                "torchvision is not installed: satunet needs none; nnunetv2's own commands find no trainer but "
                "nnUNetTrainer without it, and need the torchvision built for this torch"
            )
        )
    return issues


def check_text_encoder() -> list[EnvironmentIssue]:
    """Whether the text encoder that works offline can be loaded and embeds a text."""
    from satunet.text import load_text_encoder

    try:
        # A cache of its own: from the user's, an embedding would come without loading the model.
        with tempfile.TemporaryDirectory() as folder:
            encoder = load_text_encoder(cache_dir=Path(folder))
            width = encoder.encode(["liver"]).shape[1]
    except (SatunetError, ImportError, RuntimeError) as error:
        return [_error(f"the text encoder cannot be used ({error})")]
    return [_note(f"text encoder {encoder.name}: {width} values a text")]


def check_folders() -> list[EnvironmentIssue]:
    """Whether nnU-Net's three folders are set, can be written to where they must, and have room."""
    issues = []
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        value = os.environ.get(name)
        if not value:
            issues.append(_note(f"{name} is not set; commands that need it will ask for it"))
            continue
        folder = Path(value).expanduser()
        if name == "nnUNet_raw":
            if not folder.is_dir():
                issues.append(_note(f"{name} is set to {folder}, which is no folder"))
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
    """Try it: permissions alone tell nothing of full disks, quotas and read-only mounts."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"satunet")
    except OSError as error:
        return error.strerror or str(error)
    return None


def _broken_torchvision() -> str:
    return (
        f"torchvision {_version('torchvision')} was not built for the torch {_version('torch')} beside it and cannot "
        "be imported; parts of transformers and nnU-Net then fail too. satunet does not need it. "
        f"Repair: {_pip('uninstall -y torchvision')}"
    )


def _wrong_nnunet(version: str | None) -> str:
    wanted = ".".join(map(str, MINIMUM_NNUNET))
    received = "nnunetv2 is not installed" if version is None else f"nnunetv2 is {version}"
    return f"{received}; satunet needs {wanted} or newer. Repair: {_pip(f'install -U nnunetv2>={wanted}')}"


def _pip(arguments: str) -> str:
    """The pip command for this very Python, ready to paste."""
    return shlex.join([sys.executable, "-m", "pip", *arguments.split()])


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _build(version: str) -> str:
    """``cpu`` of ``2.13.0+cpu``; empty for a default build."""
    return Version(version).local or ""


def _error(message: str) -> EnvironmentIssue:
    return EnvironmentIssue(severity="error", message=message)


def _note(message: str) -> EnvironmentIssue:
    return EnvironmentIssue(severity="note", message=message)
