"""A fold's confidence: what fingerprints say of the classes, and a file beside the weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from satunet.confidence.calibration import Calibration
from satunet.confidence.evidence import Evidence
from satunet.datasets.raw import load_dataset, scan_id
from satunet.images.image import read_label_map
from satunet.jobs.files import read_json
from satunet.jobs.records import to_plain
from satunet.trainers.unified.confidence import calibrate_fold, training_cases
from satunet.trainers.unified.validation import count_voxels

from .helpers import config, fold_folder, make_trainer


def test_sizes_and_places_are_those_of_the_label_maps(planned: Path) -> None:
    trainer = make_trainer(config(steps=1))
    trainer.initialize()
    space, datasets = trainer.setup.space, trainer.plan.datasets
    found = list(training_cases(space, datasets, without=set()))
    seen = 0
    for name in datasets:
        own = [c for c in found if c.dataset == name]
        for case, known in zip(load_dataset(name).training_cases(), own, strict=True):
            assert case.label is not None
            labels = read_label_map(case.label)
            for class_name, ids in space.ids[name].items():
                inside = np.argwhere(np.isin(labels.array, ids))
                if not len(inside):
                    assert class_name not in known.volumes_ml
                    continue
                seen += 1
                assert known.volumes_ml[class_name] == pytest.approx(len(inside) * labels.grid.voxel_ml, rel=1e-3)
                centre = labels.grid.affine @ np.append(inside.mean(0), 1)
                assert known.centres_mm[class_name] == pytest.approx(tuple(centre[:3]), abs=0.02)
    assert seen > 5
    first = load_dataset(datasets[0]).training_cases()[0].identifier
    fewer = list(training_cases(space, datasets, without={(datasets[0], first)}))
    assert len(fewer) == len(found) - 1


def test_a_validation_leaves_a_calibration_beside_the_weights(planned: Path) -> None:
    trainer = make_trainer(config(steps=1))
    trainer.run_training()
    trainer.perform_actual_validation()
    case = next((fold_folder() / "validation" / "scans").iterdir())
    evidence = read_json(case)["evidence"]
    assert set(evidence) == set(read_json(case)["metrics"])
    scan = scan_id(trainer.plan.datasets[0], "a", 0)
    good = to_plain(Evidence(peak=1, agreement=1, volume_ml=9, inside=0.9, overlap=0.9, whole=1, free=1))
    cases = [
        {"scan": scan, "metrics": {"liver": count_voxels(10, 10, 9, 99)}, "evidence": {"liver": good}},
        {
            "scan": scan,
            "metrics": {"liver": count_voxels(0, 0, 0, 99)},
            "evidence": {"liver": to_plain(Evidence(peak=0))},
        },
    ]
    made = calibrate_fold(trainer.setup, cases, fold_folder(), "abc")
    assert made is not None
    assert Calibration.load(fold_folder()) == made
    assert (made.weights_hash, made.masks, made.absent) == ("abc", 2, 1)
    assert "liver" in made.statistics.sizes
    assert calibrate_fold(trainer.setup, cases[1:], fold_folder(), "abc") is None
    assert Calibration.load(fold_folder()) is None  # that of before says nothing of these weights
