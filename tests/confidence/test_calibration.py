"""Calibration: what is said comes true on masks that were not used, and more evidence never says less."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from satunet.confidence.calibration import CONFIDENCE_FILE, Calibration, Outcome, Rule, Seen, features_of
from satunet.confidence.evidence import Evidence
from satunet.confidence.expected import ClassStatistics, PlaceMap
from satunet.errors import ModelError, UserError
from satunet.evaluation.benchmark.calibrating import auroc, calibration_error, chance_error, cross_checked
from satunet.jobs.files import write_json
from satunet.jobs.records import to_plain

NOTHING = ClassStatistics()


def outcomes(count: int, seed: int, offset: float = 0.0, name: str = "liver") -> list[Outcome]:
    """Masks whose chance to be there, and whose Dice, are logistic in ``inside``."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(count):
        inside = float(rng.uniform(0.5, 1.0))
        strength = 2 * inside - 1
        present = bool(rng.uniform() < 1 / (1 + np.exp(4 - 8 * strength)))
        dsc = 1 / (1 + np.exp(1 - 3 * strength - offset)) if present else 0.0
        evidence = Evidence(
            peak=0.99, agreement=0.9, volume_ml=5, inside=inside, overlap=0.7, whole=1, free=1, centre_mm=(0, 0, 0)
        )
        found.append(
            Outcome(
                seen=Seen(class_name=name, evidence=evidence),
                present=present,
                dsc=float(np.clip(dsc + rng.normal(0, 0.02), 0, 1)),
                scan=f"{seed}/{i}",
                patient=f"{seed}/{i}",
            )
        )
    return found


def test_what_is_said_comes_true() -> None:
    calibration = Calibration.fit(outcomes(600, 0), NOTHING)
    fresh = outcomes(3000, 1)
    worths = calibration.estimate([o.seen for o in fresh])
    absent = np.array([w.absent for w in worths])
    gone = np.array([not o.present for o in fresh])
    assert calibration_error(absent, gone) < 0.03
    assert auroc(absent, gone) > 0.85
    said = np.array([w.confidence for w in worths])
    assert np.mean(said) == pytest.approx(np.mean([o.dsc for o in fresh]), abs=0.02)
    strongest = said > np.quantile(said, 0.8)
    assert said[strongest].mean() == pytest.approx(np.mean([o.dsc for o in fresh], where=strongest), abs=0.03)


def test_more_evidence_never_says_less() -> None:
    calibration = Calibration.fit(outcomes(80, 0), NOTHING)
    weights = [*calibration.present.weights.values(), *calibration.dice.weights.values()]
    assert min(weights) >= 0
    base = outcomes(1, 3)[0].seen
    for field in ("peak", "agreement", "inside", "overlap", "whole", "free"):
        low, high = (
            calibration.estimate([replace(base, evidence=replace(base.evidence, **{field: value}))])[0]
            for value in (0.55, 0.95)
        )
        assert high.confidence is not None and low.confidence is not None
        assert high.confidence >= low.confidence
        assert high.absent <= low.absent


def row_of_organs(free: float) -> list[dict[str, float | None]]:
    """Features of five organs 30 mm apart, of which the last lies 20 mm from its place, with a stray of 10 mm."""
    names = "abcde"
    places = {name: (0.0, 0.0, 30.0 * k) for k, name in enumerate(names)}
    there = PlaceMap(dataset="D", centres_mm=places, strays_mm=dict.fromkeys(names, 10.0))
    usual = outcomes(1, 3)[0].seen.evidence
    found = [Seen(class_name=n, evidence=replace(usual, centre_mm=places[n])) for n in names]
    found[-1] = replace(found[-1], evidence=replace(usual, centre_mm=(0.0, 20.0, 120.0), free=free))
    return features_of(found, ClassStatistics(maps=(there,)))


