from __future__ import annotations

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from satunet.errors import ModelError, PromptError, UserError
from satunet.geometry import Grid, reorient
from satunet.images.image import Image
from satunet.prediction import ModelFolder, Predictor
from satunet.prediction.door.modality import modality_of
from satunet.windows.starts import gaussian_weights, window_starts

from .conftest import make_model

ORIENTATIONS = ["".join(c) for p in itertools.permutations(("RL", "AP", "SI")) for c in itertools.product(*p)]


def scene(shape: tuple[int, int, int], affine: np.ndarray) -> tuple[Image, np.ndarray]:
    """A bright box in a dim volume; the box is known."""
    array = np.ones(shape, np.float32)
    box = tuple(slice(n // 4, n // 4 + max(1, n // 3)) for n in shape)
    array[box] = 5
    return Image(array=array, grid=Grid(shape=shape, affine=affine)), array > 3


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / max(1, a.sum() + b.sum()))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_masks_return_to_their_voxels_in_every_orientation(orientation: str) -> None:
    image, truth = scene((20, 24, 18), np.eye(4))
    turned, grid = reorient(np.stack([image.array, truth]), image.grid, orientation)
    predictor = Predictor(make_model(), device="cpu", precision="float32")
    (result,) = predictor.predict(Image(array=turned[0], grid=grid), ["bright"]).masks
    assert result.mask is not None
    assert np.array_equal(result.mask, turned[1] > 0)


def test_resampling_there_and_back_keeps_a_structure_in_place() -> None:
    image, truth = scene((48, 40, 30), np.diag([1.0, 1.2, 2.0, 1]))
    (result,) = (
        Predictor(make_model(spacing_mm=(1.5, 1.5, 1.5)), device="cpu", precision="float32")
        .predict(image, ["bright"])
        .masks
    )
    assert result.mask is not None
    assert dice(result.mask, truth) > 0.9


def test_groups_of_prompts_change_nothing() -> None:
    image, _ = scene((30, 20, 20), np.eye(4))
    prompts = ["bright", "left bright", "right bright"]
    at_once = Predictor(make_model(), device="cpu", precision="float32")
    one_by_one = Predictor(make_model(), device="cpu", precision="float32", memory_gb=1e-9)
    for a, b in zip(at_once.predict(image, prompts).masks, one_by_one.predict(image, prompts).masks, strict=True):
        assert np.array_equal(a.mask, b.mask)


def test_prompts_that_cannot_be_known_give_no_mask_and_no_crash(model: ModelFolder) -> None:
    image, truth = scene((16, 16, 16), np.eye(4))
    known, unknown = Predictor(model, device="cpu").predict(image, ["BRIGHT", "coffee cup"]).masks
    assert np.array_equal(known.mask, truth)
    assert unknown.mask is None
    assert unknown.match.status == "unknown"
    assert unknown.match.nearest


@pytest.mark.parametrize("prompts", [[], ["bright", " "]])
def test_empty_prompts_are_refused(model: ModelFolder, prompts: list[str]) -> None:
    with pytest.raises(PromptError, match="none may be empty"):
        Predictor(model, device="cpu").match(prompts)


def test_a_callback_sees_progress_and_can_cancel(model: ModelFolder) -> None:
    image, _ = scene((40, 16, 16), np.eye(4))
    seen: list[tuple[int, int]] = []
    Predictor(model, device="cpu").predict(image, ["bright"], on_progress=lambda *a: seen.append(a))
    assert seen[-1][0] == seen[-1][1] == len(seen) > 1
    with pytest.raises(PromptError, match="cancelled"):
        Predictor(model, device="cpu").predict(image, ["bright"], on_progress=lambda *a: False)


def test_modality_is_guessed_and_said() -> None:
    image, _ = scene((8, 8, 8), np.eye(4))
    assert modality_of(image, ["mri"])[0] == "mri"
    ct = Image(array=image.array - 1000, grid=image.grid)
    assert modality_of(ct, ["ct", "mri"]) == ("ct", "intensities")
    assert modality_of(image, ["ct", "mri"]) == ("mri", "intensities")
    named = Image(array=image.array, grid=image.grid, path=Path("patient_CT.nii.gz"))
    assert modality_of(named, ["ct", "mri"]) == ("ct", "file name")


def test_wrong_values_are_refused(model: ModelFolder) -> None:
    image, _ = scene((8, 8, 8), np.eye(4))
    with pytest.raises(UserError, match="overlap"):
        Predictor(model, overlap=1.0, device="cpu")
    with pytest.raises(UserError, match="modality 'xray'"):
        Predictor(model, device="cpu").predict(image, ["bright"], modality="xray")


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"plans\.json"):
        ModelFolder.load(tmp_path)


@given(
    sizes=st.tuples(*[st.tuples(st.integers(1, 30), st.integers(0, 60))] * 3),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.75]),
)
@settings(max_examples=100, deadline=None)
def test_windows_cover_everything_and_overlap_as_asked(sizes, overlap: float) -> None:
    patch = tuple(p for p, _ in sizes)
    shape = tuple(p + more for p, more in sizes)
    starts = window_starts(shape, patch, overlap)
    covered = np.zeros(shape, bool)
    for start in starts:
        assert all(0 <= s <= n - p for s, n, p in zip(start, shape, patch, strict=True))
        covered[tuple(slice(s, s + p) for s, p in zip(start, patch, strict=True))] = True
    assert covered.all()
    for axis in range(3):
        steps = np.diff(sorted({s[axis] for s in starts}))
        assert all(step <= max(1, np.ceil(patch[axis] * (1 - overlap))) for step in steps)


def test_weights_are_symmetric_and_never_zero() -> None:
    weights = gaussian_weights((8, 12, 6))
    assert weights.min() > 0
    assert np.allclose(weights, weights[::-1, ::-1, ::-1])


def test_images_and_embeddings_in_memory(model: ModelFolder) -> None:
    import satunet

    assert satunet.Predictor is Predictor
    predictor = satunet.Predictor(model, device="cpu", precision="float32")
    array = np.ones((18, 16, 20), np.float32)
    array[3:9, 4:8, 5:12] = 5
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    named = predictor.predict(nib.Nifti1Image(array, affine), ["bright"])
    embedded = predictor.predict((array, affine), {"anything": np.zeros(6)})
    assert embedded.masks[0].match.status == "embedding"
    assert np.array_equal(named.masks[0].mask, embedded.masks[0].mask)
    high = predictor.predict((array, affine), {"very bright": np.array([50.0, 0, 0, 0, 0, 0])})
    assert not high.masks[0].mask.any()
    for wrong in (np.zeros(5), np.full(6, np.nan)):
        with pytest.raises(PromptError, match="embedding of 'x' must be 6 finite numbers"):
            predictor.predict((array, affine), {"x": wrong})


def test_mirroring_keeps_sides(model: ModelFolder) -> None:
    ensemble = Predictor(model, device="cpu", mirror=True).ensemble
    assert ensemble.flips(ensemble.groups[0]) == ((), (1,), (2,), (1, 2))
    with pytest.raises(UserError, match="batch"):
        Predictor(model, batch=0)
