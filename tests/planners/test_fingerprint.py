from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from satunet.datasets.raw import load_dataset
from satunet.demo.synthetic import make_synthetic_datasets
from satunet.errors import DatasetError, PlanError
from satunet.geometry import Grid
from satunet.jobs.files import DIGEST
from satunet.planners.fingerprint import extraction
from satunet.planners.fingerprint.case import describe_labels
from satunet.planners.fingerprint.dataset import CaseFingerprint, DatasetFingerprint, merge_fingerprints
from satunet.planners.fingerprint.extraction import fingerprint_dataset
from satunet.planners.fingerprint.intensities import CaseIntensities, ChannelStatistics
from satunet.planners.options import PlanOptions
from satunet.planners.run import fingerprint_datasets, plan_datasets

KEYS = ["mean", "median", "std", "min", "max", "percentile_99_5", "percentile_00_5"]


def by_nnunet(name: str, samples: int = 50_000) -> dict[str, np.ndarray]:
    """What nnunetv2's extractor finds, case by case, with fewer samples than its 100 million."""
    cases = load_dataset(name).training_cases()
    found = [
        DatasetFingerprintExtractor.analyze_case([str(p) for p in c.images], str(c.label), SimpleITKIO, samples)
        for c in cases
    ]
    return {
        "shapes": np.array([f[0] for f in found]),
        "spacings": np.array([f[1] for f in found]),
        "relative_size": np.median([f[4] for f in found]),
        "intensities": np.concatenate([f[2][0] for f in found]).astype(np.float64),
    }


@pytest.mark.parametrize(
    "name",
    [
        "Dataset301_AbdomenOrgans_MR",
        "Dataset304_CardiacVentricles_MR",
        "Dataset306_FreeSurfer_MR",
        "Dataset308_HeadNeckOAR_CT",
        "Dataset317_SoftTissueSarcoma_PET",
        "Dataset322_Subcortical_MR",
    ],
)
def test_real_datasets_have_nnunets_fingerprint(
    real_raw: Path, nnunet_env: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("nnUNet_raw", str(real_raw))
    fingerprint_dataset(name)
    found = json.loads((nnunet_env / "preprocessed" / name / "dataset_fingerprint.json").read_text())
    expected = by_nnunet(name)
    np.testing.assert_array_equal(found["shapes_after_crop"], expected["shapes"])
    np.testing.assert_allclose(found["spacings"], expected["spacings"], rtol=1e-5)
    assert found["median_relative_size_after_cropping"] == pytest.approx(expected["relative_size"])
    values = expected["intensities"]
    got = found["foreground_intensity_properties_per_channel"]["0"]
    assert list(got) == KEYS
    spread = float(values.std())
    assert got["mean"] == pytest.approx(values.mean(), abs=0.02 * spread)
    assert got["std"] == pytest.approx(spread, rel=0.03)
    # in rank, where sampling errs, not in intensity: tails are flat
    for key, rank in (("percentile_00_5", 0.005), ("median", 0.5), ("percentile_99_5", 0.995)):
        below, upto = (values < got[key]).mean(), (values <= got[key]).mean()
        assert below - 0.005 <= rank <= upto + 0.005, key
    assert got["min"] <= values.min()
    assert got["max"] >= values.max()


def test_what_is_known_of_a_case_is_known_in_ras(nnunet_env: Path) -> None:
    name, _ = make_synthetic_datasets(nnunet_env / "raw", cases=3)
    found, summary = fingerprint_dataset(name)
    assert summary.exit_code == 0
    assert found.scans == len(found.cases) == 3
    for case in found.cases:
        assert case.spacing_ras == pytest.approx((3, 3, 4))
        assert case.shape_ras == (36, 32, 24)
        label = nib.load(nnunet_env / "raw" / name / "labelsTr" / f"{case.case}.nii.gz")
        ids, counts = np.unique(np.asarray(label.dataobj), return_counts=True)
        assert case.label_voxels == {int(i): int(n) for i, n in zip(ids, counts, strict=True) if i}
        assert sorted(case.spacing) == pytest.approx([3, 3, 4])


def test_a_fingerprint_is_read_as_it_was_written(nnunet_env: Path) -> None:
    name, _ = make_synthetic_datasets(nnunet_env / "raw", cases=2)
    found, _ = fingerprint_dataset(name)
    content = json.loads((nnunet_env / "preprocessed" / name / "dataset_fingerprint.json").read_text())
    assert DatasetFingerprint.of_file(content, "f") == found
    assert json.loads(json.dumps(DatasetFingerprint.of_file(content, "f").to_nnunet())) == content
    with pytest.raises(PlanError, match="f: not a dataset fingerprint"):
        DatasetFingerprint.of_file({"spacings": []}, "f")


def test_the_cache_goes_by_files_and_settings(nnunet_env: Path) -> None:
    name, _ = make_synthetic_datasets(nnunet_env / "raw", cases=2)
    folder = nnunet_env / "raw" / name
    assert len(fingerprint_dataset(name)[1].done_items) == 2
    assert len(fingerprint_dataset(name)[1].skipped_items) == 2
    first = folder / "imagesTr" / "case_00_0000.nii.gz"
    os.utime(first, (1, 1))  # as after a copy: other times, the same content
    assert len(fingerprint_dataset(name)[1].skipped_items) == 2
    image = nib.load(first)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj) + 1, image.affine), first)
    summary = fingerprint_dataset(name)[1]
    assert (len(summary.done_items), len(summary.skipped_items)) == (1, 1)
    content = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(content | {"channel_names": {"0": "PET"}}))
    again, summary = fingerprint_dataset(name)
    assert not summary.done_items  # what a channel is called changes no number of a case
    assert again.channels[0].modality == "pet"
    (folder / "dataset.json").write_text(json.dumps(content | {"labels": content["labels"] | {"more": 99}}))
    assert len(fingerprint_dataset(name)[1].done_items) == 2


