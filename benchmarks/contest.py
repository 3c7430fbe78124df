"""A contest at equal steps: one network for many small datasets against a nnU-Net each, patients held out.

    python benchmarks/contest.py prepare WORK RAW [RAW ...]           # splits by person, one plan, specialists' plans
    python benchmarks/contest.py network WORK --turns 150             # 150 steps per dataset; continues where it stopped
    python benchmarks/contest.py specialists WORK --steps 150         # the same; --seed, --only for more of them
    python benchmarks/contest.py report WORK contest.md --picture contest.png

``RAW`` are ``nnUNet_raw`` folders that are only read. Patients are held out, not scans, over all datasets that are
there; those with at least three patients take part. Network and nnU-Nets have the same spacing, features of the first
stage, patches per step, optimizer, learning rate and schedule (recipe ``cpu``), the network its own augmentation and
nnU-Net its own. A step of the network takes patches of one dataset, every dataset comes once a turn: after N turns it
has seen each as often as a specialist after N steps. Each budget of the nnU-Nets is a training of its own; budgets of
the network are averaged weights on the way of a single training.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from satunet.datasets.paths import UNIFIED_DATASET as UNIFIED

SPACING_MM = (2.5, 2.5, 2.5)
PATCH = (48, 48, 48)
BATCH, FEATURES = 2, 16
HELD_OUT = 0.25
PATIENTS = 3
"""Patients that a dataset needs to take part."""
MEMORY_GB, MEMORY_OF_MANY_GB, MANY = 0.2, 0.5, 50
"""What nnU-Net plans for: its patches then have about the voxels of the network's; channels of many classes count,
too."""
RECIPE = {"patches": "fit", "dataset_draws": "even", "voxel_weight": 0.3, "weight_average": 0.995}
KEPT = (1 / 6, 1 / 3, 2 / 3, 1)
"""Shares of a training at which the network's weights are kept."""


def use_folders(work: Path, results: Path) -> None:
    """Point nnU-Net's variables at the folders of the contest."""
    results.mkdir(parents=True, exist_ok=True)
    for name, folder in (
        ("raw", work / "nnUNet_raw"),
        ("preprocessed", work / "nnUNet_preprocessed"),
        ("results", results),
    ):
        os.environ[f"nnUNet_{name}"] = str(folder.resolve())


Scores = dict[str, dict[str, dict[str, dict[str, list[float]]]]]


def specialists_folder(work: Path, steps: int, seed: int) -> Path:
    """Results of the nnU-Nets of a budget and seed."""
    return work / "specialists" / f"steps_{steps}_seed_{seed}"


def planned(work: Path) -> list[str]:
    """Datasets that take part."""
    return sorted(f.parent.name for f in (work / "nnUNet_preprocessed").glob("Dataset3*/nnUNetPlans.json"))


def prepare(work: Path, raws: Sequence[Path]) -> int:
    """Split by person, plan for both sides, preprocess."""
    from train_real_datasets import patient_of, split_by_patient

    from satunet.datasets.paths import all_dataset_names
    from satunet.datasets.raw import load_dataset
    from satunet.jobs.files import write_json
    from satunet.planners.options import PlanOptions
    from satunet.planners.specialist.planner import plan_specialist, preprocess_specialist
    from satunet.preprocessing.pipeline import plan_and_preprocess

    raw = work / "nnUNet_raw"
    raw.mkdir(parents=True, exist_ok=True)
    for folder in (d for r in raws for d in sorted(r.iterdir()) if not (raw / d.name).exists()):
        (raw / folder.name).symlink_to(folder.resolve())
    (work / "nnUNet_preprocessed").mkdir(exist_ok=True)
    use_folders(work, work / "planned")
    names = all_dataset_names()
    cases = {name: [case.identifier for case in load_dataset(name).training_cases()] for name in names}
    splits = split_by_patient(cases, HELD_OUT)
    sides = {part: {patient_of(d, c) for d, s in splits.items() for c in s[part]} for part in ("train", "val")}
    assert not sides["train"] & sides["val"], sides["train"] & sides["val"]
    for dataset, split in splits.items():
        write_json(work / "nnUNet_preprocessed" / dataset / "splits_final.json", [split])
    enough = [name for name in names if len({patient_of(name, c) for c in cases[name]}) >= PATIENTS]
    options = PlanOptions(
        spacing_mm=SPACING_MM,
        patch_size=PATCH,
        batch_size=BATCH,
        base_features=FEATURES,
        gpu_memory_gb=2.0,
        text_encoder="anatomy",
    )
    summary = plan_and_preprocess(enough, options)
    summary.show()
    for name in enough:
        dataset = load_dataset(name)
        many = len(dataset.label_ids) > MANY
        memory = MEMORY_OF_MANY_GB if many else MEMORY_GB
        plan_specialist(dataset, gpu_memory_gb=memory, spacing_mm=SPACING_MM, base_features=FEATURES)
        preprocess_specialist(name)
    return summary.exit_code


