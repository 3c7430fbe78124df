"""The client against a real server over TCP; the server's answers are those of :mod:`tests.serving.test_server`."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from satunet.client import Server, ServerError
from satunet.client.requests import Requests
from satunet.errors import MissingFileError
from satunet.geometry import Grid
from satunet.images.image import read_label_map, write_volume
from satunet.prediction import Predictor
from satunet.serving.options import ServeOptions
from tests.images.dicom_files import write_slices
from tests.prediction.conftest import make_model
from tests.serving.running import running

ROOT = Path(__file__).resolve().parents[2]
GRID = Grid(shape=(24, 20, 18), affine=np.diag([1.0, 1.0, 1.0, 1.0]))
BOX = (slice(6, 14), slice(5, 12), slice(4, 10))
TOKEN = "0123456789abcdef"


class Slow:
    """A network that takes its time, so that a job can be met while it runs."""

    seconds = 0.0

    def __init__(self, network: Any) -> None:
        self.network = network

    def encode_image(self, image: Any) -> Any:
        time.sleep(self.seconds)
        return self.network.encode_image(image)

    def decode(self, *given: Any) -> Any:
        return self.network.decode(*given)


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    image = np.random.default_rng(0).normal(0, 0.01, GRID.shape).astype(np.float32)
    image[BOX] += 5
    file = tmp_path_factory.mktemp("scan") / "Doe_Jane.nii.gz"
    write_volume(file, image, like=GRID)
    return file


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    predictor = Predictor(make_model(), device="cpu").with_networks(Slow)
    options = ServeOptions(token=TOKEN, queue=1, most_upload_mb=1)
    with running(predictor, tmp_path_factory.mktemp("server") / "desk", options) as found:
        yield found


@pytest.fixture
def server(address: str) -> Server:
    return Server(address, TOKEN)


def test_words_on_a_scan_become_files(server: Server, scan: Path, tmp_path: Path) -> None:
    assert {c["name"] for c in server.model()["classes"]} == {"bright", "left bright", "right bright"}
    assert server.meaning("left bright")["meaning"][0]["class"] == "left bright"
    shares: list[float] = []
    with server.bring(scan) as brought:
        assert (brought.shape, brought.spacing_mm) == (GRID.shape, (1.0, 1.0, 1.0))
        job = brought.ask("bright", "coffee cup", on_progress=shares.append)
        assert job.modality == "mri" and [p["status"] for p in job.prompts] == ["known", "unknown"]
        file = tmp_path / "masks" / "bright.nii.gz"
        assert {f.name for f in job.save(tmp_path / "masks")} == {file.name, "manifest.json"}
        mask = np.zeros(GRID.shape, bool)
        mask[BOX] = True
        np.testing.assert_array_equal(read_label_map(file).array > 0, mask)
        assert file.stat().st_mode & 0o777 == 0o666 & ~_umask()
        combined = brought.ask("bright", combine=True)
        assert combined.save(tmp_path / "masks") and combined.prompts[0]["label"] == 1
        measured = brought.ask("bright", measures=True, dicom_sr=True, rtstruct=True)
        assert measured.prompts[0]["measures"]["volume_ml"] == pytest.approx(measured.prompts[0]["volume_ml"])
        assert measured.files == ["bright.nii.gz", "manifest.json", "measures.csv"]  # no DICOM of a NIfTI
        with pytest.raises(ServerError, match="one mask per prompt"):
            brought.ask("bright", instances=True, combine=True)
        assert brought.ask().not_looked_for == []
        assert {p["class"] for p in brought.ask().prompts} == {"bright", "left bright", "right bright"}
    assert shares[-1] == 1.0 and shares == sorted(shares)
    assert [f.name for f in (tmp_path / "masks").iterdir() if f.name.startswith(".")] == []
    with pytest.raises(ServerError, match="is forgotten by now"):
        brought.ask("bright")
    brought.forget()  # it is already


def _umask() -> int:
    before = os.umask(0)
    os.umask(before)
    return before


def test_a_folder_of_dicom(server: Server, tmp_path: Path) -> None:
    write_slices(tmp_path / "in" / "Doe_Jane", np.zeros((7, 6, 5), np.uint16))
    with server.bring(tmp_path / "in") as brought:
        assert sorted(brought.shape) == [5, 6, 7]
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingFileError, match="no files in this folder"):
        server.bring(tmp_path / "empty")
    with pytest.raises(MissingFileError, match="No such file"):
        server.bring(tmp_path / "none.nii.gz")


def test_what_the_server_refuses_is_one_sentence(address: str, server: Server, scan: Path, tmp_path: Path) -> None:
    (tmp_path / "x.nii.gz").write_bytes(b"no scan")
    with pytest.raises(ServerError) as caught:
        server.bring(tmp_path / "x.nii.gz")
    assert caught.value.status == 422 and "\n" not in str(caught.value)
    (tmp_path / "x.png").write_bytes(b"no scan")
    with pytest.raises(ServerError, match="file name must end in"):
        server.bring(tmp_path / "x.png")
    (tmp_path / "large.nii").write_bytes(bytes(8_000_000))
    with pytest.raises(ServerError, match=r"large\.nii: 8\.0 MB; the server takes up to 1 MB"):
        server.bring(tmp_path / "large.nii")
    with server.bring(scan) as brought:
        with pytest.raises(ServerError, match="at most 500 characters"):
            brought.ask("x" * 501)
        with pytest.raises(ServerError, match="ct"):
            brought.ask("bright", modality="x-ray")
    for token in (None, "0123456789abcdeX"):
        with pytest.raises(ServerError, match="a token is required"):
            Server(address, token).model()


def test_a_job_that_is_let_go_of_is_cancelled(
    address: str, server: Server, scan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Slow, "seconds", 0.3)

    def interrupted(share: float) -> None:
        raise KeyboardInterrupt

    with server.bring(scan) as brought:
        with pytest.raises(KeyboardInterrupt):
            brought.ask("bright", on_progress=interrupted)
        job = brought.begin("bright")
        job.cancel()
        with pytest.raises(ServerError, match="the job cancelled"):
            job.wait()
        # The queue has one place: a second client is told to come again, and does.
        patient, hasty = brought, Server(address, TOKEN, busy_seconds=0).bring(scan)
        with pytest.raises(ServerError, match="ask again later"):
            [hasty.begin("bright") for _ in range(4)]
        monkeypatch.setattr(Slow, "seconds", 0.0)
        assert patient.ask("bright").state == "done"


def test_a_client_does_not_ask_again_and_again(server: Server, scan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server answers when the job ends; until then, one question per second is enough."""
    asked = []
    really = Requests.json

    def noted(own: Requests, method: str, path: str, content: Any = None) -> Any:
        asked.append(path)
        return really(own, method, path, content)

    monkeypatch.setattr(Slow, "seconds", 0.1)
    monkeypatch.setattr(Requests, "json", noted)
    with server.bring(scan) as brought:
        started = time.monotonic()
        brought.ask("bright")
        seconds = time.monotonic() - started
    assert 1 <= sum(path.startswith("/jobs/") for path in asked) <= 1 + seconds, asked


