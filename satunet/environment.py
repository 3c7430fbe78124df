"""Does this installation work? Checks that say what is wrong and how to repair it."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from satunet.errors import EnvironmentProblemError

MINIMUM_NNUNET = (2, 8, 1)
_REPAIR_TORCHVISION = (
    "torchvision {vision} was not built for the torch {torch} beside it and cannot be imported; parts of transformers "
    "and nnU-Net then fail too. satunet does not need it. Repair: pip uninstall -y torchvision"
)
_LOW_DISK_GB = 5


@dataclass(frozen=True, kw_only=True)
class EnvironmentIssue:
    """Something a check found.

    Attributes:
        severity: ``"error"``: satunet will fail; ``"note"``: good to know.
        message: What, and how to repair it.
    """

    severity: str
    message: str


def quick_check() -> None:
    """Look for the known trap without importing anything heavy; every command that computes starts with it.

    Raises:
        EnvironmentProblemError: The installation cannot work; the message says how to repair it.
    """
    torch, vision = _version("torch"), _version("torchvision")
    if torch is None:
        raise EnvironmentProblemError("torch is not installed. Repair: pip install satunet")
    if vision is not None and _build(torch) != _build(vision) and _build(torch) == "cpu":
        raise EnvironmentProblemError(_REPAIR_TORCHVISION.format(vision=vision, torch=torch))


def check_environment() -> list[EnvironmentIssue]:
    """Every check, with imports; errors first."""
    issues = [*_torch(), *_nnunet(), *_text_encoder(), *_folders()]
    return sorted(issues, key=lambda issue: issue.severity != "error")


def _torch() -> list[EnvironmentIssue]:
    try:
        import torch
    except Exception as error:  # a broken build raises OSError, ImportError, RuntimeError
        return [_error(f"torch cannot be imported ({error}). Repair: pip install --force-reinstall torch")]
    issues = []
    if _version("torchvision") is not None:
        try:
            import torchvision  # noqa: F401
        except Exception:  # "operator torchvision::nms does not exist" is a RuntimeError
            message = _REPAIR_TORCHVISION.format(vision=_version("torchvision"), torch=torch.__version__)
            issues.append(_error(message))
    where = "CUDA" if torch.cuda.is_available() else "CPU"
    return [*issues, _note(f"torch {torch.__version__} computes on {where}, {torch.get_num_threads()} threads")]


def _nnunet() -> list[EnvironmentIssue]:
    version = _version("nnunetv2")
    if version is None:
        return [_error("nnunetv2 is not installed. Repair: pip install 'nnunetv2>=2.8.1'")]
    numbers = tuple(int(n) for n in version.split(".")[:3] if n.isdigit())
    if numbers < MINIMUM_NNUNET:
        return [_error(f"nnunetv2 is {version}; satunet needs 2.8.1 or newer. Repair: pip install -U nnunetv2")]
    try:
        from nnunetv2.run.run_training import recursive_find_trainer_class_by_name
        from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

        from satunet.trainers.specialist import SpecialistTrainer, register

        register()
        found = recursive_find_trainer_class_by_name(SpecialistTrainer.__name__)
        if found is not SpecialistTrainer or not issubclass(found, nnUNetTrainer):
            return [_error(f"nnunetv2 {version} does not find satunet's trainer of specialists by name")]
    except Exception as error:
        return [_error(f"nnunetv2 {version} cannot be used ({type(error).__name__}: {error})")]
    return [_note(f"nnunetv2 {version}")]


def _text_encoder() -> list[EnvironmentIssue]:
    from satunet.errors import SatunetError
    from satunet.text import load_text_encoder

    try:
        encoder = load_text_encoder()
        return [_note(f"text encoder {encoder.name}: {encoder.dim} values a text")]
    except (SatunetError, ImportError, RuntimeError) as error:
        return [_error(f"the text encoder cannot be used ({error})")]


def _folders() -> list[EnvironmentIssue]:
    issues = []
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        value = os.environ.get(name)
        if not value:
            issues.append(_note(f"{name} is not set; commands that need it will ask for it"))
            continue
        folder = Path(value).expanduser()
        if not folder.is_dir():
            issues.append(_note(f"{name} is set to {folder}, which does not exist yet"))
            continue
        if name != "nnUNet_raw" and not os.access(folder, os.W_OK):
            issues.append(_error(f"{name} is set to {folder}, which cannot be written to"))
        free = shutil.disk_usage(folder).free / 1e9
        if free < _LOW_DISK_GB:
            issues.append(_note(f"{name}: only {free:.1f} GB are free on its disk"))
    return issues


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _build(version: str) -> str:
    """``cpu`` of ``2.13.0+cpu``; empty for a default build."""
    return version.partition("+")[2]


def _error(message: str) -> EnvironmentIssue:
    return EnvironmentIssue(severity="error", message=message)


def _note(message: str) -> EnvironmentIssue:
    return EnvironmentIssue(severity="note", message=message)