def train_specialists(work: Path, steps: int, seed: int, only: Sequence[str]) -> int:
    """Train the nnU-Nets that are not trained yet, and write down what each took."""
    from satunet.jobs.files import read_json, write_json
    from satunet.trainers.config import TrainingConfig
    from satunet.trainers.specialist.trainer import train_specialist

    results = specialists_folder(work, steps, seed)
    use_folders(work, results)
    file = results / "seconds.json"
    known = read_json(file) if file.is_file() else {}
    recipe = TrainingConfig.from_recipe("cpu", steps=steps, seed=seed)
    for name in planned(work):
        if name in known or (only and name[7:10] not in only):
            continue
        processor, wall = time.process_time(), time.perf_counter()
        train_specialist(name, config=recipe, device="cpu", continue_training=True)
        known[name] = {"processor_s": time.process_time() - processor, "wall_s": time.perf_counter() - wall}
        write_json(file, known)
    return 0


def train_network(work: Path, name: str, turns: int, changes: Mapping[str, Any], only: Sequence[str]) -> int:
    """Train one network, or go on, and keep its averaged weights on the way."""
    import torch

    from satunet.datasets.unified import UnifiedFolder
    from satunet.jobs.files import read_json
    from satunet.models.results import last_checkpoint
    from satunet.plan import UnifiedPlan
    from satunet.trainers.config import TrainingConfig
    from satunet.trainers.unified.trainer import SATTrainer

    results = work / "networks" / name
    use_folders(work, results)
    datasets = [d for d in planned(work) if not only or d[7:10] in only]
    steps, turn = turns * len(datasets), len(datasets)
    values = RECIPE | {"tensorboard": False, "validation_steps": 0, "steps_per_epoch": 10 * turn} | dict(changes)
    unified = UnifiedFolder(name=UNIFIED)
    plan = UnifiedPlan.load(unified.plan)
    trainer = SATTrainer(plan.to_nnunet(), plan.configuration, 0, read_json(unified.dataset_json), torch.device("cpu"))
    trainer.configure(TrainingConfig.from_recipe("cpu", steps=steps, **values))
    log = results / "steps.jsonl"
    fold = Path(str(trainer.output_folder))
    found, before = last_checkpoint(fold), 0.0
    if found is not None:
        trainer.goes_on = True
        trainer.load_checkpoint(found)
        done = trainer.current_epoch * trainer.num_iterations_per_epoch
        lines = [line for line in map(json.loads, log.read_text().splitlines()) if line["step"] <= done]
        log.write_text("".join(json.dumps(line) + "\n" for line in lines))
        before = lines[-1]["processor_s"] if lines else 0.0
    if only:
        trainer.initialize() if not trainer.was_initialized else None
        _keep_datasets(trainer, datasets)
    began, losses = time.process_time(), []
    kept = {max(1, round(share * turns)) * turn for share in KEPT}

    def on_step(step: int, loss: float) -> None:
        losses.append(loss)
        spent = before + time.process_time() - began
        if (step + 1) % turn == 0:
            with log.open("a", encoding="utf-8") as file:
                line = {"step": step + 1, "loss": sum(losses) / len(losses), "processor_s": spent}
                file.write(json.dumps(line) + "\n")
            losses.clear()
        if step + 1 in kept:
            source = trainer.average.average if trainer.average is not None else trainer.network
            torch.save(
                {"weights": source.state_dict(), "processor_s": spent, "step": step + 1},
                results / f"kept_{step + 1}.pt",
            )

    trainer.on_step = on_step
    trainer.run_training()
    return 0


