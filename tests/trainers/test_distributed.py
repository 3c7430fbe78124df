"""Two processes that torchrun starts take the steps that one takes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from satunet.errors import UserError
from satunet.models.checkpoints import load_checkpoint
from satunet.trainers.config import TrainingConfig
from satunet.trainers.unified.loss import prompted_loss
from satunet.trainers.unified.run import run_training

from .helpers import NAME, config, fold_folder, make_trainer, step_losses

ROOT = Path(__file__).resolve().parents[2]
ARGUMENTS = ("train", "-d", "900", "-f", "0", "--recipe", "nnunet", "--steps", "4", "--batch_size", "3",
             "--device", "cpu", "--precision", "float32", "--workers", "0")  # fmt: skip


@pytest.mark.slow
def test_two_processes_train_as_one(planned: Path) -> None:
    # Three patches over two processes: the first has two of them, so that a mean of means would be wrong.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*torchrun, "-m", "satunet", *ARGUMENTS]
    done = subprocess.run(command, env=environment, cwd=planned, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = fold_folder()
    together = load_checkpoint(folder / "checkpoint_final.pth")
    curve = step_losses(folder)
    assert (folder / "validation" / "summary.json").is_file()
    folder.rename(folder.with_name("together"))

    changes = {"steps": 4, "batch_size": 3, "precision": "float32", "workers": 0}
    run_training(NAME, fold=0, config=TrainingConfig.from_recipe("nnunet", **changes), device="cpu")
    alone = load_checkpoint(folder / "checkpoint_final.pth")
    assert curve == pytest.approx(step_losses(folder), rel=1e-5)
    assert len(curve) == 4
    assert alone["network_weights"].keys() == together["network_weights"].keys()
    for key, weight in alone["network_weights"].items():
        torch.testing.assert_close(together["network_weights"][key], weight, rtol=1e-4, atol=1e-6)
    assert alone["satunet"]["drawn"] == together["satunet"]["drawn"]
    assert alone["logging"]["val_losses"] == pytest.approx(together["logging"]["val_losses"], rel=1e-5)


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_parts_of_a_batch_are_the_batch(planned: Path, world_size: int) -> None:
    from satunet.trainers.unified.batches.loading import StepBatches

    trainer = make_trainer(config(batch_size=4))
    trainer.initialize()
    shared = (trainer.setup, trainer.do_split()[0], trainer.config)
    whole = StepBatches(*shared)[3]
    parts = [StepBatches(*shared, rank=r, world_size=world_size)[3] for r in range(world_size)]
    for rank, part in enumerate(parts):
        assert part.scans == whole.scans[rank::world_size]
        assert part.names == whole.names[rank::world_size]
        assert torch.equal(part.image, whole.image[rank::world_size])
    with pytest.raises(UserError, match=r"--batch_size 5"):
        StepBatches(*shared, rank=4, world_size=5)


def test_the_mean_over_processes_is_the_mean_over_queries() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(3, 4, 4, 4, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    embeddings = torch.randn(3, 5, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (3, 4, 4, 4), generator=generator)
    membership = torch.rand(3, 5, 3, generator=generator) > 0.5
    valid = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 0, 0, 0], [1, 1, 0, 0, 0]], dtype=torch.bool)
    whole = prompted_loss([maps], [embeddings], labels, membership, valid).total
    (expected,) = torch.autograd.grad(whole, maps)
    parts, gradients = [], []
    for places in ([0, 2], [1]):
        part = prompted_loss(
            [maps[places]], [embeddings[places]], labels[places], membership[places], valid[places], count=8 / 2
        ).total
        parts.append(part)
        gradients.append(torch.autograd.grad(part, maps)[0])
    torch.testing.assert_close(sum(parts) / 2, whole)
    torch.testing.assert_close(sum(gradients) / 2, expected)
