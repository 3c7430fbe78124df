"""Killed runs, full disks, losses that are not finite, memory that runs out."""

from __future__ import annotations

import dataclasses
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from satunet.errors import SatunetError
from satunet.models.checkpoints import load_checkpoint
from satunet.network.config import NetworkConfig
from satunet.plan import UnifiedPlan
from satunet.trainers.unified.checkpointing import write_checkpoint
from satunet.trainers.unified.faults import BadSteps, explain_memory, smaller_patch

from .helpers import config, fold_folder, losses_of, make_trainer, step_losses

ROOT = Path(__file__).resolve().parents[2]
STEPS = 20
RUN = f"""
from nnunetv2.training.logging.nnunet_logger import LocalLogger
from tests.trainers.helpers import NAME, config
from satunet.trainers.unified.run import run_training
LocalLogger.plot_progress_png = lambda self, folder: None
changed = config(steps={STEPS}, tensorboard=True)
run_training(NAME, fold=0, config=changed, device="cpu", continue_training=True, validate=False)
"""


@pytest.mark.slow
def test_a_run_killed_at_any_moment_has_the_curve_of_an_unbroken_one(planned: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    folder = fold_folder()
    process = subprocess.Popen([sys.executable, "-c", RUN], env=environment, cwd=ROOT)
    while process.poll() is None and _age(folder) < 4:
        time.sleep(0.01)
    process.kill()  # wherever it is: in a step, a checkpoint, a picture
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
    subprocess.run([sys.executable, "-c", RUN], env=environment, cwd=ROOT, check=True)
    curve = step_losses(folder)
    broken = load_checkpoint(folder / "checkpoint_final.pth")["network_weights"]
    folder.rename(folder.with_name("killed"))
    whole = losses_of(make_trainer(config(steps=STEPS)))
    assert [curve[step] for step in range(STEPS)] == pytest.approx(whole, rel=1e-5)
    unbroken = load_checkpoint(folder / "checkpoint_final.pth")["network_weights"]
    for key, weight in unbroken.items():
        torch.testing.assert_close(broken[key], weight, rtol=1e-4, atol=1e-6)


def _age(folder: Path) -> int:
    """Epochs that were logged."""
    file = folder / "progress.jsonl"
    return len(file.read_text().splitlines()) if file.is_file() else 0


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "checkpoint_latest.pth"
    assert write_checkpoint(file, {"weights": torch.arange(5)}, required=True)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # a write beyond it fails, as on a full disk
    try:
        assert not write_checkpoint(file, {"weights": torch.zeros(1_000_000)}, required=False)
        with pytest.raises(SatunetError, match=r"checkpoint_latest\.pth cannot be written.*untouched.*--c"):
            write_checkpoint(file, {"weights": torch.zeros(1_000_000)}, required=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert torch.equal(load_checkpoint(file)["weights"], torch.arange(5))
    assert [p.name for p in tmp_path.iterdir()] == [file.name]


def test_a_full_disk_does_not_end_a_run(planned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(config(steps=4))

    def full(content: object, file: object) -> None:
        if trainer.current_epoch == 0:
            raise OSError(28, "No space left on device")
        real(content, file)

    real = torch.save
    monkeypatch.setattr(torch, "save", full)
    assert len(losses_of(trainer)) == 4
    assert (fold_folder() / "checkpoint_final.pth").is_file()


def test_gradients_that_are_not_finite_are_skipped_too(planned: Path) -> None:
    trainer = make_trainer(config(steps=2))
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    trainer.stepper.scaler = None  # type: ignore[union-attr]  # float16's scaler takes them for the search of its scale
    batch = next(trainer.dataloader_train)
    before = {k: v.clone() for k, v in trainer.network.state_dict().items()}
    weight = next(trainer.network.parameters())
    hook = weight.register_hook(lambda gradient: gradient * torch.inf)
    assert np.isnan(trainer.train_step(batch, 7)["loss"])
    hook.remove()
    assert all(torch.equal(v, before[k]) for k, v in trainer.network.state_dict().items())
    assert not trainer.optimizer.state, "the optimizer has not seen them"
    log = Path(str(trainer.log_file)).read_text()
    assert "step 7" in log and "gradients are not finite" in log and batch.scans[0] in log
    assert np.isfinite(trainer.train_step(batch, 8)["loss"])


def test_float16_goes_on_after_a_loss_that_is_not_finite(planned: Path) -> None:
    trainer = make_trainer(config(steps=2))
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    scaler = trainer.stepper.scaler = torch.GradScaler("cpu", init_scale=1024.0)
    batch = next(trainer.dataloader_train)
    broken = dataclasses.replace(batch, image=batch.image * torch.nan)
    assert np.isnan(trainer.train_step(broken, 0)["loss"])
    assert scaler.get_scale() == 512
    before = {k: v.clone() for k, v in trainer.network.state_dict().items()}
    assert np.isfinite(trainer.train_step(batch, 1)["loss"])
    assert any(not torch.equal(v, before[k]) for k, v in trainer.network.state_dict().items())


def test_gradients_that_are_infinite_at_any_scale_are_counted(planned: Path) -> None:
    trainer = make_trainer(config(steps=2))
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    trainer.stepper.scaler = torch.GradScaler("cpu", init_scale=2.0)  # type: ignore[union-attr]
    batch = next(trainer.dataloader_train)
    next(trainer.network.parameters()).register_hook(lambda gradient: gradient * torch.inf)
    counts = []
    for step in range(4):  # at the scales 2, 1, 1/2, 1/4
        trainer.train_step(batch, step)
        counts.append(trainer.bad_steps.count)
    assert counts == [0, 0, 1, 2]  # the scaler looks for a scale first


def test_skipped_steps_have_a_limit_in_a_window() -> None:
    bad = BadSteps(limit=2, window=100)
    bad.add(0, float("nan"), ["a"])
    bad.add(50, float("inf"), ["b"])
    bad.add(120, 1.0, ["c"])  # the first is forgotten
    again = BadSteps(limit=2, window=100)
    again.load_state_dict(bad.state_dict())
    with pytest.raises(SatunetError, match=r"3 of the last 100 steps.*scans: d\. Lower --learning_rate"):
        again.add(121, float("nan"), ["d"])
    assert again.count == 4


def test_out_of_memory_names_what_to_lower() -> None:
    network = NetworkConfig.auto(
        features_per_stage=(4, 8), strides=((1, 1, 1), (2, 2, 2)), kernel_sizes=((3, 3, 3),) * 2, text_dim=8
    )
    plan = UnifiedPlan(spacing_mm=(1, 1, 1), patch_size=(32, 48, 16), network=network)
    assert smaller_patch(plan) == (32, 46, 16)
    message = r"step 3: 2 patches of \(32, 48, 16\).*satunetPlans\.json.*--patches_at_once 1.*\(32, 46, 16\)"
    for error in (torch.OutOfMemoryError("CUDA out of memory"), MemoryError(),
                  RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")):  # fmt: skip
        with pytest.raises(SatunetError, match=message), explain_memory(plan, 2, "in step 3"):
            raise error
    with pytest.raises(RuntimeError, match="shape"), explain_memory(plan, 1, ""):
        raise RuntimeError("shape mismatch")


def test_a_run_stops_in_time_and_goes_on(planned: Path) -> None:
    whole = losses_of(make_trainer(config()))
    (fold_folder() / "checkpoint_final.pth").unlink()
    first = make_trainer(config())
    first.deadline = time.monotonic()
    begun = losses_of(first)
    assert len(begun) == 2
    second = make_trainer(config())
    second.load_checkpoint(fold_folder() / "checkpoint_latest.pth")
    assert begun + losses_of(second) == pytest.approx(whole, rel=1e-6)
