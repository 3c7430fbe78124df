"""Inputs as they come in 22,000 scans: broken, odd, and odd but right."""

from __future__ import annotations

import gzip
import json
import logging
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from satunet.network.config import NetworkConfig
from satunet.plan import UnifiedPlan
from satunet.preprocessing.run import preprocess_datasets
from satunet.preprocessing.store.scans import ScanStore
from satunet.preprocessing.store.verify import verify_datasets, verify_store
from satunet.preprocessing.transform import restore

SHAPE = (14, 12, 10)
NETWORK = NetworkConfig.auto(
    features_per_stage=(8, 16), strides=((1, 1, 1), (2, 2, 2)), kernel_sizes=((3, 3, 3),) * 2, text_dim=24
)


def plan(spacing: tuple[float, float, float] = (2.0, 2.0, 2.0)) -> UnifiedPlan:
    return UnifiedPlan(spacing_mm=spacing, patch_size=(16, 16, 16), network=NETWORK)


class Raw:
    """A dataset in the making."""

    def __init__(self, env: Path, ending: str = ".nii.gz", number: int = 1) -> None:
        self.name = f"Dataset{number:03d}_Odd"
        self.folder = env / "raw" / self.name
        self.ending = ending
        for part in ("imagesTr", "labelsTr"):
            (self.folder / part).mkdir(parents=True)
        content = {
            "channel_names": {"0": "MRI"}, "labels": {"background": 0, "a": 1, "b": 2}, "file_ending": ending,
            "numTraining": 1,
        }  # fmt: skip
        (self.folder / "dataset.json").write_text(json.dumps(content))

    def files(self, case: str) -> tuple[Path, Path]:
        return (
            self.folder / "imagesTr" / f"{case}_0000{self.ending}",
            self.folder / "labelsTr" / f"{case}{self.ending}",
        )

    def add(self, case: str, image: np.ndarray | None = None, labels: np.ndarray | None = None) -> tuple[Path, Path]:
        image = scan() if image is None else image
        labels = ids(image.shape) if labels is None else labels
        affine = np.diag([1.5, 2.0, 2.5, 1.0])
        for path, array in zip(self.files(case), (image, labels), strict=True):
            nib.save(nib.Nifti1Image(array, affine), path)
        return self.files(case)


