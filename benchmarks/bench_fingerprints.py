"""Extracting fingerprints from scans: satunet against nnunetv2, same scans, same processes; and what a merge costs.

Reads the datasets in ``nnUNet_raw`` if it is set, and makes three synthetic ones if not. Ours also keeps, case by case,
the volume, extent and centroid of every label.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from common import compare, header, seconds

PROCESSES = 2


def main() -> None:
    header("numpy", "nnunetv2", "datasketches")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        raw = Path(os.environ.get("nnUNet_raw") or work / "raw")
        for name in ("preprocessed", "results"):
            (work / name).mkdir()
            os.environ[f"nnUNet_{name}"] = str(work / name)
        os.environ["nnUNet_raw"] = str(raw)
        if not raw.is_dir():
            from satunet.demo.synthetic import make_synthetic_datasets

            raw.mkdir()
            make_synthetic_datasets(raw, cases=12)
        names = sys.argv[1:] or sorted(p.name for p in raw.iterdir() if (p / "dataset.json").is_file())
        run(names, work / "preprocessed")


def run(names: list[str], preprocessed: Path) -> None:
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

    from satunet.planners.fingerprint.dataset import merge_fingerprints
    from satunet.planners.fingerprint.extraction import fingerprint_dataset

    def ours() -> None:
        for name in names:
            shutil.rmtree(preprocessed / name, ignore_errors=True)
            fingerprint_dataset(name, processes=PROCESSES)

    def theirs() -> None:
        for name in names:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                DatasetFingerprintExtractor(name, PROCESSES).run(overwrite_existing=True)

    took = seconds(ours, 1)
    found = {n: json.loads((preprocessed / n / "dataset_fingerprint.json").read_text()) for n in names}
    parts = [fingerprint_dataset(name)[0] for name in names]
    merge = seconds(lambda: merge_fingerprints(parts))
    peer = seconds(theirs, 1)
    exact, worst = 0, 0.0
    for name in names:
        theirs_of = json.loads((preprocessed / name / "dataset_fingerprint.json").read_text())
        shapes = [sorted(map(tuple, f["shapes_after_crop"])) for f in (found[name], theirs_of)]
        spacings = [np.sort(np.array(f["spacings"]), axis=0) for f in (found[name], theirs_of)]
        exact += shapes[0] == shapes[1] and bool(np.allclose(spacings[0], spacings[1], rtol=1e-6))
        for channel, values in theirs_of["foreground_intensity_properties_per_channel"].items():
            own = found[name]["foreground_intensity_properties_per_channel"][channel]
            worst = max(worst, abs(own["mean"] - values["mean"]) / max(values["std"], 1e-9))
    cases = sum(len(f["shapes_after_crop"]) for f in found.values())
    compare(f"fingerprints of {len(names)} datasets, {cases} cases, {PROCESSES} processes", took, peer, "nnunetv2")
    print(f"shapes and spacings equal in {exact} of {len(names)}; means differ by at most {worst:.3f} std")
    print(f"merging them: {merge * 1e3:.0f} ms")


if __name__ == "__main__":
    main()