def test_the_border_of_a_scan_explains_that_a_structure_is_not_in_its_place() -> None:
    *others, apart = row_of_organs(free=1.0)
    assert apart["place"] == apart["placed"] == pytest.approx(0.5, abs=0.01)  # two strays
    assert others[0]["placed"] == pytest.approx(1.0, abs=0.01)
    cut = row_of_organs(free=0.0)[-1]
    assert (cut["place"], cut["placed"]) == (pytest.approx(apart["place"]), 1.0)
    assert row_of_organs(free=0.5)[-1]["placed"] == pytest.approx(0.75, abs=0.01)


def test_a_calibration_uses_the_features_that_it_names() -> None:
    rule = Rule(bias=-1.0, weights={"place": 2.0})
    earlier = Calibration(
        present=rule, missed=rule, dice=rule, present_alone=rule, dice_alone=rule, usual={"place": 0.5}, weights_hash=""
    )
    (worth,) = earlier.estimate([outcomes(1, 3)[0].seen])  # of whose place nothing is known
    assert worth.absent == pytest.approx(0.5)
    with pytest.raises(ValueError, match="peak"):
        replace(earlier, missed=Rule(bias=0.0, weights={"peak": 1.0}))


def test_where_only_one_region_was_looked_for_the_models_without_context_decide() -> None:
    names = "abcdefgh"
    maps = tuple(
        PlaceMap(dataset=d, centres_mm={n: (0.0, 0.0, 30.0 * k) for k, n in enumerate(part)},
                 strays_mm=dict.fromkeys(part, 10.0))
        for d, part in (("D", names[:4]), ("E", names[4:]))
    )  # fmt: skip
    calibration = replace(
        Calibration.fit(outcomes(60, 0), ClassStatistics(maps=maps)),
        present=Rule(bias=9.0),
        dice=Rule(bias=9.0),
        present_alone=Rule(bias=-9.0),
        dice_alone=Rule(bias=-9.0),
    )
    evidence = outcomes(1, 3)[0].seen.evidence
    both = calibration.estimate([Seen(class_name=n, evidence=evidence) for n in names])
    assert [w.absent < 0.01 for w in both] == [True] * 8
    one = calibration.estimate([Seen(class_name=n, evidence=evidence) for n in names[:4]])
    assert [w.absent > 0.99 for w in one] == [True] * 4


def test_a_calibration_of_version_1_has_one_pair_of_models_for_all(tmp_path: Path) -> None:
    now = Calibration.fit(outcomes(50, 0), NOTHING, weights_hash="abc")
    content = {name: value for name, value in to_plain(now).items() if not name.endswith("_alone")}
    write_json(tmp_path / CONFIDENCE_FILE, content | {"version": 1}, sealed=True)
    then = Calibration.load(tmp_path)
    assert then == replace(now, present_alone=now.present, dice_alone=now.dice)


def test_a_class_with_many_masks_has_an_offset_of_its_own_and_one_with_two_less_of_it() -> None:
    worse = 1.5
    rows = outcomes(300, 0) + outcomes(300, 1, -worse, "spleen") + outcomes(4, 2, -worse, "aorta")
    offsets = Calibration.fit(rows, NOTHING).dice.offsets
    assert offsets["liver"] - offsets["spleen"] == pytest.approx(worse, abs=0.3)
    assert abs(offsets["aorta"]) < abs(offsets["spleen"]) / 2


def test_without_a_mask_there_is_no_dice_but_a_probability_of_absence() -> None:
    empty = Evidence(peak=0.001)
    rows = outcomes(100, 0)
    rows += [
        Outcome(seen=Seen(class_name="liver", evidence=empty), present=i == 0, dsc=0.0, scan=f"e{i}", patient=f"e{i}")
        for i in range(40)
    ]
    (worth,) = Calibration.fit(rows, NOTHING).estimate([Seen(class_name="liver", evidence=empty)])
    assert worth.confidence is None
    assert worth.absent == pytest.approx(39 / 40, abs=0.03)


