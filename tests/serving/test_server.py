"""A server with a model of known answer: what goes in over HTTP comes out as the command line would write it."""

from __future__ import annotations

import contextlib
import io
import json
import resource
import shutil
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from fastapi.testclient import TestClient

from satunet.errors import ScanTooLargeError, UserError
from satunet.geometry import Grid
from satunet.images.image import read_label_map, write_volume
from satunet.prediction import Predictor
from satunet.prediction.door.inputs import Scan
from satunet.prediction.folder import predict_folder
from satunet.prediction.options import Outputs
from satunet.serving.app import create_app
from satunet.serving.memory import Recent
from satunet.serving.options import ServeOptions
from tests.images.dicom_files import write_slices
from tests.prediction.conftest import make_model

GRID = Grid(shape=(24, 20, 18), affine=np.diag([1.0, 1.0, 1.0, 1.0]))


def phantom() -> np.ndarray[Any, Any]:
    """A bright box in the dark."""
    image = np.zeros(GRID.shape, np.float32)
    image += np.random.default_rng(0).normal(0, 0.01, GRID.shape).astype(np.float32)
    image[6:14, 5:12, 4:10] += 5
    return image


@pytest.fixture
def scan(tmp_path: Path) -> bytes:
    write_volume(tmp_path / "scan.nii.gz", phantom(), like=GRID)
    return (tmp_path / "scan.nii.gz").read_bytes()


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    app = create_app(Predictor(make_model(), device="cpu"), tmp_path / "desk", ServeOptions())
    with TestClient(app, raise_server_exceptions=False) as made:
        yield made


def bring(client: TestClient, content: bytes, name: str = "x.nii.gz") -> str:
    answer = client.post("/scans", params={"filename": name}, content=content)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["scan"])


