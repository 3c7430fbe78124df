"""Preprocessing of whole cases, file to file: satunet against nnunetv2's own preprocessor, one process each.

Each measurement is a process of its own, so that its peak memory is its own. Both sides read the same NIfTI files and
write their store; satunet normalises as SAT does, nnunetv2 as it does for CT and MRI. Scans are of half the size along
each axis unless ``--full`` is given. Times are processor seconds of the one thread that works, so that they hold on a
machine that does other things as well; files are in the page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
from common import header

Spacing = tuple[float, float, float]


def make_case(raw: Path, number: int, shape: tuple[int, int, int], spacing: Spacing, labels: int, ct: bool) -> str:
    """A body of noise with ``labels`` ellipsoids in rows and columns, as a dataset of one case."""
    name = f"Dataset{number:03d}_Bench"
    rng = np.random.default_rng(number)
    x, y, z = (np.linspace(-1, 1, n, dtype=np.float32) for n in shape)
    body = (x[:, None, None] ** 2 + y[None, :, None] ** 2 <= 0.9) & (np.abs(z) <= 2)[None, None, :]
    noise = rng.normal(0, 40, shape).astype(np.float32)
    image = np.where(body, 40 + noise, -1000) if ct else np.where(body, 500 + noise, 0)
    cells = np.ceil(labels ** (1 / 3)).astype(int)
    cell = [np.clip(((a / 0.8 + 1) / 2 * cells).astype(int), 0, cells - 1) for a in (x, y, z)]
    inside = [((a / 0.8 + 1) / 2 * cells - c) * 2 - 1 for a, c in zip((x, y, z), cell, strict=True)]
    number_of_cell = (cell[0][:, None, None] * cells + cell[1][None, :, None]) * cells + cell[2][None, None, :] + 1
    radius = inside[0][:, None, None] ** 2 + inside[1][None, :, None] ** 2 + inside[2][None, None, :] ** 2
    segmentation = np.where((radius <= 0.8) & (number_of_cell <= labels), number_of_cell, 0).astype(np.uint8)
    affine = np.diag([*spacing, 1.0])
    for folder, array in (("imagesTr", image.astype(np.int16)), ("labelsTr", segmentation)):
        (raw / name / folder).mkdir(parents=True, exist_ok=True)
        suffix = "_0000" if folder == "imagesTr" else ""
        nib.save(nib.Nifti1Image(array, affine), raw / name / folder / f"case{suffix}.nii.gz")
    content = {
        "channel_names": {"0": "CT" if ct else "MRI"},
        "labels": {"background": 0} | {f"structure {i}": i for i in range(1, labels + 1)},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    (raw / name / "dataset.json").write_text(json.dumps(content))
    return name


def plan_of(target: Spacing):  # type: ignore[no-untyped-def]
    from satunet.network.config import NetworkConfig
    from satunet.plan import UnifiedPlan

    network = NetworkConfig.auto(
        features_per_stage=(8, 16), strides=((1, 1, 1), (2, 2, 2)), kernel_sizes=((3, 3, 3),) * 2, text_dim=24
    )
    return UnifiedPlan(spacing_mm=target, patch_size=(128, 128, 128), network=network)


def satunet_case(name: str, target: Spacing) -> None:
    from satunet.preprocessing.run import preprocess_datasets

    plan = plan_of(target)
    started = time.process_time()
    summary = preprocess_datasets(plan, [name], processes=1)
    _report(started)
    assert not summary.failures, summary.failures


def nnunetv2_case(name: str, target: Spacing) -> None:
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    content = plan_of(target).to_nnunet()
    # nnU-Net's axes are the file's in reverse.
    content["configurations"]["3d_fullres"]["spacing"] = list(target[::-1])
    content["image_reader_writer"] = "SimpleITKIO"
    content["foreground_intensity_properties_per_channel"] = {
        "0": {"mean": 40.0, "std": 40.0, "percentile_00_5": -60.0, "percentile_99_5": 140.0}
    }
    folder = Path(os.environ["nnUNet_raw"]) / name
    is_ct = json.loads((folder / "dataset.json").read_text())["channel_names"]["0"] == "CT"
    content["configurations"]["3d_fullres"]["normalization_schemes"] = [
        "CTNormalization" if is_ct else "ZScoreNormalization"
    ]
    plans = PlansManager(content)
    output = Path(os.environ["nnUNet_preprocessed"]) / f"nnunet_{name}"
    started = time.process_time()
    DefaultPreprocessor(verbose=False).run_case_save(
        str(output),
        [str(folder / "imagesTr" / "case_0000.nii.gz")],
        str(folder / "labelsTr" / "case.nii.gz"),
        plans,
        plans.get_configuration("3d_fullres"),
        json.loads((folder / "dataset.json").read_text()),
    )
    _report(started)


def read_patches(name: str, target: Spacing) -> None:
    """Random patches of 128³, image and labels, from a store that is in the page cache."""
    from satunet.preprocessing.store.scans import ScanStore

    plan = plan_of(target)
    store = ScanStore(Path(os.environ["nnUNet_preprocessed"]) / plan.dataset_name / plan.data_identifier)
    scan = next(s for s in store.scan_ids if s.startswith(name))
    rng = np.random.default_rng(0)
    times = []
    for _ in range(60):
        start = [int(rng.integers(0, max(1, n - 128 + 1))) for n in store.record(scan).shape]
        window = (slice(None), *(slice(s, s + 128) for s in start))
        began = time.process_time()
        store.image(scan)[window], store.labels(scan)[window]
        times.append(time.process_time() - began)
    warm = np.array(times[10:]) * 1e3
    print(json.dumps({"median_ms": float(np.median(warm)), "p95_ms": float(np.percentile(warm, 95))}))


def _report(started: float) -> None:
    seconds = time.process_time() - started
    # Not ru_maxrss, which a new process inherits from the one that started it.
    status = Path("/proc/self/status").read_text()
    peak = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024
    print(json.dumps({"seconds": seconds, "peak_mb": peak}))


def measure(task: str, name: str, target: Spacing, environment: dict[str, str]) -> dict[str, float]:
    command = [sys.executable, __file__, "--task", task, name, *map(str, target)]
    text = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, float] = json.loads(text.strip().splitlines()[-1])
    return found


def main(full: bool) -> None:
    header("numpy", "scipy", "blosc2", "nnunetv2")
    size = 1 if full else 2
    ct, mri = (512 // size, 512 // size, 200 // size), (256 // size, 256 // size, 180 // size)
    ct_mm, ct_target = (0.7, 0.7, 1.5), (1.0, 1.0, 1.5)
    cases = {
        "CT, 1 label": (ct, ct_mm, ct_target, 1, True, False),
        "CT, 100 labels": (ct, ct_mm, ct_target, 100, True, True),
        "CT of twice the slices, 100 labels": ((*ct[:2], 2 * ct[2]), ct_mm, ct_target, 100, True, False),
        "MRI, 1 label": (mri, (0.9, 0.9, 1.0), (1.0, 1.0, 1.0), 1, False, True),
    }  # fmt: skip
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            (folder / variable).mkdir()
            environment[variable] = str(folder / variable)
        for number, (what, (shape, spacing, target, labels, is_ct, peer)) in enumerate(cases.items(), start=1):
            name = make_case(folder / "nnUNet_raw", number, shape, spacing, labels, is_ct)
            ours = found[what] = ours_of(name, target, environment, folder)
            line = (
                f"{what}, {shape}, {spacing} → {target} mm: satunet {ours['seconds']:.1f} s, {ours['peak_mb']:.0f} MB"
            )
            if peer:
                theirs = measure("nnunetv2", name, target, environment)
                line += (
                    f"; nnunetv2 {theirs['seconds']:.1f} s, {theirs['peak_mb']:.0f} MB"
                    f"; {theirs['seconds'] / ours['seconds']:.1f} times as fast"
                    f", {ours['peak_mb'] / theirs['peak_mb']:.2f} of its memory"
                )
            print(line, flush=True)
            if what == "CT, 100 labels":
                patch = measure("patches", name, target, environment)
                print(
                    f"random patch of 128³ from it, image and labels: {patch['median_ms']:.1f} ms (median), "
                    f"95 % within {patch['p95_ms']:.1f} ms",
                    flush=True,
                )
    few, many, long = (found[w] for w in list(found)[:3])
    for text, a, b in (("1 → 100 labels", few, many), ("twice the voxels", many, long)):
        times, peak = b["seconds"] / a["seconds"], b["peak_mb"] / a["peak_mb"]
        print(f"{text}: {times:.2f} times the time, {peak:.2f} times the memory")


def ours_of(name: str, target: Spacing, environment: dict[str, str], folder: Path) -> dict[str, float]:
    """The median of three runs from nothing: they are short beside nnunetv2's, and noise tells."""
    runs = []
    for _ in range(3):
        shutil.rmtree(folder / "nnUNet_preprocessed" / "Dataset900_Unified", ignore_errors=True)
        runs.append(measure("satunet", name, target, environment))
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--full", action="store_true", help="scans of 512 × 512 × 200 and 256 × 256 × 180: minutes")
    parser.add_argument("--task", nargs=5, metavar=("TASK", "NAME", "X", "Y", "Z"))
    arguments = parser.parse_args()
    if arguments.task:
        task, name, *spacing = arguments.task
        tasks = {"satunet": satunet_case, "nnunetv2": nnunetv2_case, "patches": read_patches}
        tasks[task](name, tuple(float(s) for s in spacing))
    else:
        main(arguments.full)
