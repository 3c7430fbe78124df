"""Planning specialists: closed form against nnunetv2, which builds a network for every patch it tries; equality of all.

Plans every dataset of ``nnUNet_raw`` that has a fingerprint in ``nnUNet_preprocessed``; a folder of published
``dataset.json`` and ``dataset_fingerprint.json`` files may be given instead. nnunetv2 plans as many of them as are
asked for (third argument, 5 if not given), evenly spread.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

from common import compare, header


def main() -> None:
    header("nnunetv2", "dynamic-network-architectures", "torch")
    published = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    if published is None or not published.is_dir():
        print("no folder of fingerprints was given; nothing to plan")
        return
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    with tempfile.TemporaryDirectory() as folder:
        for name in ("raw", "preprocessed", "results"):
            (Path(folder) / name).mkdir()
            os.environ[f"nnUNet_{name}"] = str(Path(folder) / name)
        names = []
        for entry in sorted(published.iterdir()):
            for root, file in (("raw", "dataset.json"), ("preprocessed", "dataset_fingerprint.json")):
                (Path(folder) / root / entry.name).mkdir()
                shutil.copy(entry / file, Path(folder) / root / entry.name / file)
            names.append(entry.name)
        run(names, names[:: max(1, len(names) // count)][:count], Path(folder) / "preprocessed")


def run(names: list[str], sample: list[str], preprocessed: Path) -> None:
    started = time.perf_counter()
    from satunet.planners.specialist.nnunet import plan_nnunet

    taken = {}
    for name in names:
        before = time.perf_counter()
        plan_nnunet(name)
        taken[name] = time.perf_counter() - before
    print(f"all {len(names)} datasets, imports included: {time.perf_counter() - started:.1f} s")
    from nnunetv2.experiment_planning.experiment_planners import default_experiment_planner as peer

    equal, theirs = 0, 0.0
    for name in sample:
        file = preprocessed / name / "nnUNetPlans.json"
        ours = json.loads(file.read_text())
        file.unlink()
        # nnunetv2 looks for a scan to choose a reader by; there is none, and dataset.json names the reader
        with (
            contextlib.redirect_stdout(io.StringIO()),
            mock.patch.object(
                peer, "get_filenames_of_train_images_and_targets", return_value={"a": {"images": [None]}}
            ),
        ):
            before = time.perf_counter()
            peer.ExperimentPlanner(name).plan_experiment()
            theirs += time.perf_counter() - before
        equal += json.loads(file.read_text()) == ours
    print(f"plans equal in every key in {equal} of {len(sample)}: {', '.join(sample)}")
    compare(f"{len(sample)} datasets", sum(taken[name] for name in sample), theirs, "nnunetv2")


if __name__ == "__main__":
    main()
