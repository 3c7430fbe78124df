"""What the model ``starter`` can do, beside a copy of labels that looks at no image.

    python benchmarks/bench_starter.py DATA                # scores by dataset and class, with the copy baseline
    python benchmarks/bench_starter.py DATA --wordings     # DSC by wording, and what absent structures draw

``DATA`` is the folder that ``scripts/train_starter`` takes. Scans that were trained on are left out, and each scan is scored at
the thresholds that are found without it. The copy is the label map of a training scan, stretched from box to box: the scan whose
image correlates best once it is stretched, or, for heads, which have label maps alone, the mean over all of them.
"""

from __future__ import annotations

import argparse
import logging
from collections import defaultdict
from pathlib import Path

import numpy as np

from satunet.datasets.raw import Dataset
from satunet.evaluation.benchmark.copying import copied_labels
from satunet.evaluation.benchmark.judging import Judged, means
from satunet.evaluation.benchmark.thresholds import judge_fairly, try_thresholds
from satunet.geometry import reorient
from satunet.images.image import read_image, read_label_map
from satunet.labels import LabelSpace, build_label_space, text_variants
from satunet.prediction.predictor import Predictor
from satunet.preprocessing.transform import nonzero_box
from satunet.trainers.synthetic import starter
from satunet.trainers.synthetic.mixture import Group
from satunet.trainers.synthetic.subjects import Subject


def copies(dataset: Dataset, case, groups: list[Group], space: LabelSpace) -> dict[str, float]:
    """Class → DSC of the copied labels in a scan; classes that no training scan of the kind has are left out."""
    image = read_image(case.images[0])
    volume, _ = reorient(image.array, image.grid, "RAS")
    labels, _ = reorient(read_label_map(case.label, grid=image.grid).array, image.grid, "RAS")
    target = nonzero_box(volume)
    own = build_label_space([dataset]).ids[dataset.name]
    peers = [s for g in groups for s in g.subjects if s.dataset == dataset.name]
    real = bool(peers)
    if not peers:
        peers = list({s.case: s for g in groups for s in g.subjects if s.dataset == starter.HEADS}.values())
    shape = volume.shape

    def moved(values: np.ndarray, box) -> np.ndarray:
        return copied_labels(values, box, shape, target)

    def box_of(person: Subject):
        if person.image is not None:
            return tuple(slice(0, n) for n in person.labels.shape)  # cut to what is not zero when it was read
        return nonzero_box(person.labels.numpy())

    if real:
        wanted = volume[target].astype(float).ravel()[::7]
        likeness = []
        for person in peers:
            there = moved(np.round(person.image.numpy() * 1000).astype(np.int64), box_of(person))[target].ravel()[::7]
            likeness.append(np.corrcoef(wanted, there)[0, 1])
        peers = [peers[int(np.argmax(likeness))]]
    found: dict[str, list[float]] = defaultdict(list)
    for person in peers:
        copied = moved(person.labels.numpy().astype(np.int64), box_of(person))
        most = int(copied.max()) + 1
        both = np.bincount((labels.astype(np.int64) * most + copied).ravel(), minlength=(int(labels.max()) + 1) * most)
        both = both.reshape(-1, most)  # voxels by reference id and copied id
        for name, ids in own.items():
            theirs = [i for i in space.ids[person.dataset].get(name, ()) if i < most]
            ours = [i for i in ids if i < len(both)]
            if name in space.ids[person.dataset] and ours and both[ours].sum():
                whole = both[ours].sum() + both[:, theirs].sum()
                found[name].append(2 * float(both[np.ix_(ours, theirs)].sum()) / float(whole))
    return {name: float(np.mean(values)) for name, values in found.items()}


