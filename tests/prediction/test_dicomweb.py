"""A study of an archive, segmented and given back; the archive is Orthanc, asked behind our back over its own interface."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset

from satunet.cli import run
from satunet.images.dicom.web import Archive, ArchiveError, Credentials, StoredSeries
from satunet.images.image import read_label_map
from satunet.jobs.files import read_json
from satunet.jobs.progress import JobSummary
from satunet.prediction.study import store_results
from tests.images.dicom_files import positions, write_slices
from tests.prediction.conftest import write_model
from tests.prediction.orthanc import PASSWORD, USER, Orthanc, running

STUDY = "1.2.9"
SHAPE = (20, 18, 16)


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with running(tmp_path_factory.mktemp("orthanc")) as made:
        bring(made, tmp_path_factory.mktemp("in"), 4, "1.2.10", modality="OT")
        bring(made, tmp_path_factory.mktemp("in"), 5, "1.2.11", modality="MR")
        yield made


@pytest.fixture(autouse=True)
def who(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("USER", USER), ("PASSWORD", PASSWORD), ("TOKEN", "")):
        monkeypatch.setenv(f"DICOMWEB_{name}", value)


def volume(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2000, SHAPE).astype(np.uint16)


def bring(orthanc: Orthanc, folder: Path, number: int, study: str, *, description: str = "", **given: Any) -> None:
    """A series of a study, into the archive."""

    def edit(data: FileDataset, k: int) -> None:
        data.StudyInstanceUID, data.SeriesInstanceUID, data.SeriesNumber = study, f"{study}.{number}", number
        data.FrameOfReferenceUID = f"{study}.8.{number}"
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"{study}.{number}.{k + 1}"
        data.SeriesDescription = description

    for file in write_slices(folder / str(number), volume(number), edit=edit, **given):
        orthanc.put(file)


@pytest.mark.slow
def test_a_study_is_segmented_and_given_back(orthanc: Orthanc, tmp_path: Path) -> None:
    """Two volumes (one as JPEG 2000, which this archive cannot unpack), one broken series, one that is no scan."""
    bring(orthanc, tmp_path / "in", 1, STUDY, modality="MR", description="T1 axial")
    pack = {
        "pack": lambda p: imagecodecs.jpeg2k_encode(p, level=0, codecformat="j2k"),
        "syntax": "1.2.840.10008.1.2.4.90",
    }
    bring(orthanc, tmp_path / "in", 2, STUDY, modality="MR", **pack)
    places = positions(SHAPE[2])
    places[7] = places[7] + 1.0
    bring(orthanc, tmp_path / "in", 3, STUDY, modality="MR", description="broken", places=places)
    bring(orthanc, tmp_path / "in", 4, STUDY, modality="OT", description="drawing")
    model, out = write_model(tmp_path / "model"), tmp_path / "out"
    call = ["predict", "--dicomweb", orthanc.dicomweb, "--study", STUDY, "-m", str(model), "-f", "all", "-o", str(out)]
    call += ["-p", "bright", "left bright", "--device", "cpu"]
    assert run([*call, "--dry_run"]) == 1 and not out.exists()
    assert run(call) == 1  # the broken series, and nothing else
    summary = read_json(out / "prediction_summary.json")
    assert set(summary["done"]) == {"1_T1_axial", "2"} and list(summary["failed"]) == ["3_broken"]
    assert summary["notes"]["stored"] == f"4 objects in {orthanc.dicomweb}"

    found = [pydicom.dcmread(io.BytesIO(content)) for content in orthanc.objects("SEG")]
    assert {str(o.ReferencedSeriesSequence[0].SeriesInstanceUID) for o in found} == {f"{STUDY}.1", f"{STUDY}.2"}
    for seg in found:
        name = {"1": "1_T1_axial", "2": "2"}[seg.ReferencedSeriesSequence[0].SeriesInstanceUID[-1]]
        assert seg.StudyInstanceUID == STUDY and seg.PatientID == "P1"
        for prompt in ("bright", "left bright"):
            mask = read_label_map(out / name / f"{prompt.replace(' ', '_')}.nii.gz").array > 0
            assert 0 < mask.sum() < mask.size  # or the comparison shows nothing
            np.testing.assert_array_equal(voxels_of(seg, prompt), mask.sum())
    contours = [pydicom.dcmread(io.BytesIO(content)) for content in orthanc.objects("RTSTRUCT")]
    assert len(contours) == 2
    assert all({str(r.ROIName) for r in o.StructureSetROISequence} == {"bright", "left bright"} for o in contours)

    # Again: nothing is fetched, predicted or stored twice.
    images = {f: f.stat().st_mtime_ns for f in (out / "dicom").rglob("*.dcm")}
    assert len(images) == 3 * SHAPE[2]
    assert run(call) == 1 and len(read_json(out / "prediction_summary.json")["already_done"]) == 2
    assert {f: f.stat().st_mtime_ns for f in (out / "dicom").rglob("*.dcm")} == images
    assert len(orthanc.objects("SEG")) == 2

    # One series alone, kept here.
    alone = [*call, "--series", f"{STUDY}.2", "--keep_local"]
    alone[alone.index(str(out))] = str(tmp_path / "alone")
    assert run(alone) == 0 and len(orthanc.objects("SEG")) == 2
    assert (tmp_path / "alone" / "2" / "segmentation.dcm").is_file()


def voxels_of(seg: Any, prompt: str) -> int:
    """Voxels of a segment, of a label map or of binary frames; read by pydicom alone."""
    number = next(s.SegmentNumber for s in seg.SegmentSequence if s.SegmentLabel == prompt)
    if seg.SegmentationType == "LABELMAP":
        return int((seg.pixel_array == number).sum())
    pixels = seg.pixel_array
    frames = [
        pixels[i]
        for i, frame in enumerate(seg.PerFrameFunctionalGroupsSequence)
        if frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber == number
    ]
    return int(np.sum(frames))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"address": "http://127.0.0.1:9/dicom-web"}, "does not answer (Connection refused)"),
        ({"address": "@root/wrong"}, "answers with status 404: is it a DICOMweb address?"),
        ({"address": "@root/app/explorer.html?x"}, "address is like"),
        ({"address": "@root/app"}, "is it a DICOMweb address?"),
        ({"address": "ftp://x"}, "address is like"),
        ({"address": "http://a:b@127.0.0.1/"}, "DICOMweb's address must have no name and password"),
        ({"study": "1.2.99"}, "has no study 1.2.99"),
        ({"study": "1.2/../3"}, "is named by its UID"),
        ({"study": "1" * 65}, "is named by its UID"),
        ({"user": "nobody"}, "does not admit this user"),
        ({"series": "1.2.3.4"}, "the studies do not have series 1.2.3.4"),
        ({"study": "1.2.10"}, "no volumes to segment: the studies have 1 series, of modality OT"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_sentence(
    orthanc: Orthanc,
    tmp_path: Path,
    given: dict[str, str],
    told: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "user" in given:
        monkeypatch.setenv("DICOMWEB_USER", given["user"])
    address = given.get("address", "@root/dicom-web").replace("@root", orthanc.root)
    call = ["predict", "--dicomweb", address, "--study", given.get("study", "1.2.11"), "-o", str(tmp_path / "out")]
    call += ["-m", str(tmp_path), "-p", "x", *(["--series", given["series"]] if "series" in given else [])]
    assert run(call) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("INFO")]
    assert len(lines) == 1 and told in lines[0] and PASSWORD not in lines[0]


def test_options_that_do_not_go_together(tmp_path: Path) -> None:
    for call in (["--study", "1.2"], ["--dicomweb", "http://x"], ["--keep_local"]):
        assert _code(["predict", *call, "-o", str(tmp_path), "-p", "x"]) == 2
    assert (
        _code(["predict", "-i", "x", "--dicomweb", "http://x", "--study", "1.2", "-o", str(tmp_path), "-p", "x"]) == 2
    )


def _code(call: list[str]) -> Any:
    try:
        return run(call)
    except SystemExit as stop:
        return stop.code


class Line:
    """An archive behind a line that breaks, or that answers what nobody asked for; in the place of dicomweb-client's."""

    def __init__(self, files: list[Path]) -> None:
        self.images = {str(d.SOPInstanceUID): d for d in map(pydicom.dcmread, files)}
        self.breaks_after: int | None = None
        self.lost: set[str] = set()
        self.asked: list[str] = []

    def search_for_instances(self, limit: int, offset: int, **_: str) -> list[dict[str, Any]]:
        # Five at most, and the offset is not heeded by some archives: that must not go on for ever.
        return [{"00080018": {"vr": "UI", "Value": [uid]}} for uid in list(self.images)[offset : offset + 3]]

    def iter_series(self, study: str, series: str, media_types: Any) -> Iterator[Any]:
        import requests

        for number, image in enumerate(self.images.values()):
            if number == self.breaks_after:
                raise requests.exceptions.ChunkedEncodingError("Connection broken")
            yield image

    def retrieve_instance(self, study: str, series: str, uid: str, media_types: Any) -> Any:
        self.asked.append(uid)
        if uid in self.lost:
            import requests

            raise requests.exceptions.ConnectionError("gone")
        return self.images[uid]


