"""Folds and models together: the mean of their probabilities, in the windows or in the scan's own grid."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from satunet.cli.predict import Predict
from satunet.errors import ModelError
from satunet.jobs.files import read_json
from satunet.models.choice import ModelChoice
from satunet.models.folder import ModelFolder
from satunet.network.model import ImageFeatures, PromptedUNet
from satunet.prediction import PredictOptions, Predictor
from satunet.prediction.masks.mean import Values
from tests.prediction.conftest import NETWORK, Bright, make_model, model_of, write_model

CLOSE = 3e-3
"""Share of voxels that may differ: normalisation cuts percentiles off, and float32 rounds at the threshold."""


class Ramp(nn.Module):
    """The logit of every prompt is the image's value, plus a constant."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.offset = offset

    def encode_image(self, image: Tensor) -> ImageFeatures:
        return ImageFeatures(memory=image.new_zeros(1, 1, 1), grid=(1, 1, 1), maps=(image,))

    def decode(self, features: ImageFeatures, queries: Tensor, modality: Tensor | None = None) -> tuple[Tensor, ...]:
        one = torch.ones_like(queries[..., 0])
        return (torch.stack([one, self.offset * one], dim=-1),)


def image() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(22, 20, 18)).astype(np.float32)


def of(offset: float, **changes: object) -> ModelFolder:
    return replace(make_model(**changes), network=Ramp(offset), weights_hash=f"w{offset}")  # type: ignore[arg-type]


def mean_mask(*offsets: float) -> np.ndarray:
    """By hand: z-score, a logistic function for each member, mean, one half."""
    values = image().astype(np.float64)
    values = (values - values.mean()) / values.std()
    return np.mean([1 / (1 + np.exp(-(values + o))) for o in offsets], axis=0) > 0.5


def predict(models: list[ModelFolder], **options: object) -> np.ndarray:
    predictor = Predictor(models, device="cpu", precision="float32", **options)
    found = predictor.predict((image(), np.eye(4)), ["bright"]).masks[0].mask
    assert found is not None
    return found


@pytest.mark.parametrize("offsets", [(0.0,), (2.0, -3.0), (0.3, -1.0, 1.5), (-4.0, 1.0, 1.0, 1.0, 0.2)])
def test_folds_are_averaged_in_the_windows(offsets: tuple[float, ...]) -> None:
    found, expected = predict([of(o) for o in offsets]), mean_mask(*offsets)
    assert 0.02 < expected.mean() < 0.98
    assert (found != expected).mean() < CLOSE


def test_memory_and_batches_change_no_voxel_of_a_mean() -> None:
    models = [of(o) for o in (0.3, -1.0, 1.5)]
    once = predict(models)
    assert np.array_equal(once, predict(models, memory_gb=1e-6))
    assert (once != predict(models, batch=4)).mean() < 1e-3
    assert (once != predict(models[::-1])).mean() < 1e-3


@pytest.mark.parametrize("memory_gb", [2.0, 1e-9])
def test_models_that_see_a_scan_otherwise_are_averaged_in_its_own_grid(memory_gb: float) -> None:
    # The same spacing in another orientation: what they see is the same, and the mean can be written down.
    models = [of(2.0), of(-3.0, orientation="LPS"), of(0.5, patch=(20, 16, 16))]
    found, expected = predict(models, memory_gb=memory_gb), mean_mask(2.0, -3.0, 0.5)
    # A probability below a thousandth counts as zero, sums have 16 bits.
    assert (found != expected).mean() < 5e-3


def test_a_class_is_asked_of_the_models_that_learned_it() -> None:
    ct, mri = ({"liver": (1,), "spleen": (2,)}, "ct"), ({"liver": (1,), "brain tumor": (2,)}, "mri")

    def learned(dataset: tuple, offset: float) -> ModelFolder:
        return replace(model_of(dataset), network=Ramp(offset))

    predictor = Predictor([learned(ct, 1.0), learned(mri, -1.0)], device="cpu", precision="float32")
    assert predictor.vocabulary.modalities == ("ct", "mri")
    prompts = ["liver", "spleen", "brain tumor"]
    ordinary = (image(), np.eye(4))
    in_mri = {m.match.prompt: m.mask for m in predictor.predict(ordinary, prompts, modality="mri").masks}
    for name, offset in (("liver", -1.0), ("brain tumor", -1.0), ("spleen", 1.0)):
        assert (in_mri[name] != mean_mask(offset)).mean() < CLOSE, name
    assert [m.prompt for m in predictor.vocabulary.every_class("ct")] == ["liver", "spleen"]


def test_several_folds_of_a_result_folder(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    (folder / "fold_all").rename(folder / "fold_0")
    torch.manual_seed(1)
    other = PromptedUNet(NETWORK)
    with torch.no_grad():
        other.logit_bias.fill_(0.0)
        other.logit_scale.fill_(20.0)
    (folder / "fold_1").mkdir()
    torch.save({"network_weights": other.state_dict()}, folder / "fold_1" / "checkpoint_final.pth")
    nib.save(nib.Nifti1Image(image(), np.eye(4)), tmp_path / "a.nii.gz")
    options = PredictOptions(device="cpu", precision="float32", engine="eager")
    masks = {}
    for folds in (("0",), ("1",), ("0", "1"), ("1", "0", "1")):
        out = tmp_path / "_".join(folds)
        choice = ModelChoice(model=(folder,), fold=folds)
        call = Predict(
            input=(tmp_path / "a.nii.gz",), output=out, prompts=("bright",), models=choice, prediction=options
        )
        assert call.run() == 0
        masks[folds] = np.asarray(nib.load(out / "a" / "bright.nii.gz").dataobj) > 0
    assert not np.array_equal(masks["0",], masks["1",])
    assert np.array_equal(masks["0", "1"], masks["1", "0", "1"])
    both = Predictor(ModelChoice(model=(folder,), fold=("0", "1")).load(), options)
    assert np.array_equal(both.predict(tmp_path / "a.nii.gz", "bright").masks[0].mask, masks["0", "1"])
    assert len(read_json(tmp_path / "0_1" / "a" / "manifest.json")["weights"].split("+")) == 2
    with pytest.raises(ModelError, match="fold_7"):
        ModelChoice(model=(folder,), fold=("0", "7")).describe()


def test_sums_beyond_the_memory_wait_on_disk() -> None:
    rng = np.random.default_rng(0)
    boxes = [[(rng.random((5, 6, 7), dtype=np.float32), (k + i, i, 2 * k)) for i in range(4)] for k in range(2)]
    with Values(memory_bytes=500) as few, Values(memory_bytes=1 << 30) as many:
        for found in boxes:
            for i, box in enumerate(found):
                few.add(i, box, 0.5)
                many.add(i, box, 0.5)
        for i in range(4):
            expected = np.zeros((20, 20, 20), np.float32)
            for found in boxes:
                values, (x, y, z) = found[i]
                expected[x : x + 5, y : y + 6, z : z + 7] += 0.5 * values
            for sums in (few, many):
                values, (x, y, z) = sums.take(i)
                total = np.zeros_like(expected)
                total[x : x + values.shape[0], y : y + values.shape[1], z : z + values.shape[2]] = values
                assert np.abs(total - expected).max() < 1e-4
    assert few.take(0) is None


def test_a_model_of_the_same_network_twice_is_that_model() -> None:
    model = replace(make_model(), network=Bright())
    assert np.array_equal(predict([model]), predict([model, replace(model)]))
