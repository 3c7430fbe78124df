"""The server as others see it: a browser, MONAI Label's own client, a process of its own."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import permutations, product
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from satunet.geometry import Grid
from satunet.images.image import read_label_map, write_volume
from satunet.prediction import Predictor
from satunet.serving.options import ServeOptions
from tests.images.dicom_files import write_slices
from tests.prediction.conftest import make_model, model_of, write_model
from tests.serving.running import running
from tests.viewing.chromium import Page, find_chromium

ROOT = Path(__file__).resolve().parents[2]
GRID = Grid(shape=(40, 40, 40), affine=np.diag([1.0, 1.0, 1.0, 1.0]))
INSIDE = (slice(8, 18), slice(10, 30), slice(10, 30))


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A block on the patient's left, bright in the dark."""
    image = np.random.default_rng(0).normal(0, 0.01, GRID.shape).astype(np.float32)
    image[INSIDE] += 5
    file = tmp_path_factory.mktemp("scan") / "block.nii.gz"
    write_volume(file, image, like=GRID)
    return file


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server in a thread of this process, with a model of known answer."""
    folder = tmp_path_factory.mktemp("server")
    with running(Predictor(make_model(), device="cpu"), folder / "desk") as found:
        yield found


def test_monai_labels_own_client(address: str, scan: Path, tmp_path: Path) -> None:
    """As its plug-in for 3D Slicer does it: ask what there is, bring an image, have it segmented, let go of it."""
    module = pytest.importorskip("monailabel.client", reason="monailabel is not installed")
    client = module.MONAILabelClient(address, tmpdir=str(tmp_path))
    assert client.auth_enabled() is False
    info = client.info()
    assert {"segment_everything", "segment_by_text"} <= set(info["models"])
    assert all(m["type"] == "segmentation" and m["labels"] for m in info["models"].values())
    session = client.create_session(str(scan))["session_id"]
    assert client.get_session(session)["name"] == session
    file, told = client.infer("segment_by_text", "", {"prompts": "bright"}, session_id=session)
    expected = np.zeros(GRID.shape, bool)
    expected[INSIDE] = True
    np.testing.assert_array_equal(read_label_map(Path(file)).array == told["label_names"]["bright"], expected)
    assert client.upload_image(str(scan), "patient 7")["image"] == "patient 7"
    assert list(client.datastore()["objects"]) == ["patient 7"]
    _, told = client.infer("segment_everything", "patient 7", {})
    assert {p["class"] for p in told["prompts"]} == {"bright", "left bright", "right bright"}
    client.remove_session(session)
    with pytest.raises(module.client.MONAILabelClientException):
        client.get_session(session)
    with pytest.raises(module.client.MONAILabelClientException, match="422"):
        client.infer("segment_by_text", "patient 7", {})


def test_an_upload_that_breaks_off_is_no_fault_of_the_server(
    scan: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with running(Predictor(make_model(), device="cpu"), tmp_path / "desk") as address:
        port = int(address.rsplit(":", 1)[1])
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", port)) as line:
                content = scan.read_bytes()
                line.sendall(
                    f"POST /scans?filename=x.nii.gz HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n".encode()
                )
                line.sendall(content[: len(content) // 2])
        deadline = time.monotonic() + 30
        while not (tmp_path / "desk").is_dir() and time.monotonic() < deadline:
            time.sleep(0.01)
        while list(tmp_path.glob("desk/*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert (tmp_path / "desk").is_dir() and not list(tmp_path.glob("desk/*"))
        assert httpx.get(f"{address}/health").json()["status"] == "ok"
    assert not [r for r in caplog.records if r.levelname == "ERROR"]


@pytest.mark.slow
def test_a_person_at_the_page(address: str, scan: Path, tmp_path: Path) -> None:
    """Choose a scan, type, see, toggle, ask again, meet a broken file; keyboard alone where a mouse is not needed."""
    if find_chromium() is None:
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")
    with Page(tmp_path / "profile") as page:
        page.open_address(address)
        assert page.run("document.getElementById('model').textContent").endswith("3 classes, mri")
        page.upload_at(scan.stat().st_size / 2)  # two seconds, so that something can be told meanwhile
        page.run(
            "window.told = []; const percent = document.getElementById('percent');"
            "new MutationObserver(() => told.push(percent.textContent)).observe(percent, { childList: true }); 0"
        )
        page.choose_file("#file", scan)
        page.wait_for("!document.getElementById('words').disabled")
        told = page.run("told.join('|')").split("|")
        shares = [int(text[:-2]) for text in told if text.endswith(" %")]
        assert shares == sorted(shares) and any(0 < share < 100 for share in shares), told
        assert (
            "sent; the server reads it" in told[-2]
            and told[-1] == ""
            and page.run("document.getElementById('progress').hidden")
        )
        page.upload_at(-1)
        before = page.picture()
        page.type_into("#words", "bright")
        page.wait_for("document.getElementById('meaning').textContent.includes('known')")
        assert page.run("document.getElementById('dicom-line').hidden")  # no DICOM of a NIfTI
        page.run("document.getElementById('measures').checked = true")
        page.press("Enter")
        page.wait_for("document.querySelectorAll('#structures input').length == 1")
        canvas = np.s_[:, 330:]
        bright = before[canvas].min(axis=2) > 150
        for _ in range(20):  # the panes are painted one after the other
            changed = np.abs(page.picture()[canvas] - before[canvas]).max(axis=2) > 30
            if changed[bright].mean() > 0.7:
                break
            time.sleep(0.5)
        assert bright.sum() > 1000 and changed[bright].mean() > 0.7 and changed[~bright].mean() < 0.02
        assert page.run("document.querySelector('#structures li').textContent").endswith("bright4.00 ml")
        cells = page.run("[...document.querySelectorAll('#measured td')].map((c) => c.textContent).join('|')").split(
            "|"
        )
        assert cells[0] == "4" and 13 < float(cells[1]) < 17 and cells[3].startswith("5 ± 0.0"), cells
        buttons = page.run("[...document.querySelectorAll('#files button')].map((b) => b.textContent).join('|')")
        assert buttons == "Download label map|Download measures (CSV)"
        page.run("document.querySelector('#structures input').focus()")
        page.press(" ")  # toggled by keyboard
        without = page.picture()
        assert (np.abs(without[canvas] - before[canvas]).max(axis=2) > 30).mean() < 0.002
        page.run("document.getElementById('words').value = ''")
        page.type_into("#words", "coffee cup")
        page.press("Enter")
        page.wait_for("document.getElementById('structures').textContent.includes('coffee cup')")
        (tmp_path / "broken.nii.gz").write_bytes(b"no scan")
        page.choose_file("#file", tmp_path / "broken.nii.gz")
        page.wait_for("document.getElementById('problem').textContent.length > 5")
        told = page.run("document.getElementById('problem').textContent")
        assert "/" not in told.replace("/gzip", ""), told
        assert not [p for p in page.problems if "422" not in p]


@pytest.mark.slow
def test_single_lesions_are_numbered_on_the_page_by_keyboard(tmp_path: Path) -> None:
    """Ticked, asked, opened, gone to and downloaded without a mouse; each lesion has a colour of its own."""
    if find_chromium() is None:
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")
    image = np.random.default_rng(0).normal(0, 0.01, GRID.shape).astype(np.float32)
    image[8:18, 10:20, 8:20] += 5
    image[26:32, 24:32, 28:36] += 5
    write_volume(tmp_path / "two.nii.gz", image, like=GRID)
    model = model_of(({"liver": (1,), "liver tumor": (2,)}, "mri"))
    with running(Predictor(model, device="cpu"), tmp_path / "desk") as address, Page(tmp_path / "profile") as page:
        page.open_address(address)
        page.save_downloads_to(tmp_path / "saved")
        page.choose_file("#file", tmp_path / "two.nii.gz")
        page.wait_for("!document.getElementById('words').disabled")
        page.type_into("#words", "liver tumor, liver")
        to = "document.activeElement.id"
        _tab_to(page, f"{to} == 'number'")
        page.press(" ")
        page.run("document.getElementById('words').focus()")
        page.press("Enter")
        page.wait_for("document.getElementById('said').textContent.includes('Numbered in')")
        rows = page.run("[...document.querySelectorAll('#structures > li')].map((r) => r.textContent).join('|')")
        assert rows == "liver tumor1.58 ml2, numbered1: 0.38 ml2: 1.20 ml|liver: covered by others", (
            rows
        )  # cranial first
        page.wait_for("viewer.volumes.length == 2")
        masks = _hues(page)
        _tab_to(page, "document.activeElement.tagName == 'SUMMARY'")
        page.press("Enter")
        page.wait_for("viewer.volumes.length == 3")
        numbered = _hues(page)
        own = [157.508, 295.016]  # of the numbers 1 and 2
        assert all(_near(numbered, hue) > 200 > _near(masks, hue) for hue in own), (masks, numbered)
        _tab_to(page, "document.activeElement.textContent.startsWith('1:')")
        assert page.run("document.activeElement.getAttribute('aria-label')") == "Go to liver tumor 1, 0.38 ml"
        page.press("Enter")
        where = page.run("[...viewer.frac2mm(viewer.scene.crosshairPos)].slice(0, 3)")
        np.testing.assert_allclose(where, (28.5, 27.5, 31.5), atol=0.6)
        _tab_to(page, "document.activeElement.textContent == 'Download numbered liver tumor'")
        page.press("Enter")
        deadline = time.monotonic() + 30
        while not (found := list((tmp_path / "saved").glob("*.nii.gz"))) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert [f.name for f in found] == ["liver_tumor_instances.nii.gz"]
        assert np.bincount(read_label_map(found[0]).array.ravel())[1:].tolist() == [384, 1200]
        page.run("document.querySelector('#structures input').click()")  # what is off is off, numbered or not
        assert all(_near(_hues(page), hue) == 0 for hue in own)
        page.run("document.querySelector('summary').focus()")
        page.press("Enter")
        page.wait_for("viewer.volumes.length == 2")
        page.run("document.getElementById('words').value = 'liver'")
        page.run("document.getElementById('words').focus()")
        page.press("Enter")
        page.wait_for("document.getElementById('said').textContent.includes('Nothing was found of which there may be')")
        assert not page.problems, page.problems


def _tab_to(page: Page, there: str) -> None:
    """Press Tab until the focus is where it should be."""
    for _ in range(20):
        page.press("Tab")
        if page.run(there):
            return
    raise AssertionError(f"Tab does not lead to where {there}")


def _hues(page: Page) -> np.ndarray[Any, Any]:
    """Hues in degrees of the coloured pixels of the scan, once it is painted."""
    seen = None
    for _ in range(20):  # the panes are painted one after the other
        before, seen = seen, page.picture()[:, 330:].reshape(-1, 3) / 255
        if before is not None and np.array_equal(before, seen):
            break
        time.sleep(0.3)
    assert seen is not None
    most, least = seen.max(axis=1), seen.min(axis=1)
    coloured = seen[most - least > 0.25]
    r, g, b = coloured.T
    return np.asarray(np.degrees(np.arctan2(np.sqrt(3) * (g - b), 2 * r - g - b)) % 360)


def _near(hues: np.ndarray[Any, Any], hue: float) -> int:
    return int((np.abs((hues - hue + 180) % 360 - 180) < 12).sum())


@pytest.mark.slow
def test_what_is_too_large_is_not_uploaded(scan: Path, tmp_path: Path) -> None:
    """The page asks the server for its limit, and tells before it reads or sends anything; the scan before stays."""
    if find_chromium() is None:
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")
    small = Grid(shape=(12, 12, 12), affine=np.eye(4))
    write_volume(tmp_path / "small.nii.gz", np.indices(small.shape)[0].astype(np.float32), like=small)
    write_slices(tmp_path / "series", np.zeros((300, 300, 3), np.uint16), modality="MR")
    options = ServeOptions(most_upload_mb=0.1)
    predictor = Predictor(make_model(), device="cpu")
    with running(predictor, tmp_path / "desk", options) as address, Page(tmp_path / "profile") as page:
        page.open_address(address)
        page.run(
            "window.sent = 0; const old = XMLHttpRequest.prototype.send;"
            "XMLHttpRequest.prototype.send = function (body) { sent += 1; return old.call(this, body); }; 0"
        )
        page.choose_file("#file", tmp_path / "small.nii.gz")
        page.wait_for("!document.getElementById('words').disabled")
        assert page.run("sent") == 1
        for chosen, told in (
            (scan, f"block.nii.gz: {scan.stat().st_size / 1e6:.3f}"),
            (tmp_path / "series", "3 files: 0.5"),
        ):
            page.drop("#drop", chosen)
            page.wait_for("document.getElementById('problem').textContent.length > 5")
            said = page.run("document.getElementById('problem').textContent")
            assert said.startswith(told) and said.endswith("this server takes at most 0.1 MB; nothing was uploaded"), (
                said
            )
            page.run("document.getElementById('problem').textContent = ''")
        assert page.run("sent") == 1
        assert page.run("document.getElementById('scan').textContent").startswith("small.nii.gz: 12 × 12 × 12")
        assert not page.run("document.getElementById('words').disabled") and not page.problems


@pytest.mark.slow
def test_a_server_as_a_process_of_its_own(scan: Path, tmp_path: Path) -> None:
    """``satunet serve``, a scan and a word over TCP, the end by SIGTERM; nothing stays."""
    model = write_model(tmp_path / "model")
    command = [sys.executable, "-m", "satunet", "serve", "-m", str(model), "-f", "all", "--port", "0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        assert process.stderr is not None
        told = ""
        while (found := re.search(r"http://127\.0\.0\.1:(\d+)", told)) is None:
            line = process.stderr.readline()
            assert line, told
            told += line
        with httpx.Client(base_url=found[0], timeout=60) as client:
            brought = client.post("/scans", params={"filename": "a.nii.gz"}, content=scan.read_bytes()).json()
            job = client.post(f"/scans/{brought['scan']}/jobs", json={"prompts": ["left bright"]}).json()
            while (state := client.get(f"/jobs/{job['job']}").json())["state"] in ("waiting", "running"):
                time.sleep(0.05)
            assert state["state"] == "done", state
        process.terminate()
        told += process.stderr.read()
        assert process.wait(timeout=60) == 0  # it did what it was asked
    finally:
        process.kill()
    assert "the server has stopped; the scans and masks that it kept are deleted" in told
    assert "the same command continues" not in told  # nothing is left to continue from
    assert not list(tmp_path.glob("satunet-serve-*"))


@pytest.mark.slow
def test_a_dicom_folder_suggestions_cancel_and_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder out of a file manager; a suggestion; Escape and the button end a job; the label map arrives as a file."""
    if find_chromium() is None:
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")
    volume = np.full((30, 28, 26), 100, np.uint16)
    volume[5:15, 6:16, 7:17] = 2000
    write_slices(tmp_path / "in" / "series", volume, modality="MR")
    (tmp_path / "in" / ".DS_Store").write_bytes(b"of the file manager")
    predictor = Predictor(make_model(), device="cpu").with_networks(Slow)
    with running(predictor, tmp_path / "desk") as address, Page(tmp_path / "profile") as page:
        page.open_address(address)
        page.save_downloads_to(tmp_path / "saved")
        assert page.run("document.getElementById('token').offsetParent === null")  # none is asked for here
        page.run("document.querySelector('#drop').focus()")
        page.drop("#drop", tmp_path / "in")
        page.wait_for("!document.getElementById('words').disabled")
        assert "26 files: 30 × 28 × 26 voxels" in page.run("document.getElementById('scan').textContent")
        assert page.run("document.activeElement.id") == "words"  # the next thing to do
        page.type_into("#words", "left br")
        page.wait_for("document.querySelectorAll('#suggestions option').length > 0")
        assert page.run("document.querySelector('#suggestions option').value") == "left bright"

        monkeypatch.setattr(Slow, "seconds", 2.0)
        for end in (lambda: page.press("Escape"), lambda: page.click("#cancel")):
            page.run("document.getElementById('words').value = 'bright'")
            page.run("document.getElementById('words').focus()")
            page.press("Enter")
            page.wait_for("!document.getElementById('cancel').hidden")
            end()
            page.wait_for("document.getElementById('said').textContent == 'Cancelled.'")
            assert page.run("document.getElementById('cancel').hidden && !document.getElementById('go').disabled")
        monkeypatch.setattr(Slow, "seconds", 0.0)

        page.run("document.getElementById('go').focus()")
        page.press("Enter")
        page.wait_for("document.querySelectorAll('#structures input').length == 1")
        assert page.run("document.getElementById('measured').hidden && !document.getElementById('dicom-line').hidden")
        page.click("#files button")
        deadline = time.monotonic() + 30
        while not (found := list((tmp_path / "saved").glob("*.nii.gz"))) and time.monotonic() < deadline:
            time.sleep(0.1)
        mask = read_label_map(found[0]).array > 0
        # The file may turn and flip axes. It is off by less than half a voxel of the model, which is two of the scan's rows.
        (turned,) = [t for t in permutations(range(3)) if mask.transpose(t).shape == volume.shape]
        flips = product((slice(None), slice(None, None, -1)), repeat=3)
        dice = max(
            2 * (m & (volume > 1000)).sum() / (m.sum() + 1000) for m in (mask.transpose(turned)[f] for f in flips)
        )
        assert dice > 0.9

        # By keyboard alone: everything that can be done can be reached, in the order in which it is read.
        page.run("document.activeElement.blur()")
        reached = []
        for _ in range(12):
            page.press("Tab")
            reached.append(page.run("document.activeElement.id || document.activeElement.textContent"))
        wanted = ["drop", "choose-folder", "words", "go", "everything", "opacity", "s0", "Download label map"]
        assert [r for r in reached if r in wanted][: len(wanted)] == wanted, reached
        assert not page.problems, page.problems


class Slow:
    """A network that takes its time, so that a job can be met while it runs."""

    seconds = 0.0

    def __init__(self, network: Any) -> None:
        self.network = network

    def encode_image(self, image: Any) -> Any:
        return self.network.encode_image(image)

    def decode(self, *given: Any) -> Any:
        time.sleep(self.seconds)  # here, since features of a scan are kept
        return self.network.decode(*given)