def test_what_is_no_server_is_told(tmp_path: Path) -> None:
    for wrong in ("127.0.0.1:8000", "ftp://127.0.0.1", "http://", "http://x?y=1", ""):
        with pytest.raises(ServerError, match=r"address is like http://127.0.0.1:8000"):
            Server(wrong)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(ServerError, match="refused"):
            Server(f"http://127.0.0.1:{free.getsockname()[1]}").model()


class _Odd(BaseHTTPRequestHandler):
    """Answers as something other than a satunet server may."""

    def do_GET(self) -> None:
        if self.path == "/moved/model":
            self.send_response(307)
            self.send_header("Location", "http://127.0.0.1:1/elsewhere")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Length", "100" if self.path.startswith("/short") else "6")
        self.end_headers()
        self.wfile.write(b"<html>")

    def log_message(self, *_: Any) -> None:
        return


def test_answers_of_something_else(tmp_path: Path) -> None:
    from satunet.client.remote import RemoteJob
    from satunet.client.requests import Requests

    odd = ThreadingHTTPServer(("127.0.0.1", 0), _Odd)
    threading.Thread(target=odd.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{odd.server_address[1]}"
    with pytest.raises(ServerError, match="is it a satunet server"):
        Server(address).model()
    with pytest.raises(ServerError, match="redirects to"):
        Server(f"{address}/moved", TOKEN).model()
    answer = {"job": "j", "state": "done", "prompts": [], "modality": None, "files": ["a.nii.gz"]}
    with pytest.raises(ServerError, match=r"ended after 6 of 100 bytes|IncompleteRead"):
        RemoteJob(Requests(f"{address}/short", None, 10), answer).save(tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    for evil in ("../a", "/etc/a", "..", ".a", "a\\b", "c:a"):
        with pytest.raises(ServerError, match="not a plain file name"):
            RemoteJob(Requests(address, None, 10), answer | {"files": [evil]}).save(tmp_path / "out")
    odd.shutdown()
    odd.server_close()


def test_the_standard_library_is_enough(address: str, scan: Path, tmp_path: Path) -> None:
    """A Python without any package: what is imported beyond it would not be found."""
    script = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from satunet.client import Server
with Server({address!r}, {TOKEN!r}).bring({str(scan)!r}) as scan:
    print(sorted(f.name for f in scan.ask("bright").save({str(tmp_path)!r})))
print(sorted({{m.split(".")[0] for m in sys.modules}} & {{"torch", "numpy", "httpx"}}))
"""
    done = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["['bright.nii.gz', 'manifest.json']", "[]"], done.stderr
