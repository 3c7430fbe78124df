"""A loss curve that a change of the code must not change: CPU, float32, fixed seed, 30 steps of a tiny network.

A change that is meant to change it (sampling, initialisation, recipe) writes it anew::

    python -m pytest tests/trainers/test_golden.py --golden

The tolerance of 0.1 % a step is a hundred times what other thread counts and memory layouts were seen to change.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .helpers import config, losses_of, make_trainer

FILE = Path(__file__).with_name("golden_losses.json")


def test_thirty_steps_have_the_losses_they_had(planned: Path, request: pytest.FixtureRequest) -> None:
    changes = {"steps": 30, "warmup_steps": 5, "steps_per_epoch": 30, "batch_size": 2, "learning_rate": 5e-3}
    losses = losses_of(make_trainer(config(**changes)))
    if request.config.getoption("--golden"):
        FILE.write_text(json.dumps([round(loss, 6) for loss in losses], indent=1) + "\n")
    assert losses == pytest.approx(json.loads(FILE.read_text()), rel=1e-3)
    assert sum(losses[-5:]) < 0.93 * sum(losses[:5]), "and it learns"
