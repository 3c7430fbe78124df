"""A step of a large batch in parts is the step of the whole."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from satunet.datasets.paths import preprocessed_dir
from satunet.network.model import PromptedUNet
from satunet.plan import UnifiedPlan
from satunet.trainers.unified.stepping import Stepper

from .helpers import NAME, config, losses_of, make_trainer


def test_a_batch_in_parts_is_the_batch(planned: Path) -> None:
    trainer = make_trainer(config(batch_size=3))
    trainer.on_train_start()
    batch = next(trainer.dataloader_train)
    parts = [*batch.split(2)]
    assert [p.scans for p in parts] == [batch.scans[:2], batch.scans[2:]]
    assert [p.names for p in parts] == [batch.names[:2], batch.names[2:]]
    for name in ("image", "labels", "queries", "membership", "valid", "positive", "modality"):
        assert torch.equal(torch.cat([getattr(p, name) for p in parts]), getattr(batch, name))
    assert [*batch.split(3)] == [batch]


def test_gradients_are_clipped_to_their_norm(planned: Path) -> None:
    trainer = make_trainer(config(precision="float32", batch_size=2))
    trainer.on_train_start()
    batch = next(trainer.dataloader_train)
    trainer.network.eval()

    def norm(clip: float) -> float:
        taken = dataclasses.replace(trainer.config, gradient_clip=clip, learning_rate=1e-30)
        sgd = torch.optim.SGD(trainer.network.parameters())
        Stepper(trainer.network, sgd, None, taken, trainer.device, at_once=2).take(batch, 0)
        return sum(float(p.grad.square().sum()) for p in trainer.network.parameters() if p.grad is not None) ** 0.5

    free = norm(1e9)
    assert norm(free / 3) == pytest.approx(free / 3, rel=1e-3)
    assert norm(2 * free) == pytest.approx(free, rel=1e-3)


def test_gradients_add_up_to_those_of_the_whole_step(planned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    forward = PromptedUNet.encode_image
    monkeypatch.setattr(
        PromptedUNet, "encode_image", lambda self, image: (seen.append(len(image)), forward(self, image))[1]
    )
    shared: dict[str, Any] = {"precision": "float32", "batch_size": 4, "steps": 4, "steps_per_epoch": 4}
    whole = losses_of(make_trainer(config(**shared)))
    assert set(seen) == {4}
    seen.clear()
    parts = losses_of(make_trainer(config(**shared, patches_at_once=3)))
    assert seen[:2] == [3, 1]
    assert max(seen) == 3, "validation works on as many at once"
    assert parts == pytest.approx(whole, rel=1e-4)
    trainer = make_trainer(config(**shared))
    trainer.on_train_start()
    batch = next(trainer.dataloader_train)
    batch = dataclasses.replace(batch, image=batch.image.double(), queries=batch.queries.double())
    trainer.network.double().eval()  # dropout draws anew for every part

    def gradients(at_once: int) -> list[torch.Tensor]:
        taken = dataclasses.replace(trainer.config, gradient_clip=1e9, learning_rate=1e-30)
        sgd = torch.optim.SGD(trainer.network.parameters())
        result = Stepper(trainer.network, sgd, None, taken, trainer.device, at_once=at_once).take(batch, 0)
        assert result.of_query.shape == batch.valid.shape
        return [p.grad.clone() for p in trainer.network.parameters() if p.grad is not None]

    for a, b in zip(gradients(4), gradients(1), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-12)


def test_the_plan_says_how_many_and_how_large_patches_are(planned: Path) -> None:
    file = preprocessed_dir() / NAME / "satunetPlans.json"
    plan = dataclasses.replace(UnifiedPlan.load(file), batch_size=5, patches_at_once=2, training_patch_size=(16, 16, 8))
    plan.save(file)
    trainer = make_trainer(config(batch_size=None))
    trainer.on_train_start()
    batch = next(trainer.dataloader_train)
    assert batch.image.shape == (5, 1, 16, 16, 8)
    assert trainer.stepper is not None and trainer.stepper.at_once == 2
    assert trainer.plan.patch_size == (16, 16, 16), "windows of prediction stay"
