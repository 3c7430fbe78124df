"""SAT's augmentation, by batchgeneratorsv2.

Zoom 0.7-1.4 (p 0.2), Gaussian noise (p 0.1), sharpening (p 0.2), intensity scale ±0.25 (p 0.15), gamma 0.7-1.5
(p 0.3), inverted gamma (p 0.1). No mirroring and no rotation: classes have sides. batchgeneratorsv2 draws from
numpy's, torch's and Python's global generators, which are seeded for each sample and put back afterwards.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Augmentation:
    """The recipe for one patch size.

    Args:
        patch_size: Size of the crops.
    """

    def __init__(self, patch_size: Sequence[int]) -> None:
        from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
        from batchgeneratorsv2.transforms.intensity.contrast import BGContrast
        from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
        from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
        from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
        from batchgeneratorsv2.transforms.utils.random import RandomTransform

        from satunet.trainers.unified.batches.sharpening import Sharpening
        from satunet.trainers.unified.batches.zoom import Zoom

        def gamma(invert: float) -> Any:
            return GammaTransform(
                gamma=BGContrast((0.7, 1.5)), p_invert_image=invert, synchronize_channels=False, p_per_channel=1,
                p_retain_stats=1,
            )  # fmt: skip

        self._transform = ComposeTransforms(
            [
                Zoom(
                    tuple(patch_size), patch_center_dist_from_border=0, random_crop=False, p_elastic_deform=0,
                    p_rotation=0, p_scaling=0.2, scaling=(0.7, 1.4), p_synchronize_scaling_across_axes=1,
                    bg_style_seg_sampling=False,
                ),
                RandomTransform(
                    GaussianNoiseTransform(noise_variance=(0, 0.1), p_per_channel=1, synchronize_channels=True), 0.1
                ),
                RandomTransform(
                    Sharpening(strength=(0.1, 1.0), p_same_for_each_channel=1, p_per_channel=1), 0.2
                ),
                RandomTransform(
                    MultiplicativeBrightnessTransform(
                        multiplier_range=BGContrast((0.75, 1.25)), synchronize_channels=False, p_per_channel=1
                    ),
                    0.15,
                ),
                RandomTransform(gamma(1), 0.1),
                RandomTransform(gamma(0), 0.3),
            ]
        )  # fmt: skip

    def __call__(self, image: Tensor, labels: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Augment a crop.

        Args:
            image: (1, X, Y, Z) float32.
            labels: (1, X, Y, Z) label ids, int16 or int32.
            rng: Generator of this sample.
        """
        with seeded(int(rng.integers(2**31))):
            result = self._transform(image=image, segmentation=labels)
        return result["image"], result["segmentation"]


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of numpy, torch and Python, and put them back afterwards."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=[]):
        np.random.seed(seed)
        random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)
