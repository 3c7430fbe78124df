"""DSC and NSD of many classes: satunet against surface-distance called class by class."""

from __future__ import annotations

import numpy as np
from common import compare, header, seconds
from surface_distance import compute_surface_dice_at_tolerance, compute_surface_distances

from satunet.evaluation.metrics import score_label_maps

SHAPE, CLASSES, SPACING = (150, 150, 80), 50, (1.0, 1.0, 2.0)


def label_maps() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    places = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"), -1)
    reference = np.zeros(SHAPE, np.uint8)
    for label in range(1, CLASSES + 1):
        centre, radius = rng.uniform(0, SHAPE), rng.uniform(5, 14, 3)
        reference[(((places - centre) / radius) ** 2).sum(-1) <= 1] = label
    return reference, np.roll(reference, (1, -1, 1), axis=(0, 1, 2))


def main() -> None:
    header("numpy", "scipy", "surface-distance")
    reference, prediction = label_maps()
    classes = {str(i): (i,) for i in range(1, CLASSES + 1)}

    def peer() -> list[float]:
        found = []
        for i in range(1, CLASSES + 1):
            a, b = reference == i, prediction == i
            found.append(2 * (a & b).sum() / (a.sum() + b.sum()))
            found.append(compute_surface_dice_at_tolerance(compute_surface_distances(a, b, SPACING), 1.0))
        return found

    def ours() -> list[float]:
        scores = score_label_maps(reference, prediction, SPACING, classes)
        return [value for score in scores.values() for value in (score.dsc, score.nsd)]

    difference = float(np.abs(np.array(ours()) - np.array(peer())).max())
    print(f"largest difference of a score: {difference:.1e}")
    compare(f"DSC and NSD of {CLASSES} classes on {SHAPE}", seconds(ours), seconds(peer, 1), "surface-distance")


if __name__ == "__main__":
    main()