def scan(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(100, 20, SHAPE).astype(np.float32)


def ids(shape: tuple[int, ...]) -> np.ndarray:
    labels = np.zeros(shape, np.uint8)
    labels[2:6, 2:6] = 1
    labels[7:10, 3:9] = 2
    return labels


def set_header(path: Path, offset: int, layout: str, *values: float) -> None:
    """Change bytes of a NIfTI header, past every check of a library."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    struct.pack_into(f"<{layout}", content, offset, *values)
    path.write_bytes(gzip.compress(bytes(content)))


def spoil(raw: Raw) -> dict[str, str]:
    """Bad cases, each with what must be said of it."""
    raw.add("corrupted")[0].write_bytes(np.random.default_rng(0).bytes(3000))
    image = raw.add("truncated")[0]
    image.write_bytes(image.read_bytes()[:-500])
    raw.add("empty")[0].write_bytes(b"")
    zero = raw.add("zero_spacing")
    for path in zero:
        set_header(path, 80, "3f", 0, 0, 0)  # pixdim
        set_header(path, 252, "2h", 0, 0)  # neither qform nor sform
    singular = raw.add("singular")
    for path in singular:
        set_header(path, 280, "12f", 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0)  # srow_x, srow_y, srow_z
    raw.add("half_labels", labels=ids(SHAPE) * np.float32(0.5))
    raw.add("negative_labels", labels=-ids(SHAPE).astype(np.int16))
    raw.add("beyond_the_list", labels=ids(SHAPE) * 4)
    raw.add("huge_ids", labels=ids(SHAPE).astype(np.float64) * 1e12)
    return {
        "corrupted": "not a readable NIfTI image",
        "truncated": "cannot be read",
        "empty": "not a readable NIfTI image",
        "zero_spacing": "spacing",
        "singular": "affine",
        "half_labels": "not integers",
        "negative_labels": "negative id -2",
        "beyond_the_list": "[4, 8]",
        "huge_ids": "not listed",
    }


@pytest.mark.filterwarnings("ignore::RuntimeWarning:nibabel")
def test_every_bad_input_is_named_and_the_good_one_is_done(nnunet_env: Path) -> None:
    raw = Raw(nnunet_env)
    reasons = spoil(raw)
    raw.add("good")
    summary = preprocess_datasets(plan(), [raw.name])
    assert summary.done_items == [f"{raw.name}__good__0000"]
    found = {item.split("__")[1]: reason for item, reason in summary.failures.items()}
    assert set(found) == set(reasons)
    for case, reason in reasons.items():
        assert reason in found[case], (case, found[case])
        assert case in found[case]  # the file
    integrity = verify_datasets([raw.name])
    assert {item.rpartition("/")[2] for item in integrity.failures if "/" in item} == set(reasons)


def test_odd_but_right(nnunet_env: Path) -> None:
    raw = Raw(nnunet_env)
    raw.add("all_zero", image=np.zeros(SHAPE, np.int16))
    raw.add("single_slice", image=scan()[:, :, :1])
    raw.add("float_ids", labels=ids(SHAPE).astype(np.float64))
    raw.add("no_label_in_it", labels=np.zeros(SHAPE, np.uint8))
    raw.add("constant", image=np.full(SHAPE, 7, np.uint8))
    raw.add("one_voxel", image=scan()[:1, :1, :1])
    raw.add("big_endian", image=scan().astype(">f4"))
    raw.add("int64", image=(scan() * 10).astype(np.int64).astype(np.int32))
    assert preprocess_datasets(plan(), [raw.name]).failures == {}
    store = ScanStore(nnunet_env / "preprocessed" / plan().dataset_name / plan().data_identifier)
    assert len(store.scan_ids) == 8
    for name in store.scan_ids:
        image = store.image(name)[:]
        assert np.isfinite(image).all() and image.dtype == np.float32
        assert store.labels(name)[:].dtype == np.uint8
        if "zero" in name or "constant" in name:
            assert (image == 0).all()
    assert store.record(f"{raw.name}__no_label_in_it__0000").label_voxels == {}
    assert store.locations(f"{raw.name}__no_label_in_it__0000") == {}
    assert verify_store(store.folder, plan=plan()).failures == {}


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".nii"])
def test_every_format_gives_the_same_store(nnunet_env: Path, ending: str) -> None:
    nifti, other = Raw(nnunet_env), Raw(nnunet_env, ending, number=2)
    for seed in range(2):
        for source, target in zip(
            nifti.add(f"case_{seed}", image=scan(seed)), other.files(f"case_{seed}"), strict=True
        ):
            sitk.WriteImage(sitk.ReadImage(str(source)), str(target))
    assert preprocess_datasets(plan(), [nifti.name, other.name]).failures == {}
    store = ScanStore(nnunet_env / "preprocessed" / plan().dataset_name / plan().data_identifier)
    for seed in range(2):
        scans = [f"{raw.name}__case_{seed}__0000" for raw in (nifti, other)]
        for read in (store.image, store.labels):
            np.testing.assert_array_equal(read(scans[0])[:], read(scans[1])[:])
        grids = [store.record(name).geometry.grid.affine for name in scans]
        np.testing.assert_allclose(grids[0], grids[1], atol=1e-4)


def test_a_changed_plan_says_what_it_changes(nnunet_env: Path, caplog: pytest.LogCaptureFixture) -> None:
    raw = Raw(nnunet_env)
    raw.add("a")
    preprocess_datasets(plan(), [raw.name])
    logging.getLogger("satunet").propagate = True
    with caplog.at_level(logging.WARNING, logger="satunet"):
        summary = preprocess_datasets(plan((2.0, 2.0, 3.0)), [raw.name])
    assert summary.done_items and not summary.skipped_items
    for text in (summary.notes["plan"], caplog.text):
        assert "[2.0, 2.0, 2.0] → [2.0, 2.0, 3.0]" in text
    assert "plan" not in preprocess_datasets(plan((2.0, 2.0, 3.0)), [raw.name]).notes


def test_labels_come_back_to_the_file_within_a_voxel(nnunet_env: Path) -> None:
    """There and back on an anisotropic grid: what a structure loses lies on its surface."""
    raw = Raw(nnunet_env)
    image, label = raw.add("a")
    preprocess_datasets(plan((1.5, 1.5, 1.5)), [raw.name])
    store = ScanStore(nnunet_env / "preprocessed" / plan().dataset_name / plan().data_identifier)
    name = store.scan_ids[0]
    truth = np.asarray(nib.load(label).dataobj)
    for value in (1, 2):
        back = restore((store.labels(name)[:][0] == value).astype(np.float32), store.record(name).geometry) > 0.5
        overlap = 2 * (back & (truth == value)).sum() / (back.sum() + (truth == value).sum())
        assert overlap > 0.97
    assert image.is_file()