def test_an_interrupted_extraction_goes_on_and_a_new_case_is_read_alone(nnunet_env: Path) -> None:
    name, _ = make_synthetic_datasets(nnunet_env / "raw", cases=5)
    whole, _ = fingerprint_dataset(name)
    folder = nnunet_env / "preprocessed" / name
    (folder / "dataset_fingerprint.json").unlink()
    (folder / "fingerprint_cases" / "case_02.json").unlink()
    (folder / "fingerprint_cases" / "case_03.json").write_text('{"version": ')  # as if written by something else
    short = folder / "fingerprint_cases" / "case_01.json"  # a channel is missing, and nobody sealed it
    content = {key: value for key, value in json.loads(short.read_text()).items() if key != DIGEST}
    short.write_text(json.dumps(content | {"channels": []}))
    odd = folder / "fingerprint_cases" / "case_04.json"  # no scan has such an offset from HU
    content = {key: value for key, value in json.loads(odd.read_text()).items() if key != DIGEST}
    odd.write_text(json.dumps(content | {"offsets": [1e308]}))
    again, summary = fingerprint_dataset(name)
    assert [item.rpartition("/")[2] for item in summary.done_items] == ["case_01", "case_02", "case_03", "case_04"]
    assert again == whole


def test_labels_have_voxels_extents_and_centroids_in_ras() -> None:
    labels = np.zeros((20, 10, 8), np.uint8)
    labels[2:6, 3:5, 1:8] = 3
    labels[15, 9, 0] = 200
    affine = np.diag([0.5, 2.0, 3.0, 1.0])
    affine[:3, 3] = (-4, 10, 100)
    voxels, extents, centroids = describe_labels(labels, Grid(shape=labels.shape, affine=affine))
    assert voxels == {3: 4 * 2 * 7, 200: 1}
    assert extents == {3: (2.0, 4.0, 21.0), 200: (0.5, 2.0, 3.0)}
    assert centroids[3] == pytest.approx((-4 + 3.5 * 0.5, 10 + 3.5 * 2, 100 + 4 * 3))
    assert centroids[200] == pytest.approx((3.5, 28, 100))


@pytest.mark.parametrize("orientation", ["RAS", "LPI", "ASR"])
def test_label_numbers_do_not_depend_on_the_files_axes(nnunet_env: Path, orientation: str) -> None:
    name, _ = make_synthetic_datasets(nnunet_env / "raw", cases=1)
    expected = fingerprint_dataset(name)[0].cases[0]
    for part in ("imagesTr", "labelsTr"):
        for file in (nnunet_env / "raw" / name / part).iterdir():
            image = nib.load(file)
            turn = nib.orientations.ornt_transform(
                nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(orientation)
            )
            nib.save(image.as_reoriented(turn), file)
    found = fingerprint_dataset(name)[0].cases[0]
    assert found.label_voxels == expected.label_voxels
    for n, extent in expected.label_extents_mm.items():
        assert found.label_extents_mm[n] == pytest.approx(extent, abs=0.01)
        assert found.label_centroids_mm[n] == pytest.approx(expected.label_centroids_mm[n], abs=0.01)