def _keep_datasets(trainer: Any, datasets: Sequence[str]) -> None:
    import dataclasses

    from satunet.datasets.raw import split_scan_id

    split = trainer.setup.split
    train, val = (tuple(s for s in part if split_scan_id(s)[0] in datasets) for part in (split.train, split.val))
    trainer.setup = dataclasses.replace(trainer.setup, split=dataclasses.replace(split, train=train, val=val))


def kept_models(work: Path, name: str) -> dict[int, tuple[Path, float]]:
    """Step → model folder of the weights that were kept then, and processor seconds until then."""
    import torch

    results = work / "networks" / name
    trained = next((results / UNIFIED).iterdir())
    models = {}
    for file in sorted(results.glob("kept_*.pt")):
        kept = torch.load(file, weights_only=True)
        model = results / "models" / f"step_{kept['step']}"
        if not (model / "fold_0" / "checkpoint_final.pth").is_file():
            shutil.copytree(
                trained, model, dirs_exist_ok=True, ignore=shutil.ignore_patterns("checkpoint_*", "*.lock", "scans")
            )
            torch.save({"network_weights": kept["weights"]}, model / "fold_0" / "checkpoint_final.pth")
        models[int(kept["step"])] = (model, float(kept["processor_s"]))
    return models


def _specialists(work: Path, place: Path) -> dict[str, Any]:
    """Name → the nnU-Nets of a budget and seed, as a competitor."""
    from satunet.evaluation.benchmark.competitors.nnunet import predict_specialist
    from satunet.evaluation.benchmark.competitors.specialist import SpecialistCompetitor
    from satunet.trainers.specialist.trainer import specialist_folder

    def predict(results: Path, dataset: str, *rest: Any, **more: Any) -> dict[str, str]:
        folder = results / dataset / specialist_folder(dataset).name
        return predict_specialist(dataset, *rest, **more, model=folder)

    found = {}
    for results in sorted((work / "specialists").glob("steps_*")):
        name = f"nnU-Net {results.name}"
        found[name] = SpecialistCompetitor(
            output=place, device="cpu", name=name, predict_cases=functools.partial(predict, results)
        )
    return found


def score(work: Path, name: str, changed: Sequence[str] = (), datasets: Sequence[str] = ()) -> Scores:
    """Predict and score what is not yet; competitor → dataset → class → DSC and NSD of each case, in the files' own
    grids.

    Args:
        work: Folder of the contest.
        name: The network of which every budget is scored, with the nnU-Nets and the copies; with ``changed`` its last
            alone.
        changed: Other networks, whose last weights are scored.
        datasets: Datasets to score; all if none is given.
    """
    from satunet.evaluation.benchmark.competitors.nearest_copy import NearestCopyCompetitor
    from satunet.evaluation.benchmark.competitors.unified import UnifiedCompetitor
    from satunet.evaluation.benchmark.run import Contest, Standing, run_contest

    use_folders(work, work / "planned")
    place = work / "scored" / "predictions"
    networks = [
        UnifiedCompetitor(model=model, output=place, device="cpu", name=f"{which} step_{step}")
        for which in (name, *changed)
        for step, (model, _) in sorted(kept_models(work, which).items(), reverse=True)[: 1 if changed else None]
    ]
    others: list[Any] = [*networks[1:]]
    if not changed:
        others += [*_specialists(work, place).values(), NearestCopyCompetitor(output=place, name="copy")]
    contest = Contest(unified=networks[0], others=others, output=work / "scored", folds=(0,))
    standing: list[Standing] = []

    def watch(make: Any, final: bool) -> None:
        if final:
            standing.append(make())

    run_contest([*(datasets or planned(work))], contest, watch)
    found: dict[str, Any] = {}
    for dataset, results in standing[0].results.items():
        for competitor, evaluation in results.evaluations.items():
            classes: dict[str, Any] = defaultdict(lambda: {"dsc": [], "nsd": []})
            for row in evaluation.rows:
                if row.dsc == row.dsc:
                    classes[row.class_name]["dsc"].append(row.dsc)
                    classes[row.class_name]["nsd"].append(row.nsd)
            found.setdefault(competitor, {})[dataset] = dict(classes)
    return found


