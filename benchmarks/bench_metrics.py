"""Scores of many classes: satunet against surface-distance class by class and MONAI; time on one core, and memory.

MONAI takes one-hot volumes, which for 100 classes of 300 × 300 × 160 voxels would be 6 GB a side; it is given one class
at a time, in the box of the class, which is how it is fastest.
"""

from __future__ import annotations

import argparse
import tracemalloc
import warnings

import numpy as np
import torch
from common import compare, header, seconds
from monai.metrics import compute_dice, compute_surface_dice
from scipy import ndimage
from surface_distance import (
    compute_average_surface_distance,
    compute_robust_hausdorff,
    compute_surface_dice_at_tolerance,
    compute_surface_distances,
)

from satunet.evaluation.scoring.metrics import score_label_maps
from satunet.evaluation.scoring.rules import Rules

SPACING = (1.0, 1.0, 2.0)


def label_maps(shape: tuple[int, ...], classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Ellipsoids, and the same a voxel away."""
    rng = np.random.default_rng(0)
    reference = np.zeros(shape, np.uint8)
    for label in range(1, classes + 1):
        radius = rng.uniform(8, 30, 3) * shape[0] / 300
        centre = [rng.uniform(r, n - r) for r, n in zip(radius, shape, strict=True)]
        box = tuple(
            slice(max(0, int(c - r)), min(n, int(c + r) + 2)) for c, r, n in zip(centre, radius, shape, strict=True)
        )
        inside = sum(((a - c) / r) ** 2 for a, c, r in zip(np.ogrid[box], centre, radius, strict=True)) <= 1
        reference[box][inside] = label
    return reference, np.roll(reference, (1, -1, 1), axis=(0, 1, 2))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", type=int, nargs=3, default=(300, 300, 160))
    parser.add_argument("--classes", type=int, default=100)
    arguments = parser.parse_args()
    shape, count = tuple(arguments.shape), arguments.classes
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    header("numpy", "scipy", "surface-distance", "monai", "torch")
    reference, prediction = label_maps(shape, count)
    present = [int(i) for i in np.unique(reference) if i]
    classes = {str(i): (i,) for i in present}

    def surface_distance(more: bool = False) -> list[float]:
        found = []
        for i in present:
            a, b = reference == i, prediction == i
            distances = compute_surface_distances(a, b, SPACING)
            found += [2 * (a & b).sum() / (a.sum() + b.sum()), compute_surface_dice_at_tolerance(distances, 1.0)]
            if more:
                compute_robust_hausdorff(distances, 95)
                compute_average_surface_distance(distances)
        return found

    def monai() -> list[float]:
        found = []
        boxes = [ndimage.find_objects(m) for m in (reference, prediction)]
        for i in present:
            pair = [b[i - 1] for b in boxes]
            box = tuple(
                slice(max(0, min(s.start, t.start) - 1), max(s.stop, t.stop) + 1) for s, t in zip(*pair, strict=True)
            )
            a, b = (
                torch.from_numpy(np.stack([m[box] != i, m[box] == i])[None].astype(np.float32))
                for m in (reference, prediction)
            )
            found.append(float(compute_dice(b, a, include_background=False)))
            found.append(float(compute_surface_dice(b, a, [1.0], spacing=list(SPACING), use_subvoxels=True)))
        return found

    def ours(distances: bool = False) -> list[float]:
        scores = score_label_maps(reference, prediction, SPACING, classes, rules=Rules(no_distances=not distances))
        return [value for score in scores.values() for value in (score.dsc, score.nsd)]

    for name, peer in (("surface-distance", surface_distance), ("MONAI", monai)):
        print(f"largest difference of a score from {name}: {np.abs(np.array(ours()) - np.array(peer())).max():.1e}")
    what = f"DSC and NSD of {len(present)} classes on {shape}"
    ours_seconds = seconds(ours, 5)
    compare(what, ours_seconds, seconds(surface_distance, 1), "surface-distance")
    compare(what, ours_seconds, seconds(monai, 1), "MONAI")
    compare(
        "with HD95 and ASSD",
        seconds(lambda: ours(True), 5),
        seconds(lambda: surface_distance(True), 1),
        "surface-distance",
    )
    tracemalloc.start()
    ours()
    peak = tracemalloc.get_traced_memory()[1]
    maps = reference.nbytes + prediction.nbytes
    print(f"memory beside the two label maps: {peak / 1e6:.1f} MB; with them {(peak + maps) / maps:.2f} times the maps")


if __name__ == "__main__":
    main()