@pytest.fixture
def line(tmp_path: Path) -> Line:
    return Line(write_slices(tmp_path / "in"))


def fetched(line: Line, folder: Path) -> Any:
    archive = Archive("http://127.0.0.1:9/x", Credentials())
    archive._client = line  # type: ignore[assignment]
    return archive.fetch(StoredSeries(study="1.2.9", uid="1.2.3", modality="CT"), folder)


def test_what_a_broken_line_left_out_is_asked_for_again(line: Line, tmp_path: Path) -> None:
    line.breaks_after = 2
    (series,) = fetched(line, tmp_path / "out")
    assert not series.fault and len(series.files) == 5 and sorted(line.asked) == sorted(list(line.images)[2:])
    series.files[0].unlink()  # and a second call asks for that one alone
    line.asked.clear()
    (again,) = fetched(line, tmp_path / "out")
    assert len(again.files) == 5 and line.asked == [series.files[0].stem]


def test_a_series_that_does_not_come_is_its_own_fault(line: Line, tmp_path: Path) -> None:
    line.breaks_after, line.lost = 0, set(line.images)
    (series,) = fetched(line, tmp_path / "out")
    assert "does not answer (gone)" in series.fault and series.uid == "1.2.3" and not series.files


def test_images_of_another_study_are_not_taken(line: Line, tmp_path: Path) -> None:
    list(line.images.values())[1].StudyInstanceUID = "1.2.666"
    (series,) = fetched(line, tmp_path / "out")
    assert series.fault == "1 of its 5 images could not be fetched from the archive"