def finished(client: TestClient, job: str) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while (answer := client.get(f"/jobs/{job}").json())["state"] in ("waiting", "running"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return dict(answer)


def ask(client: TestClient, scan: str, **asked: Any) -> dict[str, Any]:
    answer = client.post(f"/scans/{scan}/jobs", json={"prompts": ["bright"], **asked})
    assert answer.status_code == 202, answer.text
    return finished(client, answer.json()["job"])


def test_a_scan_and_a_word_give_the_mask(client: TestClient, scan: bytes, tmp_path: Path) -> None:
    name = bring(client, scan)
    told = {"scan": name, "shape": [24, 20, 18], "spacing_mm": [1.0, 1.0, 1.0], "dicom": False}
    assert client.get(f"/scans/{name}").json() == told
    done = ask(client, name)
    assert done["state"] == "done" and done["progress"] == 1 and done["modality"] == "mri"
    (entry,) = done["prompts"]
    assert entry["class"] == "bright" and entry["voxels"] == 8 * 7 * 6
    mask = tmp_path / "mask.nii.gz"
    mask.write_bytes(client.get(f"/jobs/{done['job']}/files/bright.nii.gz").content)
    found = read_label_map(mask)
    np.testing.assert_array_equal(found.array > 0, phantom() > 2.5)
    np.testing.assert_allclose(found.grid.affine, GRID.affine)
    assert client.get(f"/scans/{name}/image").content == scan


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Writing more than ``size`` bytes to a file fails, as it does where a disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_without_room_is_told_and_the_next_request_works(
    client: TestClient, scan: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = bring(client, scan)
    folders = sorted((tmp_path / "desk").iterdir())
    with files_of_at_most(100):
        refused = client.post("/scans", params={"filename": "x.nii.gz"}, content=scan)
        failed = ask(client, name)
    assert refused.status_code == 507
    for told in (refused.json()["detail"], failed["error"]):
        assert told == "the server's disk does not take it (file too large); nothing of it is kept, ask again later"
    assert failed["state"] == "failed"
    assert sorted((tmp_path / "desk").iterdir()) == folders and not list(folders[0].glob("results/*"))
    assert "Traceback" not in caplog.text
    assert ask(client, name)["state"] == "done"


def test_a_manifest_does_not_say_where_the_server_is(client: TestClient, scan: bytes, tmp_path: Path) -> None:
    name = bring(client, scan)
    for combine, file in ((False, "manifest.json"), (True, "scan.json")):
        done = ask(client, name, prompts=["bright", "/bright/"], combine=combine)
        text = client.get(f"/jobs/{done['job']}/files/{file}").text
        assert str(tmp_path) not in text
        found = json.loads(text)
        assert found["source"] == "upload.nii.gz" and found["model"] == ["model"]
        assert found["stamp"]["files"][0]["path"] == "upload.nii.gz" and found["stamp"]["files"][0]["sha256"]
        assert [p["prompt"] for p in found["prompts"]] == ["bright", "/bright/"] == found["requested"]


def test_one_label_map_and_what_its_numbers_mean(client: TestClient, scan: bytes) -> None:
    done = ask(client, bring(client, scan), combine=True)
    assert done["prompts"][0]["label"] == 1 and "scan.nii.gz" in done["files"]


def test_measures_and_instances_as_the_command_line_writes_them(
    client: TestClient, scan: bytes, tmp_path: Path
) -> None:
    done = ask(client, bring(client, scan), measures=True, prompts=["bright", "coffee cup"])
    first, unknown = done["prompts"]
    assert "measures" not in unknown and "measures.csv" in done["files"]
    answer = client.get(f"/jobs/{done['job']}/files/measures.csv")
    assert answer.headers["content-type"].startswith("text/csv")
    predictor = Predictor(make_model(), device="cpu", outputs=Outputs(measures=True))
    (tmp_path / "scan.nii.gz").write_bytes(scan)
    predict_folder([tmp_path / "scan.nii.gz"], tmp_path / "out", predictor, ["bright", "coffee cup"])
    assert answer.text == (tmp_path / "out" / "scan" / "measures.csv").read_text("utf-8")
    written = json.loads((tmp_path / "out" / "scan" / "manifest.json").read_text("utf-8"))["prompts"][0]
    assert first["measures"] == written["measures"]
    assert first["measures"]["volume_ml"] == pytest.approx(8 * 7 * 6 / 1000) and first["measures"]["air"] is None
    assert set(first) >= {"prompt", "class", "status", "seen", "voxels", "volume_ml", "file", "box"}
    combined = ask(client, bring(client, scan), measures=True, combine=True)
    assert "scan_measures.csv" in combined["files"] and combined["prompts"][0]["measures"] == first["measures"]
    assert "measures" not in ask(client, bring(client, scan))["prompts"][0]


def test_two_lesions_are_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("satunet.prediction.results.outputs.comes_in_numbers", lambda name, space: True)
    image = phantom()
    image[16:20, 14:18, 12:16] += 5
    write_volume(tmp_path / "two.nii.gz", image, like=GRID)
    app = create_app(Predictor(make_model(), device="cpu"), tmp_path / "desk", ServeOptions())
    with TestClient(app, raise_server_exceptions=False) as client:
        name = bring(client, (tmp_path / "two.nii.gz").read_bytes())
        done = ask(client, name, instances=True)
        (entry,) = done["prompts"]
        assert [(i["number"], i["voxels"]) for i in entry["instances"]] == [(1, 4 * 4 * 4), (2, 8 * 7 * 6)]
        assert "bright_instances.nii.gz" in done["files"]
        both = client.post(f"/scans/{name}/jobs", json={"prompts": ["bright"], "instances": True, "combine": True})
        assert both.status_code == 422 and "one mask per prompt" in both.json()["detail"]


def test_a_report_of_a_dicom_series(client: TestClient, tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    pytest.importorskip("highdicom")
    volume = np.full((30, 28, 26), 100, np.uint16) + np.arange(26, dtype=np.uint16)  # no two slices alike
    volume[5:15, 6:16, 7:17] += 2000
    write_slices(tmp_path / "series", volume, modality="MR")
    files = {f"{n}.dcm": f.read_bytes() for n, f in enumerate(sorted((tmp_path / "series").iterdir()))}
    name = bring(client, archive(**files), "x.zip")
    assert client.get(f"/scans/{name}").json()["dicom"] is True
    done = ask(client, name, dicom_sr=True, rtstruct=True)
    assert {"segmentation.dcm", "report.dcm", "structures.dcm"} <= set(done["files"]), done["error"]
    answer = client.get(f"/jobs/{done['job']}/files/report.dcm")
    assert answer.headers["content-type"] == "application/dicom"
    assert pydicom.dcmread(io.BytesIO(answer.content)).Modality == "SR"


def test_what_everything_leaves_out_is_told(tmp_path: Path, scan: bytes) -> None:
    model = make_model()
    model = replace(model, plan=replace(model.plan, class_spacings_mm={"mri": {"left bright": (0.25,)}}))
    with TestClient(create_app(Predictor(model, device="cpu"), tmp_path / "desk", ServeOptions())) as client:
        name = bring(client, scan)
        done = ask(client, name, prompts=None)
        assert done["not_looked_for"] == ["left bright"]
        assert {p["class"] for p in done["prompts"]} == {"bright", "right bright"}
        named = ask(client, name, prompts=["left bright"])
        assert named["not_looked_for"] == [] and named["prompts"][0]["voxels"]


def test_words_that_need_finer_voxels_than_there_is_memory_for_are_refused(
    tmp_path: Path, scan: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan's voxels fit, and the scan is known by then; those of a class that was asked for next do not."""
    model = make_model()
    model = replace(model, plan=replace(model.plan, class_spacings_mm={"mri": {"left bright": (0.02,)}}))
    monkeypatch.setattr("satunet.prediction.door.limits.available_memory", lambda: 1_000_000_000)
    with TestClient(create_app(Predictor(model, device="cpu"), tmp_path / "desk", ServeOptions())) as client:
        name = bring(client, scan)
        assert ask(client, name)["state"] == "done"
        refused = ask(client, name, prompts=["left bright"])
        assert (
            refused["state"] == "failed"
            and "resampled to 0.02 × 0.02 × 0.02 mm for the requested classes" in refused["error"]
        )
        assert ask(client, name)["state"] == "done"


def test_the_next_words_on_a_scan_are_not_encoded_again(client: TestClient, scan: bytes) -> None:
    name = bring(client, scan)
    first = ask(client, name)
    features = client.app.state.desk.features  # type: ignore[attr-defined]
    windows, hits = features.misses, features.hits
    assert windows > 1 and hits == 0
    second = ask(client, name, combine=True)
    assert (features.misses, features.hits) == (windows, windows)
    assert second["prompts"][0]["voxels"] == first["prompts"][0]["voxels"]
    other = ask(client, bring(client, scan))  # the same voxels under another name
    assert features.misses == windows and other["prompts"][0]["voxels"] == first["prompts"][0]["voxels"]


def test_the_file_of_a_known_scan_is_not_read_again(
    client: TestClient, scan: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    from satunet.jobs import fresh

    name = bring(client, scan)
    ask(client, name)
    stamps = [client.get(f"/jobs/{ask(client, name)['job']}/files/manifest.json").json()["stamp"] for _ in range(2)]
    uploaded = client.app.state.desk.scan(name).scan.path  # type: ignore[attr-defined]
    read: list[Path] = []
    hashed = fresh.content_hash
    monkeypatch.setattr(fresh, "content_hash", lambda path: read.append(path) or hashed(path))
    monkeypatch.setattr(fresh, "RACY_NS", 0)  # as if the scan had come a while ago
    for _ in range(2):
        answer = ask(client, name)
        stamps.append(client.get(f"/jobs/{answer['job']}/files/manifest.json").json()["stamp"])
    assert uploaded not in read
    assert {s["files"][0]["sha256"] for s in stamps} == {hashed(uploaded)}
    uploaded.write_bytes(uploaded.read_bytes() + b" ")  # whoever changes it is noticed
    assert client.app.state.desk.prepared.get(client.app.state.desk.scan(name).scan) is None  # type: ignore[attr-defined]


def test_unknown_words_are_told_and_give_no_mask(client: TestClient, scan: bytes) -> None:
    done = ask(client, bring(client, scan), prompts=["coffee cup"])
    assert (
        done["state"] == "done" and done["prompts"][0]["status"] == "unknown" and not done["prompts"][0].get("voxels")
    )


def test_every_class(client: TestClient, scan: bytes) -> None:
    done = ask(client, bring(client, scan), prompts=None)
    assert {p["class"] for p in done["prompts"]} == {"bright", "left bright", "right bright"}


@pytest.mark.parametrize(
    ("name", "content", "code", "told"),
    [
        ("x.nii.gz", b"not an image", 422, "x"),
        ("x.nii.gz", b"", 422, ""),
        ("x.png", b"x", 422, "file name must end in"),
        ("x.mhd", b"x", 422, "voxels in a second file"),
        ("../../../etc/x.nii.gz", b"x", 422, ""),
        ("x.zip", b"PK", 422, "the archive cannot be unpacked"),
    ],
)
def test_what_is_no_scan_is_one_sentence(
    client: TestClient, tmp_path: Path, name: str, content: bytes, code: int, told: str
) -> None:
    answer = client.post("/scans", params={"filename": name}, content=content)
    assert answer.status_code == code
    assert (told if told != "x" else "") in answer.json()["detail"] and "Traceback" not in answer.text
    assert str(tmp_path) not in answer.text
    assert not [f for f in (tmp_path / "desk").rglob("*") if f.is_file()]


def test_a_header_that_claims_more_than_there_is_memory_is_refused_unread(client: TestClient) -> None:
    header = nib.Nifti1Header()
    header.set_data_shape((30000, 30000, 30000))
    header.set_data_dtype(np.float32)
    header["vox_offset"] = 352
    answer = client.post("/scans", params={"filename": "big.nii"}, content=header.binaryblock + b"\0" * 64)
    assert answer.status_code == 422


def archive(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as written:
        for name, content in members.items():
            written.writestr(name, content)
    return stream.getvalue()


def test_an_archive_stays_in_its_folder_and_within_its_size(client: TestClient, scan: bytes, tmp_path: Path) -> None:
    name = bring(client, archive(**{"../../evil/scan.nii.gz": scan}), "x.zip")
    assert ask(client, name)["state"] == "done"
    assert not (tmp_path / "evil").exists() and not (tmp_path.parent / "evil").exists()
    small = create_app(Predictor(make_model(), device="cpu"), tmp_path / "small", ServeOptions(most_upload_mb=0.05))
    with TestClient(small) as other:
        bomb = archive(**{"a.nii": b"\0" * 600_000})  # 600 bytes that become 600 kB
        assert len(bomb) < 50_000
        answer = other.post("/scans", params={"filename": "x.zip"}, content=bomb)
        assert answer.status_code == 413 and "unpacks to more than" in answer.json()["detail"]
        answer = other.post("/scans", params={"filename": "x.nii"}, content=b"\0" * 60_000)
        assert answer.status_code == 413
        assert not [f for f in (tmp_path / "small").rglob("*") if f.is_file()]


def test_what_is_not_there_is_404(client: TestClient, scan: bytes) -> None:
    for path in ("/scans/none", "/jobs/none", "/scans/none/image", "/jobs/none/files/x", "/scans/..%2f..%2fetc/image"):
        assert client.get(path).status_code == 404, path
    name = bring(client, scan)
    done = ask(client, name)
    for wrong in ("nothing.nii.gz", "..%2f..%2fupload.nii.gz", "%2fetc%2fpasswd"):
        assert client.get(f"/jobs/{done['job']}/files/{wrong}").status_code == 404
    assert client.delete(f"/scans/{name}").status_code == 204
    assert client.get(f"/scans/{name}").status_code == 404 and client.get(f"/jobs/{done['job']}").status_code == 404


@pytest.mark.parametrize(
    "asked",
    [{}, {"prompts": []}, {"prompts": [""]}, {"prompts": "bright"}, {"prompts": ["bright"], "modality": "x"},
     {"prompts": ["bright"], "colour": 1}, {"prompts": ["x" * 501]}, {"prompts": [" "]}],
)  # fmt: skip
def test_wrong_questions_are_422(client: TestClient, scan: bytes, asked: dict[str, Any]) -> None:
    assert client.post(f"/scans/{bring(client, scan)}/jobs", json=asked).status_code == 422


def test_jobs_can_be_cancelled_and_a_full_queue_says_so(tmp_path: Path, scan: bytes) -> None:
    predictor = Predictor(make_model(), device="cpu")
    slow = predictor.with_networks(_Slow)
    app = create_app(slow, tmp_path / "desk", ServeOptions(queue=1))
    with TestClient(app) as client:
        name = bring(client, scan)
        jobs = []
        for _ in range(8):
            answer = client.post(f"/scans/{name}/jobs", json={"prompts": ["bright"]})
            if answer.status_code == 503:
                break
            jobs.append(answer.json()["job"])
        assert answer.status_code == 503 and answer.headers["retry-after"] == "10"
        for job in jobs:
            client.delete(f"/jobs/{job}")
        assert {finished(client, job)["state"] for job in jobs} <= {"cancelled", "done"}
        assert "cancelled" in {finished(client, job)["state"] for job in jobs}
        assert ask(client, name)["state"] == "done"  # the next one goes on


def test_a_job_is_answered_for_when_it_ends(tmp_path: Path, scan: bytes) -> None:
    """Who waits hears of the end at once, of a job that goes on after the time given, and waits no longer than allowed."""

    class Patient(_Slow):
        def encode_image(self, image: Any) -> Any:
            assert may_end.wait(60)
            return self.network.encode_image(image)

    may_end = threading.Event()
    app = create_app(Predictor(make_model(), device="cpu").with_networks(Patient), tmp_path / "desk", ServeOptions())
    with TestClient(app) as client:
        name = bring(client, scan)
        job = client.post(f"/scans/{name}/jobs", json={"prompts": ["bright"]}).json()["job"]
        assert client.get(f"/jobs/{job}").json()["state"] in ("waiting", "running")
        started = time.monotonic()
        assert client.get(f"/jobs/{job}?wait=0.3").json()["state"] == "running"
        assert time.monotonic() - started >= 0.3
        threading.Timer(0.2, may_end.set).start()
        assert client.get(f"/jobs/{job}?wait=10").json()["state"] == "done"  # in one question
        assert client.get(f"/jobs/{job}?wait=10").json()["state"] == "done"
        for wrong in ("-1", "11", "nan", "a while"):
            assert client.get(f"/jobs/{job}?wait={wrong}").status_code == 422, wrong


def test_the_next_scan_is_read_while_the_network_works(tmp_path: Path, scan: bytes) -> None:
    """The first job ends only after the second job's scan is ready; results are each scan's own."""

    class Patient(_Slow):
        def encode_image(self, image: Any) -> Any:
            assert read.wait(60), "no other scan was read meanwhile"
            return self.network.encode_image(image)

    read = threading.Event()
    app = create_app(Predictor(make_model(), device="cpu").with_networks(Patient), tmp_path / "desk", ServeOptions())
    desk = app.state.desk
    put = desk.prepared.put

    def remembered(*given: Any) -> None:
        put(*given)
        if len(desk.prepared._recent._values) == 2:
            read.set()

    desk.prepared.put = remembered
    write_volume(tmp_path / "other.nii.gz", np.roll(phantom(), 3, axis=0), like=GRID)
    with TestClient(app) as client:
        names = [bring(client, scan), bring(client, (tmp_path / "other.nii.gz").read_bytes())]
        jobs = [client.post(f"/scans/{n}/jobs", json={"prompts": ["bright"]}).json()["job"] for n in names]
        assert [finished(client, job)["state"] for job in jobs] == ["done", "done"]
        masks = [client.get(f"/jobs/{job}/files/bright.nii.gz").content for job in jobs]
        assert masks[0] != masks[1]


def test_jobs_on_one_scan_are_done_in_turn(client: TestClient, scan: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second finds the scan prepared: it is read once."""
    read, reads = Scan.read, []

    def slowly(self: Scan) -> Any:
        reads.append(self.path)
        time.sleep(0.2)
        return read(self)

    name = bring(client, scan)
    monkeypatch.setattr(Scan, "read", slowly)
    jobs = [client.post(f"/scans/{name}/jobs", json={"prompts": ["bright"]}).json()["job"] for _ in range(3)]
    assert {finished(client, job)["state"] for job in jobs} == {"done"}
    assert len(reads) == 1


def test_a_scan_that_is_too_large_beside_another_waits_for_it(
    tmp_path: Path, scan: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory that another job holds is no reason to refuse; memory that is not there at all is one."""
    tried: list[bool] = []

    def short_of_memory(which: Any, plans: Any) -> None:
        if threading.current_thread().name.startswith("predict"):
            tried.append(desk._room.crowded)
            if desk._room.crowded or hopeless:
                started.set()
                raise ScanTooLargeError(which.path, "would need 9 GB of memory, but 1 GB are free")

    class Patient(_Slow):
        def encode_image(self, image: Any) -> Any:
            assert hopeless or started.wait(60)
            return self.network.encode_image(image)

    started, hopeless = threading.Event(), False
    predictor = Predictor(make_model(), device="cpu").with_networks(Patient)
    app = create_app(predictor, tmp_path / "desk", ServeOptions())
    desk = app.state.desk
    monkeypatch.setattr("satunet.prediction.call.require_memory", short_of_memory)
    with TestClient(app) as client:
        names = [bring(client, scan) for _ in range(3)]
        jobs = [client.post(f"/scans/{n}/jobs", json={"prompts": ["bright"]}).json()["job"] for n in names]
        assert [finished(client, job)["state"] for job in jobs] == ["done"] * 3
        assert tried.count(True) >= 1, "no two jobs were inside at once"
        hopeless = True
        job = finished(client, client.post(f"/scans/{bring(client, scan)}/jobs", json={"prompts": None}).json()["job"])
        assert job["state"] == "failed" and "9 GB" in job["error"]
        hopeless = False
        assert ask(client, names[0])["state"] == "done"  # nobody is locked out


class _Slow:
    def __init__(self, network: Any) -> None:
        self.network = network

    def encode_image(self, image: Any) -> Any:
        time.sleep(0.02)
        return self.network.encode_image(image)

    def decode(self, *given: Any) -> Any:
        return self.network.decode(*given)


def test_a_token_is_asked_for_everywhere_but_at_the_door(tmp_path: Path, scan: bytes) -> None:
    token = "0123456789abcdef"
    app = create_app(Predictor(make_model(), device="cpu"), tmp_path / "desk", ServeOptions(token=token))
    with TestClient(app) as client:
        assert client.get("/health").status_code == 200 and client.get("/").status_code == 200
        for path in ("/model", "/metrics", "/info/", "/scans/x", "/prompts?q=x"):
            assert client.get(path).status_code == 401
            assert client.get(path, headers={"Authorization": "Bearer 0123456789abcdeX"}).status_code == 401
        assert client.post("/scans", params={"filename": "x.nii.gz"}, content=scan).status_code == 401
        assert client.get("/model", headers={"Authorization": f"Bearer {token}"}).status_code == 200


def test_other_machines_need_a_token() -> None:
    with pytest.raises(UserError, match="give a token"):
        ServeOptions(host="0.0.0.0")
    with pytest.raises(UserError, match="at least 16 ASCII characters"):
        ServeOptions(host="0.0.0.0", token="short")
    ServeOptions(host="0.0.0.0", token="0123456789abcdef")


def test_a_token_out_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "token"
    options = ServeOptions(host="0.0.0.0", token_file=file)
    with pytest.raises(UserError, match=f"{file}: the token cannot be read"):
        options.secret()
    for content in ("short", "", "two words are no token", "0123456789abcdef\n0123456789abcdef"):
        file.write_text(content)
        with pytest.raises(UserError, match=f"{file}: a token must be one word of at least 16"):
            options.secret()
    file.write_text("0123456789abcdef\n")
    app = create_app(Predictor(make_model(), device="cpu"), tmp_path / "desk", options)
    with TestClient(app) as client:
        assert client.get("/model").status_code == 401
        assert client.get("/model", headers={"Authorization": "Bearer 0123456789abcdef"}).status_code == 200
    with pytest.raises(UserError, match="not both"):
        ServeOptions(token="0123456789abcdef", token_file=file)
    for host in ("127.0.0.1", "::1", "localhost", "127.8.8.8"):
        ServeOptions(host=host)


def test_what_nobody_asks_for_is_forgotten(tmp_path: Path, scan: bytes) -> None:
    app = create_app(Predictor(make_model(), device="cpu"), tmp_path / "desk", ServeOptions(keep_minutes=1))
    with TestClient(app) as client:
        old, new = bring(client, scan), bring(client, scan)
        ask(client, old)
        app.state.desk.scan(old).used -= 61
        app.state.desk._scans[old].used -= 61
        app.state.desk.tidy()
        assert client.get(f"/scans/{old}").status_code == 404
        assert client.get(f"/scans/{new}").status_code == 200
        assert not (tmp_path / "desk" / old).exists()


def test_a_full_disk_lets_go_of_the_oldest(tmp_path: Path, scan: bytes) -> None:
    options = ServeOptions(disk_gb=2.5 * len(scan) / 1e9)
    with TestClient(create_app(Predictor(make_model(), device="cpu"), tmp_path / "desk", options)) as client:
        names = [bring(client, scan) for _ in range(4)]
        there = [client.get(f"/scans/{name}").status_code for name in names]
        assert there == [404, 404, 200, 200]


def test_scans_that_are_forgotten_meanwhile_trouble_nobody(tmp_path: Path, scan: bytes) -> None:
    """What one client lets go of while the desk counts what is on its disk is no error of another's."""
    app = create_app(Predictor(make_model(), device="cpu"), tmp_path / "desk", ServeOptions())
    with TestClient(app, raise_server_exceptions=False) as client:
        wrong: list[str] = []

        def come_and_go() -> None:
            for _ in range(15):
                answer = client.post("/scans", params={"filename": "x.nii.gz"}, content=scan)
                if answer.status_code != 201:
                    wrong.append(answer.text)
                    return
                client.delete(f"/scans/{answer.json()['scan']}")

        threads = [threading.Thread(target=come_and_go) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        done = ask(client, bring(client, scan))
        shutil.rmtree(app.state.desk._jobs[done["job"]].folder)
        assert client.get(f"/jobs/{done['job']}").status_code == 404


def test_suggestions_and_meaning(client: TestClient) -> None:
    answer = client.get("/prompts", params={"q": "bright left"}).json()
    assert answer["meaning"][0]["class"] == "left bright" and answer["suggestions"] == ["left bright"]
    assert client.get("/prompts", params={"q": ""}).status_code == 422
    told = client.get("/model").json()
    assert {c["name"] for c in told["classes"]} == {"bright", "left bright", "right bright"}
    assert not any(c["in_numbers"] for c in told["classes"]) and told["most_upload_mb"] == 1024


def test_metrics_and_description(client: TestClient, scan: bytes) -> None:
    ask(client, bring(client, scan))
    text = client.get("/metrics").text
    assert "satunet_done_total 1" in text and "satunet_scans_total 1" in text
    described = client.get("/openapi.json").json()
    assert {"/scans", "/jobs/{job}", "/infer/{model}"} <= set(described["paths"])
    kinds = described["components"]["schemas"]
    assert {"instances", "measures", "dicom_sr"} <= set(kinds["Asked"]["properties"])
    assert {"class", "volume_ml", "measures", "instances"} <= set(kinds["PromptAnswer"]["properties"])
    assert {"surface_cm2", "air"} <= set(kinds["Measures"]["properties"])


def test_the_most_recent_values_stay() -> None:
    recent: Recent[bytes] = Recent(10, len)
    for key in "abc":
        recent.put(key, b"1234")
    assert recent.get("a") is None and recent.get("b") == b"1234" and recent.used_bytes == 8
    recent.put("d", b"12")
    recent.put("e", b"1234")
    assert recent.get("c") is None and recent.get("b") is not None and recent.used_bytes == 10
    recent.put("large", b"x" * 11)
    assert recent.get("large") is None and recent.used_bytes == 10


def test_json_of_the_protocol_of_monai_label(client: TestClient, scan: bytes) -> None:
    put = client.put("/datastore/", params={"image": "../patient"}, files={"file": ("a.nii.gz", scan)})
    assert put.json() == {"image": "../patient"}
    assert client.get("/datastore/", params={"output": "all"}).json()["objects"] == {"../patient": {}}
    answer = client.post(
        "/infer/segment_by_text", params={"image": "../patient", "output": "json"},
        data={"params": json.dumps({"prompts": "bright"})},
    )  # fmt: skip
    assert answer.json()["label_names"] == {"bright": 1}
    for wrong in ("{", "[]", '{"prompts": 3}', "{}"):
        answer = client.post("/infer/segment_by_text", params={"image": "../patient"}, data={"params": wrong})
        assert answer.status_code == 422, wrong
    assert client.post("/infer/x", params={"image": "../patient"}).status_code == 404
    assert client.post("/infer/segment_everything", params={"image": "none"}).status_code == 404
