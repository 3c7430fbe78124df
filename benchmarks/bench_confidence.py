"""How much the confidence of the model ``starter`` is worth: on patients that were not used to calibrate it.

    python benchmarks/bench_confidence.py DATA WORK            # look for everything in every scan (resumes), and report
    python benchmarks/bench_confidence.py DATA WORK --write    # besides, calibrate on all of them and write confidence.json

``DATA`` is the folder that ``scripts/train_starter`` takes; none of the scans was trained on. Each scan is looked at whole
and in parts that leave out structures. Each patient's figures come from a calibration on the others (ten groups of
patients); then once more, each dataset's from a calibration on the other datasets. "chance" is the calibration error that
right probabilities of as many structures would have.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from satunet.confidence.calibration import Calibration, Outcome
from satunet.confidence.expected import ClassStatistics
from satunet.evaluation.benchmark.calibrating import Known, cross_checked, outcomes, quality
from satunet.jobs.files import read_json, write_json
from satunet.jobs.records import from_plain, load_record, save_record, to_plain
from satunet.models.shipped import resolve_model
from satunet.prediction.options import PredictOptions
from satunet.prediction.predictor import Predictor
from satunet.trainers.synthetic import calibrating, starter

COLUMNS = {
    "masks": "masks", "failures": "fail", "rank_correlation": "rank r", "failure_auroc": "AUROC", "dice_error": "|err|",
    "dice_bias": "bias", "structures": "asked", "absent": "absent", "absent_error": "ECE", "absent_chance": "chance", "absent_drawn": "drawn",
    "absent_left": "left", "present_lost": "lost",
}  # fmt: skip
REGIONS = {"Dataset701_HeadLabelMaps": "Structures of the head", "Dataset703_TrunkLabelMaps": "Structures of the trunk"}


def statistics(data: Path, work: Path) -> ClassStatistics:
    """Of what the starter is trained on, made once."""
    file = work / "class_statistics.json"
    if not file.is_file():
        save_record(file, calibrating.statistics_of(*starter.groups_of(data)))
    return load_record(file, ClassStatistics)


def looked_at(data: Path, work: Path, predictor: Predictor) -> list[tuple[str, Outcome]]:
    """Everything in every scan; scans that an earlier run has done are read."""
    folder = work / f"outcomes_{predictor.model.weights_hash[:16]}_{predictor.model.identity['plan']}"
    folder.mkdir(parents=True, exist_ok=True)
    absent = calibrating.absent_classes(predictor.model.space)

    def keep(dataset: str, case: str, found: Sequence[tuple[str, Outcome]]) -> None:
        write_json(folder / f"{dataset}__{case}.json", [to_plain(outcome) for _, outcome in found])

    for dataset, cases in calibrating.calibrating_judges(data):
        wanted = [c.identifier for c in dataset.training_cases() if cases is None or c.identifier in cases]
        missing = [case for case in wanted if not (folder / f"{dataset.name}__{case}.json").is_file()]
        outcomes(predictor, [(dataset, missing)], absent=absent, on_case=keep)
    return [
        (file.name.partition("__")[0], from_plain(row, Outcome, source=file))
        for file in sorted(folder.glob("*.json"))
        for row in read_json(file)
    ]


def show(title: str, known: Sequence[Known], threshold: float) -> None:
    """Quality by dataset, and of all."""
    print(f"\n{title}")
    print(f"{'':32}" + "".join(f"{name:>8}" for name in COLUMNS.values()))
    for dataset in (*sorted({k.dataset for k in known}), "all"):
        values = dataclasses.asdict(quality([k for k in known if dataset in (k.dataset, "all")], threshold))
        cells = "".join(f"{v:8d}" if isinstance(v, int) else f"{v:8.3f}" if v == v else f"{'':>8}"
                        for v in (values[name] for name in COLUMNS))  # fmt: skip
        print(f"{dataset:32}{cells}")


def main() -> int:
    """Look, report, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path, help="folder for what was found in each scan")
    parser.add_argument("--model", type=Path, default=Path("starter"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--write", action="store_true", help="write confidence.json into the model's folder")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("satunet.prediction").setLevel(logging.WARNING)
    given.work.mkdir(parents=True, exist_ok=True)
    model = resolve_model(given.model)
    predictor = Predictor(model, device=given.device)
    known_sizes = statistics(given.data, given.work)
    rows = looked_at(given.data, given.work, predictor)
    threshold = PredictOptions().max_absent
    print(f"{len({o.patient for _, o in rows})} patients, {len({o.scan for _, o in rows})} scans and parts of scans, "
          f"weights {predictor.model.weights_hash}; masks are left out from absent = {threshold} on")  # fmt: skip
    by_patient = cross_checked(rows, known_sizes, apart=lambda _, o: o.patient, folds=10)
    show("Patients that were not used to calibrate, scans and parts", by_patient, threshold)
    scans = [k for k in by_patient if k.outcome.scan.endswith("/0")]
    show("The same, whole scans alone", scans, threshold)
    show("The same, parts alone", [k for k in by_patient if not k.outcome.scan.endswith("/0")], threshold)
    by_dataset = cross_checked(rows, known_sizes, apart=lambda d, _: d)
    show("Datasets that were not used to calibrate, scans and parts", by_dataset, threshold)
    for region in known_sizes.maps:
        if region.dataset in REGIONS:
            some = cross_checked(rows, known_sizes, apart=lambda _, o: o.patient, folds=10,
                                 asked=lambda _, o, r=region: o if o.seen.class_name in r.centres_mm else None)  # fmt: skip
            show(f"{REGIONS[region.dataset]} alone asked for, in all scans", some, threshold)
    alone = cross_checked(rows, known_sizes, apart=lambda _, o: o.patient, folds=10,
                          asked=lambda _, o: dataclasses.replace(o, scan=f"{o.scan}/{o.seen.class_name}"))  # fmt: skip
    show("Each structure asked for alone: nothing around it is known", alone, threshold)
    if given.write:
        calibration = Calibration.fit([o for _, o in rows], known_sizes, weights_hash=predictor.model.weights_hash)
        calibration.save(model)
        print(f"\n{model}: confidence.json, of {calibration.patients} patients")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
