"""Steps of a mixture: the mask loss and the voxel loss together, in one process."""

from __future__ import annotations

from satunet.trainers.unified.stepping import Stepper

VOXEL_WEIGHT = 0.3


class MixtureStepper(Stepper):
    """Steps that classify single voxels, too, until they are told not to."""

    voxel_weight = VOXEL_WEIGHT
    chunk_on_gpu = 64  # a GPU waits for the next call