def test_masks_of_unknown_truth_teach_nothing() -> None:
    rows = outcomes(60, 0)
    unknown = [replace(o, known=False, present=not o.present) for o in outcomes(60, 1)]
    assert Calibration.fit(rows + unknown, NOTHING).present == Calibration.fit(rows, NOTHING).present
    with pytest.raises(UserError, match="cannot be calibrated"):
        Calibration.fit(unknown, NOTHING)


def test_several_networks_say_their_mean() -> None:
    one, other = Calibration.fit(outcomes(80, 0), NOTHING), Calibration.fit(outcomes(80, 1, 2.0), NOTHING)
    seen = [o.seen for o in outcomes(3, 2)]
    for a, b, both in zip(one.estimate(seen), other.estimate(seen), one.with_others([other], seen), strict=True):
        assert both.absent == pytest.approx((a.absent + b.absent) / 2)
        assert both.confidence == pytest.approx(((a.confidence or 0) + (b.confidence or 0)) / 2)


def test_it_is_a_file_of_the_model(tmp_path: Path) -> None:
    calibration = Calibration.fit(outcomes(50, 0), NOTHING, weights_hash="abc")
    calibration.save(tmp_path)
    assert Calibration.load(tmp_path) == calibration
    assert Calibration.load(tmp_path / "elsewhere") is None
    (tmp_path / "confidence.json").write_text('{"version": 1, "present": 3}')
    with pytest.raises(ModelError, match=r"confidence\.json"):
        Calibration.load(tmp_path)


def test_measures_of_estimates() -> None:
    assert auroc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])) == pytest.approx(0.75)
    assert np.isnan(auroc(np.array([1.0]), np.array([True])))
    # all in one bin: said 0.9 on average, came true half of the time
    assert calibration_error(np.array([0.9, 0.9]), np.array([True, False])) == pytest.approx(0.4)


def test_right_probabilities_of_few_outcomes_have_an_error_by_chance() -> None:
    # One outcome of probability p in a bin of its own: |p - 1| with probability p, else p; on average 2 p (1 - p).
    assert chance_error(np.array([0.25]), draws=20_000) == pytest.approx(2 * 0.25 * 0.75, abs=0.01)
    assert chance_error(np.zeros(50)) == 0
    assert chance_error(np.full(10_000, 0.5)) < 0.01
    assert np.isnan(chance_error(np.array([])))


def test_a_mask_is_judged_by_a_calibration_that_did_not_see_its_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("D", replace(o, patient=f"p{i % 6}")) for i, o in enumerate(outcomes(60, 0))]
    seen: list[set[str]] = []
    fit = Calibration.fit

    def listening(fitted: list[Outcome], statistics: ClassStatistics) -> Calibration:
        seen.append({o.patient for o in fitted})
        return fit(fitted, statistics)

    monkeypatch.setattr(Calibration, "fit", listening)
    found = cross_checked(rows, NOTHING, apart=lambda _, o: o.patient, folds=3)
    assert sorted(len(patients) for patients in seen) == [4, 4, 4]
    monkeypatch.undo()
    for k in found:  # the estimate is that of the only calibration without the patient
        (without,) = (patients for patients in seen if k.outcome.patient not in patients)
        calibration = fit([o for _, o in rows if o.patient in without], NOTHING)
        assert k.worth == calibration.estimate([k.outcome.seen])[0]
    assert len(found) == len(rows)


def test_less_may_be_asked_for_than_was_calibrated_on() -> None:
    rows = [("D", o) for o in outcomes(30, 0) + outcomes(30, 1, name="spleen")]
    asked = cross_checked(
        rows, NOTHING, apart=lambda _, o: o.patient, folds=3,
        asked=lambda _, o: o if o.seen.class_name == "spleen" else None,
    )  # fmt: skip
    every = cross_checked(rows, NOTHING, apart=lambda _, o: o.patient, folds=3)
    of_all = {k.outcome.scan: k.worth for k in every}
    assert [k.worth for k in asked] == [of_all[k.outcome.scan] for k in asked]
    assert len(asked) == 30