def mean_of(scores: Mapping[str, Mapping[str, Sequence[float]]], metric: str) -> float:
    """Mean over the classes of a dataset of the mean over its cases, per cent."""
    present = [[v for v in found[metric] if v == v] for found in scores.values()]
    means = [sum(values) / len(values) for values in present if values]
    return 100 * sum(means) / len(means) if means else float("nan")


def _average(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def specialist_budgets(work: Path, scores: Scores) -> dict[int, dict[str, list[str]]]:
    """Steps → dataset → competitors of that budget that were scored, a seed each."""
    found: dict[int, dict[str, list[str]]] = defaultdict(dict)
    for folder in sorted((work / "specialists").glob("steps_*")):
        name = f"nnU-Net {folder.name}"
        for dataset in scores.get(name, {}):
            found[int(folder.name.split("_")[1])].setdefault(dataset, []).append(name)
    return dict(sorted(found.items()))


def seconds_of(work: Path, steps: int, datasets: Sequence[str]) -> float:
    """Processor seconds of the nnU-Nets of a budget, first seed."""
    known = json.loads((specialists_folder(work, steps, 0) / "seconds.json").read_text(encoding="utf-8"))
    return sum(float(known[d]["processor_s"]) for d in datasets)


def report(work: Path, output: Path, names: Sequence[str], picture: Path | None) -> int:
    """Score what is not scored yet, and write tables and curves."""
    scores = score(work, names[0])
    datasets = [d for d in planned(work) if all(d in s for s in (scores["copy"],))]
    turn = len(planned(work))
    budgets = specialist_budgets(work, scores)
    models = kept_models(work, names[0])
    networks = {step: f"{names[0]} step_{step}" for step in sorted(models)}
    final = networks[max(networks)]
    equal = max((s for s in budgets if s * turn <= max(networks)), default=max(budgets))
    lines = _by_dataset(scores, datasets, final, budgets[equal], max(networks) // turn, equal)
    lines += _curve(work, scores, datasets, networks, models, budgets, turn)
    lines += _each_budget(scores, datasets, networks, budgets, turn)
    lines += _ablations(work, names[1:])
    output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    write = {
        c: {d: {m: mean_of(s, m) for m in ("dsc", "nsd")} for d, s in found.items()} for c, found in scores.items()
    }
    (work / "scored" / "means.json").write_text(json.dumps(write, indent=1), encoding="utf-8")
    print("\n".join(lines))
    if picture is not None:
        draw(work, scores, datasets, networks, models, budgets, turn, picture)
    return 0


def _row(values: Sequence[Any]) -> str:
    shown = [("–" if v != v else f"{v:.1f}") if isinstance(v, float) else str(v) for v in values]
    return "| " + " | ".join(shown) + " |"


def _by_dataset(
    scores: Scores,
    datasets: Sequence[str],
    final: str,
    specialists: Mapping[str, Sequence[str]],
    turns: int,
    steps: int,
) -> list[str]:
    lines = [
        f"# By dataset: the network after {turns} turns, the nnU-Nets after {steps} steps each\n",
        "Means over the classes of the means over the held-out cases, in the files' own grids, per cent; nnU-Nets with several "
        "seeds: mean, and the range of DSC.\n",
        "| dataset | cases | classes | network DSC | nnU-Net DSC | copy DSC | network NSD | nnU-Net NSD | copy NSD |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    totals = defaultdict(list)
    for dataset in datasets:
        shown = scores["copy"][dataset]
        seeds = specialists.get(dataset, [])
        cells: list[Any] = [dataset.partition("_")[2], max(len(c["dsc"]) for c in shown.values()), len(shown)]
        for metric in ("dsc", "nsd"):
            many = [mean_of(scores[s][dataset], metric) for s in seeds]
            network, copy = mean_of(scores[final][dataset], metric), mean_of(scores["copy"][dataset], metric)
            spread = f" ({min(many):.1f} to {max(many):.1f})" if len(many) > 1 and metric == "dsc" else ""
            cells += [network, f"{_average(many):.1f}{spread}" if many else "–", copy]
            for who, value in (("network", network), ("nnU-Net", _average(many)), ("copy", copy)):
                totals[who, metric].append(value)
        lines.append(_row(cells))
    both = [i for i, value in enumerate(totals["nnU-Net", "dsc"]) if value == value]
    means = [
        _average([totals[who, m][i] for i in both]) for m in ("dsc", "nsd") for who in ("network", "nnU-Net", "copy")
    ]
    lines.append(_row([f"mean over {len(both)} datasets", "", "", *means]))
    wins = sum(totals["network", "dsc"][i] > totals["nnU-Net", "dsc"][i] for i in both)
    lines.append(f"\nThe network has the higher DSC on {wins} of {len(both)} datasets.\n")
    return lines


def shared_by(
    budgets: Mapping[int, Mapping[str, Sequence[str]]], datasets: Sequence[str]
) -> tuple[list[int], list[str]]:
    """Budgets of more than a few datasets, and the datasets that all of these have."""
    wide = [steps for steps, found in budgets.items() if len(found) > len(datasets) / 2]
    return wide, [d for d in datasets if all(d in budgets[steps] for steps in wide)]


def _curve(
    work: Path,
    scores: Scores,
    datasets: Sequence[str],
    networks: Mapping[int, str],
    models: Mapping[int, tuple[Path, float]],
    budgets: Mapping[int, Mapping[str, Sequence[str]]],
    turn: int,
) -> list[str]:
    wide, shared = shared_by(budgets, datasets)
    lines: list[str] = []
    for which in [shared, *([list(datasets)] if len(shared) < len(datasets) else [])]:
        without = ", ".join(d.partition("_")[2] for d in datasets if d not in which)
        lines += [
            f"# Mean over {len(which)} datasets against total compute{f', without {without}' if without else ''}\n",
            "The network's seconds are those of its whole training, the nnU-Nets' those of these datasets.\n",
            "| who | steps a dataset | processor seconds | DSC | NSD |",
            "| --- | ---: | ---: | ---: | ---: |",
        ]
        for step, name in networks.items():
            values = [_average([mean_of(scores[name][d], m) for d in which]) for m in ("dsc", "nsd")]
            lines.append(_row(["network", step // turn, round(models[step][1]), *values]))
        for steps in wide:
            found = budgets[steps]
            if set(found) >= set(which):
                values = [
                    _average([_average([mean_of(scores[s][d], m) for s in found[d]]) for d in which])
                    for m in ("dsc", "nsd")
                ]
                lines.append(_row([f"{len(which)} nnU-Nets", steps, round(seconds_of(work, steps, which)), *values]))
        values = [_average([mean_of(scores["copy"][d], m) for d in which]) for m in ("dsc", "nsd")]
        lines += [_row(["copy", "", "", *values]), ""]
    return lines


def _each_budget(
    scores: Scores,
    datasets: Sequence[str],
    networks: Mapping[int, str],
    budgets: Mapping[int, Mapping[str, Sequence[str]]],
    turn: int,
) -> list[str]:
    columns = [f"network {step // turn}" for step in networks] + [f"nnU-Net {steps}" for steps in budgets]
    lines = [
        "# DSC by budget, in steps a dataset\n",
        _row(["dataset", *columns]),
        _row(["---", *["---:"] * len(columns)]),
    ]
    for dataset in datasets:
        cells: list[Any] = [mean_of(scores[name][dataset], "dsc") for name in networks.values()]
        for found in budgets.values():
            many = [mean_of(scores[s][dataset], "dsc") for s in found.get(dataset, [])]
            cells.append(_average(many) if many else "–")
        lines.append(_row([dataset.partition("_")[2], *cells]))
    return [*lines, ""]


def _ablations(work: Path, names: Sequence[str]) -> list[str]:
    """Trainings of a few datasets, one change each."""
    if len(names) < 2:
        return []
    models = {name: kept_models(work, name) for name in names}
    last = {name: max(models[name]) for name in names}
    split = json.loads(next((work / "networks" / names[0] / UNIFIED).rglob("split.json")).read_text(encoding="utf-8"))
    own = [d for d in planned(work) if any(s.startswith(d) for s in split["train"])]
    scores = score(work, names[0], names[1:], own)
    lines = [
        "# One change each, on a few datasets\n",
        _row(["training", "processor seconds", *[d.partition("_")[2] for d in own], "mean DSC", "mean NSD"]),
        _row(["---", *["---:"] * (len(own) + 3)]),
    ]
    for name in names:
        found = scores[f"{name} step_{last[name]}"]
        dsc, nsd = ([mean_of(found[d], m) for d in own] for m in ("dsc", "nsd"))
        lines.append(_row([name, round(models[name][last[name]][1]), *dsc, _average(dsc), _average(nsd)]))
    return [*lines, ""]


def draw(
    work: Path,
    scores: Scores,
    datasets: Sequence[str],
    networks: Mapping[int, str],
    models: Mapping[int, tuple[Path, float]],
    budgets: Mapping[int, Mapping[str, Sequence[str]]],
    turn: int,
    file: Path,
) -> None:
    """Curves of DSC: the mean against total compute, and every dataset against its steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    ours, theirs, nobody = "#0b6e4f", "#c8553d", "#888888"
    columns = 5
    rows = -(-(len(datasets) + 1) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(15, 2.9 * rows), sharey=True, constrained_layout=True)
    first, *others = axes.flat
    wide, shared = shared_by(budgets, datasets)
    full = {steps: budgets[steps] for steps in wide}
    means = [_average([mean_of(scores[n][d], "dsc") for d in shared]) for n in networks.values()]
    first.plot([models[s][1] for s in networks], means, "o-", color=ours, label="one network")
    means = [
        _average([_average([mean_of(scores[s][d], "dsc") for s in found[d]]) for d in shared])
        for found in full.values()
    ]
    first.plot([seconds_of(work, s, shared) for s in full], means, "s-", color=theirs, label=f"{len(shared)} nnU-Nets")
    copy = _average([mean_of(scores["copy"][d], "dsc") for d in shared])
    first.axhline(copy, color=nobody, linestyle=":", label="copy of the nearest scan")
    first.set(title=f"mean of {len(shared)}", xlabel="processor seconds, all steps", ylabel="DSC, %", ylim=(0, 100))
    first.legend(fontsize=8)
    for axis, dataset in zip(others, datasets, strict=False):
        values = [mean_of(scores[n][dataset], "dsc") for n in networks.values()]
        axis.plot([s // turn for s in networks], values, "o-", color=ours)
        own = {
            steps: [mean_of(scores[s][dataset], "dsc") for s in found[dataset]]
            for steps, found in budgets.items()
            if dataset in found
        }
        axis.plot([*own], [_average(v) for v in own.values()], "s-", color=theirs)
        for steps, many in own.items():
            axis.plot([steps] * len(many), many, ".", color=theirs, alpha=0.5)
        axis.axhline(mean_of(scores["copy"][dataset], "dsc"), color=nobody, linestyle=":")
        axis.set(title=dataset.partition("_")[2], xlabel="steps of this dataset", xscale="log")
        axis.set_xticks([25, 50, 100, 200, 600], ["25", "50", "100", "200", "600"])
        axis.minorticks_off()
    for axis in others[len(datasets) :]:
        axis.set_visible(False)
    figure.savefig(file, dpi=70)


def main() -> int:
    """Run one of the steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    one = steps.add_parser("prepare")
    one.add_argument("work", type=Path)
    one.add_argument("raw", type=Path, nargs="+")
    two = steps.add_parser("specialists")
    two.add_argument("work", type=Path)
    two.add_argument("--steps", type=int, required=True)
    two.add_argument("--seed", type=int, default=0)
    two.add_argument("--only", nargs="*", default=[], help="numbers of datasets, such as 309")
    three = steps.add_parser("network")
    three.add_argument("work", type=Path)
    three.add_argument("--name", default="main")
    three.add_argument("--turns", type=int, required=True)
    three.add_argument("--only", nargs="*", default=[])
    three.add_argument("--set", nargs="*", default=[], metavar="FIELD=JSON", help="of TrainingConfig")
    four = steps.add_parser("report")
    four.add_argument("work", type=Path)
    four.add_argument("output", type=Path)
    four.add_argument("--names", nargs="+", default=["main"])
    four.add_argument("--picture", type=Path)
    given = parser.parse_args()
    if given.step == "prepare":
        return prepare(given.work, given.raw)
    if given.step == "specialists":
        return train_specialists(given.work, given.steps, given.seed, given.only)
    if given.step == "network":
        changes = {key: json.loads(value) for key, _, value in (item.partition("=") for item in given.set)}
        return train_network(given.work, given.name, given.turns, changes, given.only)
    return report(given.work, given.output, given.names, given.picture)


if __name__ == "__main__":
    raise SystemExit(main())
