"""72 datasets, 22,000 scans: what every command pays for their number alone.

Real raw datasets, fingerprints, store, manifests and splits, made by the commands themselves of scans of a few voxels;
names, classes and counts are those of SAT-DS where its ``dataset.json`` files are given. Then, each in a process of its
own: the plan again with a 73rd dataset, preprocessing again when nothing has changed, the start of a training to its
first batch and the memory of a worker that loads batches, and a prediction of a folder that is done already.

    benchmarks/bench_scale.py --published FOLDER --scans 22000 --work FOLDER   # the folder is kept and used again
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import header

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

DATASETS, SCANS = 72, 22_000
SHAPE = (20, 20, 16)
ORGANS = (
    "kidney",
    "lung",
    "femur",
    "hip",
    "scapula",
    "humerus",
    "clavicle",
    "adrenal gland",
    "parotid gland",
    "eye",
    "breast",
)
_SATUNET = (sys.executable, "-m", "satunet")
_TINY = ("--spacing", "3", "3", "3", "--patch_size", "16", "16", "16", "--base_features", "4", "--batch_size", "1")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--published", type=Path, help="folder of folders with a dataset.json, as of SAT-DS")
    parser.add_argument("--scans", type=int, default=SCANS)
    parser.add_argument("--work", type=Path, help="where the data are made, and found again by the next run")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        return _child(*given.child)
    if given.work is None:
        with tempfile.TemporaryDirectory() as folder:
            return _measure(Path(folder), given)
    given.work.mkdir(parents=True, exist_ok=True)
    return _measure(given.work, given)


def _measure(work: Path, given: argparse.Namespace) -> int:
    header("torch", "nnunetv2")
    for name in ("raw", "preprocessed", "results"):
        (work / name).mkdir(exist_ok=True)
        os.environ[f"nnUNet_{name}"] = str(work / name)
    os.environ["SATUNET_CACHE"] = str(work / "cache")
    every = _make_raw(work / "raw", given.published, given.scans)
    first, last = every[:-1], every[-1]
    ids = [name[7:10] for name in first]
    print(f"{len(first)} datasets, {len(list((work / 'raw').glob('*/imagesTr/*.nii.gz')))} scans")
    done = work / "made"
    if not done.exists():
        _tell("fingerprints, made", "fingerprint", "-d", *ids)
        _tell("plan", "plan", "-d", *ids, *_TINY)
        _tell("preprocessing, made", "preprocess", "-d", "900")
        done.touch()
    _tell("fingerprints, nothing new", "fingerprint", "-d", *ids)
    _tell("fingerprint of a 73rd dataset", "fingerprint", "-d", last[7:10])
    _tell("plan with the 73rd", "plan", "-d", *ids, last[7:10], *_TINY)
    _tell("plan without it", "plan", "-d", *ids, *_TINY)
    _tell("preprocessing, nothing new", "preprocess", "-d", "900")
    _predict(work)
    for turn in ("first", "second"):
        _child_tells(f"start of training, {turn} time", "start")
    _child_tells("a worker that loads batches", "worker")
    return 0


def _predict(work: Path) -> None:
    """A folder of 1,000 scans, 22 prompts each: once, and again when all of it is done."""
    from satunet.geometry import Grid
    from satunet.images.image import write_volume
    from tests.prediction.conftest import write_model

    scans, model = work / "scans", work / "model"
    if not model.is_dir():
        write_model(model)
        for number in range(1000):
            image = np.random.default_rng(number).normal(0, 100, SHAPE).astype(np.float32)
            write_volume(scans / f"scan_{number:04d}.nii.gz", image, like=Grid(shape=SHAPE, affine=np.eye(4)))
    prompts = [f"{side} {organ}" for organ in ORGANS for side in ("left", "right")]
    arguments = ("predict", "-i", str(scans), "-o", str(work / "out"), "-m", str(model), "--modality", "mri",
                 "-device", "cpu", "-p", *prompts)  # fmt: skip
    if not (work / "out").is_dir():
        _tell("1,000 scans x 22 prompts, predicted", *arguments)
    _tell("1,000 scans x 22 prompts, all done", *arguments)


def _make_raw(folder: Path, published: Path | None, scans: int) -> list[str]:
    """Raw datasets of tiny scans, one more than asked for; names of all."""
    from satunet.geometry import Grid
    from satunet.images.image import write_label_map, write_volume

    known = sorted(published.iterdir()) if published is not None else []
    kinds = [json.loads((d / "dataset.json").read_text()) for d in known] or [
        {"channel_names": {"0": "CT" if i % 2 else "MRI"}, "numTraining": 1, "file_ending": ".nii.gz",
         "labels": {"background": 0} | {f"structure {i * 5 + k}": k + 1 for k in range(11)}} for i in range(DATASETS)
    ]  # fmt: skip
    names = [d.name for d in known] or [f"Dataset{i + 1:03d}_Made" for i in range(DATASETS)]
    counts = np.array([max(1, int(k["numTraining"])) for k in kinds], dtype=float)
    counts = np.maximum(5, counts * scans / counts.sum()).round().astype(int)
    names, kinds, counts = [*names, "Dataset173_New"], [*kinds, kinds[0]], np.append(counts, 5)
    grid = Grid(shape=SHAPE, affine=np.diag([3.0, 3.0, 3.0, 1.0]))
    for name, kind, count in zip(names, kinds, counts.tolist(), strict=True):
        if (folder / name / "dataset.json").is_file():
            continue
        numbers = [i for i in kind["labels"].values() if isinstance(i, int) and i]
        for case in range(count):
            rng = np.random.default_rng([int(name[7:10]), case])
            image = rng.normal(0, 100, SHAPE).astype(np.float32)
            labels = np.zeros(SHAPE, dtype=np.uint8)
            chosen = rng.permutation(numbers)[:60]
            labels.ravel()[: 16 * len(chosen)] = np.repeat(chosen, 16)
            place = folder / name
            write_volume(place / "imagesTr" / f"case_{case:05d}_0000.nii.gz", image, like=grid)
            write_label_map(place / "labelsTr" / f"case_{case:05d}.nii.gz", labels, like=grid)
        (folder / name / "dataset.json").write_text(json.dumps(kind | {"numTraining": count}))
    return names


def _tell(what: str, *arguments: str) -> None:
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([*_SATUNET, *arguments], capture_output=True, text=True, check=False)
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - begin
    if done.returncode:
        print(done.stdout[-2000:], done.stderr[-2000:])
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{what}: {wall:.1f} s, {busy:.1f} s of a processor, exit code {done.returncode}", flush=True)


def _child_tells(what: str, name: str) -> None:
    done = subprocess.run([sys.executable, __file__, "--child", name, "0"], capture_output=True, text=True, check=False)
    print(f"{what}: {done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr[-2000:]}", flush=True)


def _child(name: str, _: str) -> int:
    return {"start": _start, "worker": _worker}[name]()


def _setup() -> tuple[Any, Any]:
    from satunet.datasets.unified import UnifiedFolder
    from satunet.plan import UnifiedPlan
    from satunet.trainers.config import TrainingConfig
    from satunet.trainers.unified.setup import TrainingSetup

    plan = UnifiedPlan.load(UnifiedFolder(name="Dataset900_Unified").plan)
    setup = TrainingSetup.read(plan, 0)
    return setup, TrainingConfig.from_recipe("short", steps=4, batch_size=1, workers=0)


def _batches(setup: Any, config: Any, *, few: bool = False) -> Any:
    from satunet.trainers.unified.batches.loading import StepBatches

    return StepBatches(setup, setup.split.train[: 1 if few else None], config)


def _start() -> int:
    """Imports, plan, label space, text bank, store and splits, to the first batch."""
    begin, used = time.perf_counter(), time.process_time()
    setup, config = _setup()
    ready = time.perf_counter()
    train = _batches(setup, config)
    train[0]
    print(
        f"{time.perf_counter() - begin:.1f} s, {time.process_time() - used:.1f} s of a processor "
        f"(what it is made of {ready - begin:.1f} s), {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB"
    )
    return 0


def _worker() -> int:
    """Memory that a spawned worker takes, of its own and shared, with all scans and with one."""
    import multiprocessing

    setup, config = _setup()
    told = []
    for few in (False, True):
        train = _batches(setup, config, few=few)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            told.append(pool.apply(_loads, (train,)))
    print(f"{told[0]:.0f} MB of its own with all scans, {told[1]:.0f} MB with one")
    return 0


def _loads(train: Any) -> float:
    for step in range(4):
        train[step]
    text = Path("/proc/self/smaps_rollup").read_text()
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Private_")) / 1024


if __name__ == "__main__":
    sys.exit(main())