PUBLISHED = {
    "spacings": [[3.0, 1.0, 0.5], [2.0, 0.7, 0.7]],
    "shapes_after_crop": [[40, 200, 300], [60, 512, 511]],
    "median_relative_size_after_cropping": 0.9,
    "foreground_intensity_properties_per_channel": {
        "0": {"max": 900.0, "mean": 100.0, "median": 95.0, "min": -800.0, "percentile_00_5": -90.0,
              "percentile_99_5": 300.0, "std": 70.0}
    },
}  # fmt: skip


def test_a_published_fingerprint_is_used_without_scans(nnunet_env: Path) -> None:
    name = "Dataset007_Somewhere"
    (nnunet_env / "raw" / name).mkdir()
    description = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}, "numTraining": 2}
    (nnunet_env / "raw" / name / "dataset.json").write_text(json.dumps(description))
    folder = nnunet_env / "preprocessed" / name
    folder.mkdir()
    (folder / "dataset_fingerprint.json").write_text(json.dumps(PUBLISHED))
    found, summary = fingerprint_dataset(name)
    assert summary.exit_code == 0
    assert found.approximate
    assert [(c.spacing_ras, c.shape_ras) for c in found.cases] == [
        ((0.5, 1.0, 3.0), (300, 200, 40)),
        ((0.7, 0.7, 2.0), (511, 512, 60)),
    ]
    again = found.channels[0].to_nnunet()
    assert again == pytest.approx(PUBLISHED["foreground_intensity_properties_per_channel"]["0"])
    # with an own dataset: exact where it can be, and it says that it is approximate
    own, _ = make_synthetic_datasets(nnunet_env / "raw", cases=2)
    merged = merge_fingerprints([found, fingerprint_dataset(own)[0]])
    assert merged.approximate
    assert merged.scans == 4
    wrong = PUBLISHED | {"spacings": [[1.0, 1.0, 1.0]]}
    (folder / "dataset_fingerprint.json").write_text(json.dumps(wrong))
    with pytest.raises(PlanError, match=f"{name}.*1 spacings, 2 shapes"):
        fingerprint_dataset(name)
    (folder / "dataset_fingerprint.json").write_text(json.dumps(PUBLISHED | {"satunet": {"version": 1}}))
    with pytest.raises(PlanError, match="version 1; this satunet reads version"):
        fingerprint_dataset(name)


def test_a_sketch_made_of_published_numbers_has_their_percentiles() -> None:
    numbers = PUBLISHED["foreground_intensity_properties_per_channel"]["0"]
    for cases in (1, 7, 5004):
        channel = ChannelStatistics.from_nnunet(numbers, cases, "ct")
        low, median, high = channel.percentiles([0.5, 50, 99.5])
        assert low == pytest.approx(-90, abs=12)
        assert median == pytest.approx(95, abs=1)
        assert high == pytest.approx(300, abs=12)


case_values = st.lists(
    st.tuples(st.floats(-1000, 1000), st.floats(0.1, 500), st.integers(1, 400)), min_size=1, max_size=4
)