def scores(data: Path, predictor: Predictor) -> None:
    groups, space = starter.groups_of(data)
    judged = starter.judges(data)
    tried = try_thresholds(predictor, starter.thresholding_scans(data), around=starter.CUT_AROUND)
    rows = judge_fairly(predictor, judged, tried, starter.kept_out(data))
    found = means(rows)
    copied: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for dataset, cases in judged:
        for case in dataset.training_cases():
            if cases is None or case.identifier in cases:
                for name, value in copies(dataset, case, groups, space).items():
                    copied[dataset.name][name].append(value)
    print(f"{'class':36} {'scans':>5} {'DSC':>6} {'NSD 1 mm':>8}   DSC of a copy")
    for dataset, classes in found.items():
        print(f"{dataset}, {'patients kept out' if dataset in starter.HELD_OUT else 'never trained on'}")
        for name, row in classes.items():
            copy = copied[dataset].get(name)
            print(f"  {name:34} {row['scans']:5} {row['dsc']:6.3f} {row['nsd']:8.3f}   "
                  f"{'' if copy is None else f'{np.mean(copy):6.3f}'}")  # fmt: skip
        print(f"  {'mean':34} {'':5} {np.mean([r['dsc'] for r in classes.values()]):6.3f} "
              f"{np.mean([r['nsd'] for r in classes.values()]):8.3f}   "
              f"{np.mean([np.mean(v) for v in copied[dataset].values()] or [np.nan]):6.3f}")  # fmt: skip
    _absent(rows)


def _absent(rows: list[Judged]) -> None:
    absent = [r for r in rows if r.reference_ml == 0]
    if absent:
        drawn = sum(r.predicted_ml > 0 for r in absent)
        print(f"classes of these datasets that a scan does not show: {drawn} of {len(absent)} drawn")


def wordings(data: Path, predictor: Predictor) -> None:
    """DSC by wording, and prompts for what the scan cannot show."""
    by_kind: dict[str, list[float]] = defaultdict(list)
    drawn = asked = 0
    space = predictor.model.space
    for dataset, cases in starter.judges(data):
        if dataset.name not in ("Dataset309_Hippocampus_MR", "Dataset322_Subcortical_MR", "Dataset308_HeadNeckOAR_CT"):
            continue
        ids = build_label_space([dataset]).ids[dataset.name]
        names = [n for n in sorted(ids) if n in space]
        foreign = [c.name for c in space.classes if dataset.modalities[0] not in c.modalities]
        for case in dataset.training_cases():
            if cases is not None and case.identifier not in cases:
                continue
            image = read_image(case.images[0])
            reference = read_label_map(case.label, grid=image.grid).array
            sided = [(n, n) for n in names if space.info(n).side]
            asks = {"canonical": [(n, n) for n in names], "canonical, sided": sided}
            for number, kind in ((1, "side behind"), (2, "on the … side")):
                asks[kind] = [(n, text_variants(space.info(n))[number]) for n in names if space.info(n).side]
            asks["upper case"] = [(n, n.upper()) for n in names]
            for kind, pairs in asks.items():
                if not pairs:
                    continue
                result = predictor.predict(image, [text for _, text in pairs], modality=dataset.modalities[0])
                for (name, _), mask in zip(pairs, result.masks, strict=True):
                    a, b = np.isin(reference, ids[name]), mask.mask
                    by_kind[kind].append(2 * float((a & b).sum()) / max(1.0, float(a.sum() + b.sum())))
            if foreign:
                result = predictor.predict(image, foreign, modality=dataset.modalities[0])
                asked += len(foreign)
                drawn += sum(m.mask is not None and bool(m.mask.any()) for m in result.masks)
    for kind, values in by_kind.items():
        print(f"{kind:16} mean DSC {np.mean(values):.3f} of {len(values)}")
    print(f"classes of another modality: {drawn} of {asked} drawn")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("-m", "--model", default="starter")
    parser.add_argument("--wordings", action="store_true")
    given = parser.parse_args()
    logging.getLogger("satunet").setLevel(logging.ERROR)
    from common import header

    header("torch", "nnunetv2")
    predictor = Predictor(given.model, device="cpu")
    (wordings if given.wordings else scores)(given.data, predictor)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
