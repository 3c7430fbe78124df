"""What a sample of a training batch costs once its crop is read: augmentation and the search for its classes.

    python benchmarks/bench_augmentation.py [--classes 200] [--samples 15]

A fifth of the samples is zoomed, which is the dear part: labels are interpolated where they change. A step of 0.5 s on
patches of SAT has to be fed by the workers of one process (2 to 12). Seconds of one core, reading from the store left out.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from common import header

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

PATCHES = ((144, 144, 96), (288, 288, 64), (288, 288, 96))


def boxes(shape: tuple[int, int, int], classes: int) -> torch.Tensor:
    """(1, X, Y, Z) a small box of every class."""
    rng, labels = np.random.default_rng(0), np.zeros(shape, np.int32)
    for label in range(1, classes + 1):
        extent = rng.integers(6, 16, 3)
        low = [int(rng.integers(0, n - k)) for n, k in zip(shape, extent, strict=True)]
        labels[tuple(slice(a, a + k) for a, k in zip(low, extent, strict=True))] = label
    return torch.from_numpy(labels)[None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=200)
    parser.add_argument("--samples", type=int, default=15)
    given = parser.parse_args()
    from satunet.trainers.unified.batches.augmentation import Augmentation

    header("numpy", "torch", "batchgeneratorsv2")
    torch.set_num_threads(1)
    for patch in PATCHES:
        image, labels, augmentation = torch.rand(1, *patch), boxes(patch, given.classes), Augmentation(patch)
        seconds = []
        for seed in range(given.samples):
            began = time.process_time()
            changed = augmentation(image.clone(), labels.clone(), np.random.default_rng(seed))[1]
            shown = len(torch.unique(changed)) - 1
            seconds.append(time.process_time() - began)
        print(
            f"a sample of {patch}, {shown} of {given.classes} classes: mean {np.mean(seconds):.2f} s, most {max(seconds):.2f} s"
        )


if __name__ == "__main__":
    main()