@settings(max_examples=25, deadline=None)
@given(st.lists(case_values, min_size=3, max_size=3), st.integers(0, 2**31))
def test_merging_is_associative_and_commutative_and_gives_the_unions_own(
    parts: list[list[tuple[float, float, int]]], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    drawn = [[rng.normal(mean, std, size=size) for mean, std, size in part] for part in parts]
    described = [[CaseIntensities.of(case, 10**6) for case in part] for part in drawn]
    prints = []
    for number, part in enumerate(described):
        shapes = [tuple(int(n) for n in rng.integers(1, 500, 3)) for _ in part]
        cases = tuple(
            CaseFingerprint(
                dataset=f"Dataset{number:03d}_X", case=f"{i}", channels=1, spacing=(1.0, 1.0, 1.0),
                shape_after_crop=shape, relative_size=1.0, spacing_ras=(1.0, 1.0, 1.0), shape_ras=shape,
            )
            for i, shape in enumerate(shapes)
        )  # fmt: skip
        channels = (ChannelStatistics.of(part, "mri"),)
        prints.append(DatasetFingerprint(dataset=f"Dataset{number:03d}_X", cases=cases, channels=channels))
    a, b, c = prints
    own = ChannelStatistics.of([case for part in described for case in part], "mri")
    # numpy's own percentiles of a case lie on the line between two of its voxels, not on one of them
    evenly = np.linspace(0, 1, 20_001)
    pooled = np.concatenate([np.quantile(case, evenly) for part in drawn for case in part])
    ways = [
        merge_fingerprints([a, b, c]),
        merge_fingerprints([c, a, b]),
        merge_fingerprints([merge_fingerprints([a, b]), c]),
        merge_fingerprints([a, merge_fingerprints([c, b])]),
    ]
    for way in ways:
        assert way.cases == ways[0].cases
        (channel,) = way.channels
        assert channel.cases == own.cases
        assert channel.mean_sum == pytest.approx(own.mean_sum, rel=1e-12, abs=1e-9)
        assert channel.square_sum == pytest.approx(own.square_sum, rel=1e-12)
        assert (channel.minimum, channel.maximum) == (own.minimum, own.maximum)
        for rank, value in zip((0.5, 10, 50, 99.5), channel.percentiles((0.5, 10, 50, 99.5)), strict=True):
            spread = 1e-6 * max(1.0, abs(value))
            below, upto = (pooled < value - spread).mean(), (pooled <= value + spread).mean()
            assert below - 0.005 <= rank / 100 <= upto + 0.005


def test_bad_cases_are_named_now_and_from_the_cache(nnunet_env: Path) -> None:
    name, _ = make_synthetic_datasets(nnunet_env / "raw", cases=3)
    (nnunet_env / "raw" / name / "imagesTr" / "case_01_0000.nii.gz").write_bytes(b"nothing")
    for _ in range(2):
        found, summary = fingerprint_dataset(name)
        assert [c.case for c in found.cases] == ["case_00", "case_02"]
        assert list(summary.failures) == [f"{name}/case_01"]
        assert "case_01_0000.nii.gz" in summary.failures[f"{name}/case_01"]
    for file in (nnunet_env / "raw" / name / "labelsTr").iterdir():
        file.unlink()
    with pytest.raises(DatasetError, match="none of its 3 cases"):
        fingerprint_dataset(name)


def test_channels_on_different_grids_are_a_bad_case(nnunet_env: Path) -> None:
    name, _ = make_synthetic_datasets(nnunet_env / "raw", cases=2)
    folder = nnunet_env / "raw" / name
    content = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(content | {"channel_names": {"0": "T1", "1": "T2"}}))
    for case, moved in ((0, 0.0), (1, 2.0)):
        image = nib.load(folder / "imagesTr" / f"case_{case:02d}_0000.nii.gz")
        affine = image.affine.copy()
        affine[0, 3] += moved
        nib.save(
            nib.Nifti1Image(np.asarray(image.dataobj), affine), folder / "imagesTr" / f"case_{case:02d}_0001.nii.gz"
        )
    found, summary = fingerprint_dataset(name)
    assert found.scans == 2
    assert list(summary.failures) == [f"{name}/case_01"]


def test_values_that_nnunetv2_extracted_are_kept(nnunet_env: Path) -> None:
    name, _ = make_synthetic_datasets(nnunet_env / "raw", cases=2)
    fingerprint_dataset(name)
    file = nnunet_env / "preprocessed" / name / "dataset_fingerprint.json"
    theirs = {key: value for key, value in json.loads(file.read_text()).items() if key != "satunet"}
    theirs["foreground_intensity_properties_per_channel"]["0"]["mean"] = 12345.0
    file.write_text(json.dumps(theirs))
    fingerprint_dataset(name)
    content = json.loads(file.read_text())
    assert {key: content[key] for key in theirs} == theirs
    assert len(fingerprint_dataset(name)[1].skipped_items) == 2


