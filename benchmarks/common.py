"""What every comparison prints: hardware, versions, medians and ratios."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def header(*packages: str) -> None:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else model
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in packages)
    print(f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}")


def seconds(function: Callable[[], object], repeats: int = 3) -> float:
    """Median wall time."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def compare(what: str, ours: float, peer: float, name: str) -> None:
    print(f"{what}: satunet {ours * 1e3:.1f} ms, {name} {peer * 1e3:.1f} ms, {peer / ours:.1f} times as fast")


def nnunet_case(
    spacing: Sequence[float], patch: Sequence[int], classes: int, **more: Any
) -> tuple[Any, dict[str, Any]]:
    """nnunetv2's ``PlansManager`` and ``dataset.json`` of a data set with so many classes.

    ``spacing`` and ``patch`` have the axes of the arrays that nnunetv2 gets; ``more`` goes into ``3d_fullres``.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    configuration = {
        "spacing": list(spacing),
        "patch_size": list(patch),
        "data_identifier": "x",
        "preprocessor_name": "DefaultPreprocessor",
        "architecture": {"network_class_name": "x.PlainConvUNet", "arch_kwargs": {}, "_kw_requires_import": []},
    }
    plans = PlansManager(
        {
            "dataset_name": "Dataset001_A",
            "plans_name": "nnUNetPlans",
            "image_reader_writer": "SimpleITKIO",
            "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2],
            "configurations": {"3d_fullres": configuration | more},
            "label_manager": "LabelManager",
        }
    )
    labels = {"background": 0} | {f"c{k}": k for k in range(1, classes + 1)}
    return plans, {"labels": labels, "channel_names": {"0": "MRI"}, "file_ending": ".nii.gz"}
