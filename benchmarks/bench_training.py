"""A training step against nnU-Net's own, and what it is made of: queries, memory of the loss, data.

    python benchmarks/bench_training.py [--patch 32] [--features 32] [--rounds 3] [--classes 32]

Both sides have the same plain-conv U-Net, patch and batch, and take turns in one process. nnU-Net's side is its own
trainer's network, loss and ``train_step``, through satunet's ``SpecialistTrainer``, on random patches of a data set of
``--classes`` classes. Ours is ``SATTrainer.train_step`` on batches of its own loader.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import header

QUERIES = (32, 256)


def make_raw(raw: Path, classes: int, size: int) -> str:
    """A dataset of two noisy scans with ``classes`` boxes in rows and columns."""
    import nibabel as nib

    from satunet.jobs.files import write_json

    name = "Dataset001_Bench"
    rng = np.random.default_rng(0)
    cells = int(np.ceil(classes ** (1 / 3)))
    index = np.minimum(np.arange(size) * cells // size, cells - 1)
    grid = (index[:, None, None] * cells + index[None, :, None]) * cells + index[None, None, :] + 1
    labels = np.where(grid <= classes, grid, 0).astype(np.uint16)
    for number in range(2):
        image = labels * 10 + rng.normal(0, 20, labels.shape)
        for folder, suffix, array in (("imagesTr", "_0000", image.astype(np.int16)), ("labelsTr", "", labels)):
            (raw / name / folder).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, np.eye(4)), raw / name / folder / f"case{number}{suffix}.nii.gz")
    write_json(
        raw / name / "dataset.json",
        {
            "channel_names": {"0": "MRI"},
            "labels": {"background": 0} | {f"structure {i}": i for i in range(1, classes + 1)},
            "numTraining": 2,
            "file_ending": ".nii.gz",
        },
    )
    return name


def our_trainer(queries: int, workers: int = 0) -> Any:
    """A trainer that draws ``queries`` queries per patch, ready for steps."""
    from satunet.datasets.unified import UnifiedFolder
    from satunet.jobs.files import read_json
    from satunet.plan import UnifiedPlan
    from satunet.trainers.config import TrainingConfig
    from satunet.trainers.unified.trainer import SATTrainer

    folder = UnifiedFolder().folder
    plan = UnifiedPlan.load(UnifiedFolder().plan)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trainer = SATTrainer(plan.to_nnunet(), plan.configuration, "all", read_json(folder / "dataset.json"), device)
    trainer.configure(
        TrainingConfig.from_recipe("sat", queries_per_scan=queries, workers=workers, tensorboard=False, steps=10_000)
    )
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    return trainer


def nnunet_trainer(plan: Any, classes: int) -> Any:
    """nnU-Net's trainer with the plan's backbone, patch and batch; its data set has ``classes`` classes."""
    from satunet.trainers.specialist.trainer import SpecialistTrainer

    plans = plan.to_nnunet() | {"continue_training": False}
    architecture = plans["configurations"][plan.configuration]["architecture"]
    architecture["network_class_name"] = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
    architecture["arch_kwargs"] |= {
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    architecture["_kw_requires_import"] = ["conv_op", "norm_op", "dropout_op", "nonlin"]
    plans["configurations"][plan.configuration]["data_identifier"] = "of_nnunet"
    folder = plan.unified_folder.folder / "of_nnunet"
    folder.mkdir(exist_ok=True)
    (folder / "case.b2nd").touch()  # initialisation looks at the kind of files, the steps at none
    labels = {"background": 0} | {f"structure {i}": i for i in range(1, classes + 1)}
    dataset = {"channel_names": {"0": "MRI"}, "labels": labels, "numTraining": 2, "file_ending": ".nii.gz"}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    os.environ["nnUNet_compile"] = "f"  # neither side is compiled
    trainer = SpecialistTrainer(plans, plan.configuration, "all", dataset, device)  # type: ignore[arg-type]
    trainer.initialize()
    trainer.network.train()
    return trainer


def nnunet_batch(trainer: Any, plan: Any, classes: int) -> dict[str, Any]:
    """Random patches with targets at every scale nnU-Net supervises."""
    image = torch.randn(plan.batch_size, 1, *plan.patch_size)
    target = torch.randint(0, classes + 1, (plan.batch_size, 1, *plan.patch_size)).float()
    scales = trainer._get_deep_supervision_scales()
    targets = [
        torch.nn.functional.interpolate(target, scale_factor=tuple(s), mode="nearest").to(torch.int16) for s in scales
    ]
    return {"data": image, "target": targets}


def clock() -> float:
    """Seconds: of this process on a CPU, all threads together, so that other jobs on the machine do not count."""
    return time.perf_counter() if torch.cuda.is_available() else time.process_time()


def interleaved(steps: dict[str, Any], rounds: int) -> dict[str, list[float]]:
    """Seconds of each step, the sides taking turns; the first round warms up."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            began = clock()
            step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number:
                times[name].append(clock() - began)
    return times