def test_a_union_is_computed_from_its_parts() -> None:
    rng = np.random.default_rng(0)
    parts = [[rng.normal(50 * i, 10, size=n) for n in (500, 40_000)] for i in range(3)]
    channels = [ChannelStatistics.of([CaseIntensities.of(c, 10**6) for c in cases], "mri") for cases in parts]
    merged = channels[0].merge(channels[1]).merge(channels[2])
    # every case weighs the same, whatever its size
    drawn = np.concatenate([rng.choice(case, 100_000) for cases in parts for case in cases])
    found = merged.to_nnunet()
    assert merged.cases == 6
    assert found["mean"] == pytest.approx(drawn.mean(), abs=0.5)
    assert found["std"] == pytest.approx(drawn.std(), rel=0.01)
    assert found["min"] == min(case.min() for cases in parts for case in cases)
    for key, rank in (("percentile_00_5", 0.005), ("median", 0.5), ("percentile_99_5", 0.995)):
        assert (drawn < found[key]).mean() == pytest.approx(rank, abs=0.004)
    assert channels[0].merge(ChannelStatistics.of([None], "mri")).to_nnunet()["mean"] == channels[0].to_nnunet()["mean"]


def test_percentiles_of_one_case_are_exact() -> None:
    values = np.random.default_rng(0).normal(size=5001)
    found = ChannelStatistics.of([CaseIntensities.of(values, 10**6)], "ct").to_nnunet()
    low, median, high = np.percentile(values.astype(np.float32), [0.5, 50, 99.5])
    assert found["median"] == pytest.approx(median, abs=1e-6)
    assert (found["percentile_00_5"], found["percentile_99_5"]) == pytest.approx((low, high), rel=0.01)


def test_merging_datasets_gives_one_channel_a_modality(nnunet_env: Path) -> None:
    names = make_synthetic_datasets(nnunet_env / "raw", cases=2)
    fingerprints, _ = fingerprint_datasets(names)
    merged = merge_fingerprints(fingerprints, "Dataset900_Unified")
    assert [c.modality for c in merged.channels] == ["ct", "mri"]
    assert merged.scans == 4
    assert DatasetFingerprint.of_file(json.loads(json.dumps(merged.to_nnunet())), "f") == merged
    with pytest.raises(ValueError, match="nothing"):
        merge_fingerprints([])


def test_a_file_with_its_old_time_and_voxels_behind_a_header_are_seen(nnunet_env: Path) -> None:
    name, _ = make_synthetic_datasets(nnunet_env / "raw", cases=1)
    folder = nnunet_env / "raw" / name
    content = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(content | {"file_ending": ".mhd"}))
    for part in ("imagesTr", "labelsTr"):
        (file,) = (folder / part).iterdir()
        sitk.WriteImage(sitk.ReadImage(str(file)), str(file).replace(".nii.gz", ".mhd"))
        file.unlink()
    before = fingerprint_dataset(name)[0]
    voxels = folder / "imagesTr" / "case_00_0000.raw"
    assert voxels.is_file()
    times = voxels.stat()
    data = np.fromfile(voxels, dtype=np.uint8)
    data[: data.size // 2] = data[0]
    data.tofile(voxels)
    os.utime(voxels, ns=(times.st_atime_ns, times.st_mtime_ns))
    after, summary = fingerprint_dataset(name)
    assert len(summary.done_items) == 1
    assert after.cases[0].scans != before.cases[0].scans


def test_a_plan_of_known_fingerprints_imports_nothing_that_reads_scans(nnunet_env: Path) -> None:
    """nibabel and the pydicom that it imports take longer than the plan of a few datasets."""
    names = make_synthetic_datasets(nnunet_env / "raw", cases=2)
    fingerprint_datasets(names)
    heavy = ("nibabel", "pydicom", "SimpleITK", "torch", "scipy", "pandas")
    code = (
        "import sys\nfrom satunet.cli import run\nfrom satunet.jobs import fresh\n"
        "fresh.RACY_NS = 0\n"  # the scans were written a moment ago, and would be read again
        f"code = run(['plan', '-d', *{names!r}, '--gpu_memory', '1'])\n"
        f"print('imported', *[name for name in {heavy!r} if name in sys.modules])\nsys.exit(code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].strip() == "imported"


def test_scans_are_read_with_the_collection_of_garbage(nnunet_env: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan pauses it for its records; arrays that are held by cycles must still go."""
    names = make_synthetic_datasets(nnunet_env / "raw", cases=2)
    seen = []

    def read(job: Any) -> Any:
        seen.append(gc.isenabled())
        return analyze(job)

    analyze = extraction._analyze
    monkeypatch.setattr(extraction, "_analyze", read)
    plan_datasets(names, PlanOptions(gpu_memory_gb=1))
    assert seen == [True] * 4
    assert gc.isenabled()
