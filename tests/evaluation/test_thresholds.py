"""Thresholds are found where the labels were made with known ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from satunet.datasets.raw import read_dataset
from satunet.evaluation.benchmark import thresholds
from satunet.evaluation.benchmark.thresholds import (
    CANDIDATES,
    Thresholds,
    Tried,
    best_thresholds,
    judge_fairly,
    try_thresholds,
)
from satunet.geometry import Grid
from satunet.images.image import write_volume
from satunet.jobs.files import write_json
from satunet.network.model import ImageFeatures
from satunet.prediction import Predictor
from tests.prediction.conftest import Bright, make_model

SLOPE = 3.0


class Ramp(Bright):
    """Logits are three times the normalised image, whatever is asked."""

    def decode(self, features: ImageFeatures, queries: Tensor, modality: Tensor | None = None) -> tuple[Tensor, ...]:
        return (torch.full_like(queries[..., :1], SLOPE),)


def logit(p: float) -> float:
    return float(np.log(p / (1 - p)))


@pytest.fixture
def dataset(tmp_path: Path):
    """Four ramps whose labels are cut at a probability of 0.3."""
    folder = tmp_path / "Dataset001_A"
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    grid = Grid(shape=(64, 16, 16), affine=np.eye(4))
    for k in range(4):
        ramp = np.linspace(-1, 1, 64, dtype=np.float32)[:: (-1) ** k] * (1 + k) + 3
        z = (ramp - ramp.mean()) / ramp.std()
        low = z * SLOPE > logit(0.3)
        labels = np.zeros(grid.shape, np.uint8)
        labels[low, :8] = 2
        labels[low, 8:] = 3
        image = np.broadcast_to(ramp[:, None, None], grid.shape).copy()
        write_volume(folder / "imagesTr" / f"c{k}_0000.nii.gz", image, like=grid)
        write_volume(folder / "labelsTr" / f"c{k}.nii.gz", labels, like=grid)
    write_json(
        folder / "dataset.json",
        {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "left bright": 2, "right bright": 3},
         "numTraining": 4, "file_ending": ".nii.gz"},
    )  # fmt: skip
    return read_dataset(folder)


def test_the_threshold_is_the_one_that_the_labels_were_made_with(dataset) -> None:
    plan = replace(make_model().plan, class_thresholds={"mri": {"left bright": 0.9}})  # has no part in it
    predictor = Predictor(replace(make_model(), plan=plan, network=Ramp()), device="cpu", precision="float32")
    rows = try_thresholds(predictor, [(dataset, ("c0", "c1", "c3"))])
    wholes = [row for row in rows if row.class_name == "bright"]
    assert [row.case for row in wholes] == ["c0", "c1", "c3"]
    for row in wholes:
        assert row.dsc.index(max(row.dsc)) == CANDIDATES.index(0.3)
        assert (
            row.dsc[CANDIDATES.index(0.3)] > 0.99
        )  # intensities are clipped at percentiles before their mean is taken
        assert row.dsc[CANDIDATES.index(0.5)] < 1
    assert {row.class_name for row in rows} == {"bright", "left bright", "right bright"}
    assert best_thresholds(wholes) == Thresholds(anywhere={"mri": {"bright": 0.3}})


def tried(name: str, case: str, modality: str = "mri", **gains: float) -> Tried:
    values = dict.fromkeys(CANDIDATES, 0.5) | {float(k[1:]) / 100: v for k, v in gains.items()}
    return Tried(dataset="A", case=case, modality=modality, class_name=name, dsc=tuple(values[c] for c in CANDIDATES))


def test_one_half_stays_without_a_gain_or_without_scans() -> None:
    cases = ("1", "2", "3")
    assert best_thresholds([tried("a", c, t40=0.505) for c in cases]) == Thresholds()
    assert best_thresholds([tried("a", c, t40=0.53) for c in cases]) == Thresholds(anywhere={"mri": {"a": 0.4}})
    assert best_thresholds([tried("a", c, t40=0.53) for c in cases[:2]]) == Thresholds()
    # two sides in two scans are two scans, not four
    assert (
        best_thresholds([tried(f"{side} a", c, t40=0.9) for c in cases[:2] for side in ("left", "right")])
        == Thresholds()
    )


def test_sides_share_a_threshold_and_modalities_do_not() -> None:
    rows = [
        tried(name, case, modality, **{at: 0.6})
        for modality, at in (("mri", "t30"), ("ct", "t60"))
        for name in ("left kidney", "kidney")
        for case in ("1", "2", "3")
    ]
    assert best_thresholds(rows).anywhere == {
        "mri": {"kidney": 0.3, "left kidney": 0.3},
        "ct": {"kidney": 0.6, "left kidney": 0.6},
    }


def test_what_was_kept_out_weighs_as_much_as_what_was_trained_on() -> None:
    rows = [tried("a", str(k), t50=0.6, t30=0.5) for k in range(9)] + [tried("a", "x", t50=0.4, t30=0.7)]
    assert best_thresholds(rows) == Thresholds()
    assert best_thresholds(rows, {("A", "x")}) == Thresholds(anywhere={"mri": {"a": 0.3}})
    other = [replace(row, dataset="B") if row.case == "x" else row for row in rows]  # nor does the size of a dataset
    assert best_thresholds(other) == Thresholds(anywhere={"mri": {"a": 0.3}})


def test_a_scan_has_no_part_in_the_threshold_that_it_is_scored_at(dataset, monkeypatch) -> None:
    predictor = Predictor(replace(make_model(), network=Ramp()), device="cpu", precision="float32")
    rows = [tried("left bright", c, **{"t30" if c == "c1" else "t60": 1.0}) for c in ("c0", "c1", "c2", "c3")]
    rows = [replace(row, dataset=dataset.name) for row in rows]
    used: dict[str, float] = {}

    def watched(predictor: Predictor, datasets):  # type: ignore[no-untyped-def]
        (scored,) = datasets
        found = predictor.model.plan.class_thresholds
        used.update(dict.fromkeys(scored[1], found.get("mri", {}).get("left bright", 0.5)))
        return []

    monkeypatch.setattr(thresholds, "judge", watched)
    kept_out = {(dataset.name, "c1")}  # weighs as much as the other three together
    judge_fairly(predictor, [(dataset, ("c0", "c1", "c2"))], rows, kept_out)
    assert used == {"c0": 0.3, "c1": 0.6, "c2": 0.3}
    assert best_thresholds(rows, kept_out) == Thresholds(anywhere={"mri": {"left bright": 0.3}})


def held(row: Tried) -> Tried:
    return replace(row, held=True)


def test_scans_that_a_window_holds_have_thresholds_of_their_own() -> None:
    wide = [tried("a", c, t40=0.6) for c in ("1", "2", "3")]
    assert best_thresholds(wide + [held(tried("a", c, t30=0.6)) for c in ("4", "5", "6")]) == Thresholds(
        anywhere={"mri": {"a": 0.4}}, held={"mri": {"a": 0.3}}
    )
    # one half where that is best, also against another threshold for other scans
    assert best_thresholds(wide + [held(tried("a", c)) for c in ("4", "5", "6")]).held == {"mri": {"a": 0.5}}
    # the same threshold, or too few scans: nothing of its own
    assert best_thresholds(wide + [held(tried("a", c, t40=0.6)) for c in ("4", "5", "6")]).held == {}
    assert best_thresholds(wide + [held(tried("a", c, t30=0.6)) for c in ("4", "5")]).held == {}
    assert best_thresholds([held(tried("a", c, t30=0.6)) for c in ("4", "5", "6")]) == Thresholds(
        held={"mri": {"a": 0.3}}
    )
    plan = best_thresholds([held(tried("bright", c, t30=0.6)) for c in ("4", "5", "6")]).of(make_model().plan)
    assert (plan.class_thresholds, plan.held_thresholds) == ({}, {"mri": {"bright": 0.3}})


def test_a_scan_is_also_cut_to_a_box_around_structures(tmp_path: Path) -> None:
    """Dice of the cut scan by the network's definition: its intensities are normalised without what was cut off."""
    folder = tmp_path / "Dataset001_A"
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    grid = Grid(shape=(64, 16, 16), affine=np.eye(4))
    ramp = np.linspace(-1, 1, 64, dtype=np.float32) ** 3
    labels = np.zeros(grid.shape, np.uint8)
    labels[40:46, :8], labels[40:46, 8:] = 2, 3
    write_volume(
        folder / "imagesTr" / "c_0000.nii.gz", np.broadcast_to(ramp[:, None, None], grid.shape).copy(), like=grid
    )
    write_volume(folder / "labelsTr" / "c.nii.gz", labels, like=grid)
    write_json(
        folder / "dataset.json",
        {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "left bright": 2, "right bright": 3},
         "numTraining": 1, "file_ending": ".nii.gz"},
    )  # fmt: skip
    predictor = Predictor(replace(make_model(), network=Ramp()), device="cpu", precision="float32")
    data = [(read_dataset(folder), None)]
    whole = try_thresholds(predictor, data)
    assert {row.held for row in whole} == {False} and len(whole) == 3
    assert try_thresholds(predictor, data, around=("bright", "nowhere")) == whole
    rows = try_thresholds(predictor, data, around=("left bright", "right bright"), margin_mm=3.5)
    assert rows[:3] == whole and {row.held for row in rows[3:]} == {True} and len(rows) == 6
    apart = try_thresholds(predictor, data, around=("left bright",), margin_mm=3.5)  # the other side is cut through
    assert [row.class_name for row in apart[3:]] == ["left bright"]
    inside = ramp[36:50]  # 40 to 46 and four voxels of 1 mm on each side
    z = (inside - inside.mean()) / inside.std()
    reference = np.isin(np.arange(36, 50), np.arange(40, 46))
    (found,) = (row for row in rows[3:] if row.class_name == "bright")
    for threshold, dsc in zip(CANDIDATES, found.dsc, strict=True):
        mask = z * SLOPE > logit(threshold)
        assert dsc == pytest.approx(2 * (mask & reference).sum() / (mask.sum() + reference.sum()), abs=0.03)
    assert len(set(found.dsc)) > 3
