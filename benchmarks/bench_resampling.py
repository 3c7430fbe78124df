"""Resampling of an image and of a label map with many labels: satunet against nnunetv2."""

from __future__ import annotations

import numpy as np
from common import compare, header, seconds
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

from satunet.preprocessing.resampling import new_shape, resample_image, resample_labels

SHAPE, SPACING, TARGET = (192, 192, 96), (0.8, 0.8, 2.0), (1.2, 1.2, 2.0)


def main() -> None:
    header("numpy", "scipy", "scikit-image", "nnunetv2")
    rng = np.random.default_rng(0)
    image = rng.normal(size=SHAPE).astype(np.float32)
    wanted = new_shape(SHAPE, SPACING, TARGET)

    def nnunet(array: np.ndarray, *, labels: bool) -> np.ndarray:
        return resample_data_or_seg_to_shape(
            array[None],
            wanted,
            SPACING,
            TARGET,
            is_seg=labels,
            order=1 if labels else 3,
            order_z=0,
            force_separate_z=None,
        )[0]

    what = f"{SHAPE} → {wanted}"
    ours = seconds(lambda: resample_image(image, wanted, SPACING, TARGET))
    compare(f"image {what}", ours, seconds(lambda: nnunet(image, labels=False), 1), "nnunetv2")
    for count in (1, 20, 60):
        coarse = rng.integers(0, count + 1, tuple(n // 16 for n in SHAPE)).astype(np.uint8)
        labels = np.kron(coarse, np.ones((16, 16, 16), np.uint8))
        ours = seconds(lambda labels=labels: resample_labels(labels, wanted, SPACING, TARGET))
        peer = seconds(lambda labels=labels: nnunet(labels, labels=True), 1)
        compare(f"{count} labels {what}", ours, peer, "nnunetv2")


if __name__ == "__main__":
    main()