def test_an_archive_that_does_not_heed_the_offset(line: Line, tmp_path: Path) -> None:
    every = [{"00080018": {"vr": "UI", "Value": [uid]}} for uid in line.images]
    line.search_for_instances = lambda limit, offset, **_: every  # type: ignore[method-assign]
    (series,) = fetched(line, tmp_path / "out")
    assert len(series.files) == 5


def test_an_object_that_is_refused_is_that_scans_failure(line: Line, tmp_path: Path) -> None:
    refused = pydicom.Dataset()
    item = pydicom.Dataset()
    item.FailureReason, item.ReferencedSOPInstanceUID = 0x0110, "1.2"
    refused.FailedSOPSequence = [item]
    line.store_instances = lambda datasets: refused  # type: ignore[attr-defined]
    archive = Archive("http://127.0.0.1:9/x", Credentials())
    archive._client = line  # type: ignore[assignment]
    (tmp_path / "out" / "a").mkdir(parents=True)
    (tmp_path / "in" / "000.dcm").rename(tmp_path / "out" / "a" / "segmentation.dcm")
    (tmp_path / "out" / "a" / "manifest.json").write_text('{"files": {"segmentation.dcm": {}, "x.nii.gz": {}}}')
    summary = JobSummary("prediction")
    store_results(archive, tmp_path / "out", ["a"], False, summary)
    assert summary.exit_code == 1 and "refuses it (reason 0110)" in summary.failures["a"]
    assert read_json(tmp_path / "out" / "prediction_summary.json")["failed"] == summary.failures


def test_names_of_instances_are_no_paths(line: Line, tmp_path: Path) -> None:
    line.images["../../evil"] = line.images.pop(next(iter(line.images)))
    (series,) = fetched(line, tmp_path / "out")
    assert "without a UID" in series.fault and not list(tmp_path.glob("*evil*"))


def test_who_asks_is_not_shown() -> None:
    who = Credentials.of_environment({"DICOMWEB_USER": "u", "DICOMWEB_PASSWORD": "p4ss", "DICOMWEB_TOKEN": "t0ken"})
    assert "p4ss" not in repr(who) and "t0ken" not in repr(who)
    with pytest.raises(ArchiveError):
        Archive("http://u:p4ss@127.0.0.1/", who)
