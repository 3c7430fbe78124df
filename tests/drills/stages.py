"""Every command that takes long, on a dataset of a few seconds, one after the other."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

STAGES = (
    "convert",
    "fingerprint",
    "plan",
    "preprocess",
    "train",
    "predict",
    "combine",
    "evaluate",
    "benchmark",
    "export",
)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A command.

    Attributes:
        name: What it is called in figures.
        arguments: Of its first run.
        again: Of the run that goes on after a fault.
        before: What has to be done to the folder before.
    """

    name: str
    arguments: tuple[str, ...]
    again: tuple[str, ...]
    before: Callable[[], None] = lambda: None


def stages(work: Path) -> list[Stage]:
    """The commands, in the order in which each finds what it needs; all write below ``work``."""
    model = str(work / "results/Dataset900_Unified/SATTrainer__satunetPlans__3d_fullres")
    tiny = ("--spacing", "6", "6", "6", "--gpu_memory", "1", "--batch_size", "1", "--base_features", "4",
            "--patch_size", "16", "16", "16")  # fmt: skip
    train = ("train", "-d", "900", "-f", "0", "--recipe", "short", "--steps", "4", "--steps_per_epoch", "2",
             "--validation_steps", "1", "--queries", "4", "--workers", "0", "-device", "cpu")  # fmt: skip
    scan, reference = "imagesTs/case_02_0000.nii.gz", "labelsTs"
    data = work / "raw" / "Dataset901_SyntheticCT"
    commands: dict[str, tuple[str, ...]] = {
        "convert": ("convert", "-i", str(work / "Task07_Small"), "-d", "7", "--link", "copy", "-np", "0"),
        "fingerprint": ("fingerprint", "-d", "901", "902", "-np", "0"),
        "plan": ("plan", "-d", "901", "902", *tiny),
        "preprocess": ("preprocess", "-d", "900", "-np", "0"),
        "train": train,
        "predict": ("predict", "-i", str(data / scan), "-o", str(work / "out"), "-m", model, "-p", "liver", "spleen",
                    "--probabilities", "--statistics", "-device", "cpu"),
        "combine": ("predict", "-i", str(data / scan), "-o", str(work / "maps"), "-m", model, "--all",
                    "--combine", "--preview", "-device", "cpu"),
        "evaluate": ("evaluate", "-p", str(work / "maps"), "-r", str(data / reference), "--labels",
                     str(data / "dataset.json"), "-o", str(work / "scores"), "-np", "0"),
        "benchmark": ("benchmark", "-d", "901", "-o", str(work / "bench"), "-m", model, "-f", "0", "-np", "0", "-device",
                      "cpu"),
        "export": ("export", "-m", model, "-f", "0", "-o", str(work / "exported")),
    }  # fmt: skip
    again = {"train": (*train, "--c")}
    before: dict[str, Callable[[], None]] = {
        "predict": lambda: see_something(Path(model) / "fold_0" / "checkpoint_final.pth")
    }
    return [
        Stage(name=n, arguments=commands[n], again=again.get(n, commands[n]), before=before.get(n, lambda: None))
        for n in STAGES
    ]


def see_something(checkpoint: Path) -> None:
    """Have a network of a few steps find masks: one that sees nothing writes none."""
    import torch

    content = torch.load(checkpoint, map_location="cpu", weights_only=False)
    content["network_weights"]["logit_bias"].zero_()
    torch.save(content, checkpoint)


def write_empty_pictures() -> None:
    """Have nnunetv2 write its picture of an epoch without drawing it, which takes half of such a short training."""
    from nnunetv2.training.logging.nnunet_logger import LocalLogger

    def plot(self: LocalLogger, folder: str) -> None:
        Path(folder, "progress.png").write_bytes(b"\x89PNG")

    LocalLogger.plot_progress_png = plot


def prepare(work: Path) -> None:
    """What the first stage finds."""
    import json
    import shutil

    from satunet.demo.synthetic import make_synthetic_datasets

    for name in ("raw", "preprocessed", "results"):
        (work / name).mkdir(parents=True)
    make_synthetic_datasets(work / "raw", cases=2)
    task = work / "Task07_Small"  # as the Medical Segmentation Decathlon publishes it
    data = work / "raw" / "Dataset901_SyntheticCT"
    for name in ("imagesTr", "labelsTr", "imagesTs"):
        (task / name).mkdir(parents=True)
    for case in ("case_00", "case_01"):
        shutil.copy(data / "imagesTr" / f"{case}_0000.nii.gz", task / "imagesTr" / f"{case}.nii.gz")
        shutil.copy(data / "labelsTr" / f"{case}.nii.gz", task / "labelsTr" / f"{case}.nii.gz")
    labels = json.loads((data / "dataset.json").read_text())["labels"]
    content = {
        "name": "Small", "modality": {"0": "CT"}, "labels": {str(i): name for name, i in labels.items()},
        "numTraining": 2, "numTest": 0, "test": [],
        "training": [{"image": f"./imagesTr/{c}.nii.gz", "label": f"./labelsTr/{c}.nii.gz"} for c in ("case_00", "case_01")],
    }  # fmt: skip
    (task / "dataset.json").write_text(json.dumps(content))


def set_environment(work: Path) -> None:
    """nnU-Net's folders and a cache of our own."""
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str(work / name)
    os.environ["SATUNET_CACHE"] = str(work.parent / "cache")


def run_forked(arguments: tuple[str, ...], told: Path, before: Callable[[], None], after: Callable[[], None]) -> int:
    """Run a command in a process that is forked from this one, where everything is imported already.

    Args:
        arguments: Of ``satunet``.
        told: File for what it prints.
        before: Called in the process before the command.
        after: Called in the process after it.

    Returns:
        Exit code, negative for a signal.
    """
    return ended(start_forked(arguments, told, before, after))


def ended(child: int) -> int:
    """Wait for a process; its exit code, negative for a signal."""
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def start_forked(arguments: tuple[str, ...], told: Path, before: Callable[[], None], after: Callable[[], None]) -> int:
    """As :func:`run_forked`, but give the process's number at once."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = _command(arguments, told, before, after)
        except BaseException:  # of the drill itself
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def _command(arguments: tuple[str, ...], told: Path, before: Callable[[], None], after: Callable[[], None]) -> int:
    """As Python runs a script to its end."""
    import atexit
    import threading

    from satunet.cli import main

    handle = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(handle, stream)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    sys.argv = ["satunet", *arguments]
    code = 0
    if arguments[0] == "train":
        write_empty_pictures()
    before()
    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    after()
    sys.stdout.flush()
    return code


def make_world(work: Path) -> None:
    """Run every stage once, in this process: an example of every kind of file that satunet writes."""
    from satunet.cli import run

    set_environment(work)
    prepare(work)
    write_empty_pictures()
    for stage in stages(work):
        stage.before()
        if run(stage.arguments) != 0:
            raise RuntimeError(f"{stage.name} failed in the making of an example")


if __name__ == "__main__":
    make_world(Path(sys.argv[1]))