def loss_memory(queries: int, size: int) -> None:
    """Print the peak memory (MB) that the loss adds to a process that holds its inputs."""
    from satunet.trainers.unified.loss import prompted_loss

    maps = torch.randn(1, 32, size, size, size, requires_grad=True)
    labels = torch.randint(0, 50, (1, size, size, size))
    embeddings = torch.randn(1, queries, 33, requires_grad=True)
    membership = torch.rand(1, queries, 50) > 0.9
    valid = torch.ones(1, queries, dtype=torch.bool)
    before = _high_water_mb()
    prompted_loss([maps], [embeddings], labels, membership, valid, chunk=16).total.backward()
    print(_high_water_mb() - before)


def _high_water_mb() -> float:
    # Not ru_maxrss: a child inherits its parent's.
    status = Path("/proc/self/status").read_text()
    return float(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) / 1024


def peak(queries: int, size: int) -> float:
    """:func:`loss_memory` in a process of its own."""
    command = [sys.executable, __file__, "--loss_memory", str(queries), "--patch", str(size)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patch", type=int, default=32)
    parser.add_argument("--features", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--classes", type=int, default=32, help="of nnU-Net's data set")
    parser.add_argument("--loss_memory", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.loss_memory:
        loss_memory(given.loss_memory, given.patch)
        return
    header("torch", "nnunetv2")
    torch.set_num_threads(1)  # of a CPU: the ratio is asked for, and threads that wait count as work
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder), given)
    few, many = peak(8, given.patch), peak(256, given.patch)
    print(f"peak memory of the loss, {given.patch}³ voxels: 8 queries {few:.0f} MB, 256 queries {many:.0f} MB, "
          f"{many / few:.2f} times")  # fmt: skip


def compare(root: Path, given: argparse.Namespace) -> None:
    """Time the sides and the loader."""
    for name in ("raw", "preprocessed", "results"):
        (root / name).mkdir()
        os.environ[f"nnUNet_{name}"] = str(root / name)
    from satunet.planners.options import PlanOptions
    from satunet.preprocessing.pipeline import plan_and_preprocess

    most = max(QUERIES)
    name = make_raw(root / "raw", most, given.patch)
    patch = (given.patch,) * 3
    plan_and_preprocess(
        [name],
        PlanOptions(
            spacing_mm=(1, 1, 1), patch_size=patch, batch_size=2, base_features=given.features, gpu_memory_gb=8
        ),
    )
    ours = {queries: our_trainer(queries) for queries in QUERIES}
    plan = ours[most].plan
    # A batch whose crops show all classes: augmentation may zoom some out of it.
    batches = {q: next(b for b in t.dataloader_train if int(b.valid.sum()) == 2 * q) for q, t in ours.items()}
    peers = {classes: nnunet_trainer(plan, classes) for classes in (given.classes, 2)}
    peer_batches = {classes: nnunet_batch(t, plan, classes) for classes, t in peers.items()}
    steps: dict[str, Any] = {f"satunet, {q} queries": lambda q=q: ours[q].train_step(batches[q]) for q in QUERIES}
    steps |= {f"nnU-Net, {c} classes": lambda c=c: peers[c].train_step(peer_batches[c]) for c in peers}
    times = {k: statistics.median(v) for k, v in interleaved(steps, given.rounds).items()}
    print(f"a step: batch {plan.batch_size}, patch {plan.patch_size}, features {plan.network.features_per_stage}, "
          f"{_precision(ours[most])}, {'seconds' if torch.cuda.is_available() else 'seconds of one core'}")  # fmt: skip
    for what, value in times.items():
        print(f"  {what}: {value:.3f} s")
    few, many = (times[f"satunet, {q} queries"] for q in QUERIES)
    for classes in peers:
        print(
            f"32 queries against nnU-Net with {classes} classes: {few / times[f'nnU-Net, {classes} classes']:.2f} times"
        )
    print(f"256 queries against 32: {many / few:.2f} times")
    trainer = ours[QUERIES[0]]
    print(
        "phases of the last 32-query step, by the wall clock: "
        + ", ".join(f"{k} {v:.3f} s" for k, v in trainer.stepper.clock.seconds().items())
    )
    began, count = clock(), 0
    while clock() - began < 5:
        next(trainer.dataloader_train)
        count += 1
    rate = count / (clock() - began)
    print(f"the loader alone, in this process: {rate:.1f} batches/s, {rate * few:.1f} times what the step consumes")


def _precision(trainer: Any) -> str:
    from satunet.compute.devices import precision_for

    return str(precision_for(trainer.device, trainer.config.precision)).removeprefix("torch.")


if __name__ == "__main__":
    main()
