"""The proxy set-up that the documentation shows, started as it stands there, with nginx and TLS."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from satunet.client import Server, ServerError
from satunet.geometry import Grid
from satunet.images.image import read_label_map, write_volume
from satunet.prediction import Predictor
from satunet.serving.options import ServeOptions
from tests.prediction.conftest import make_model
from tests.serving.running import running

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "serving.md"
TOKEN = "0123456789abcdef0123456789abcdef"
SHAPE = (20, 22, 24)
BOX = (slice(3, 9), slice(4, 16), slice(5, 17))


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Address behind the proxy, and the certificate to trust."""
    nginx, openssl = shutil.which("nginx"), shutil.which("openssl")
    if nginx is None or openssl is None:
        pytest.skip("nginx or openssl is not installed (Debian: apt-get install nginx-light openssl)")
    folder = tmp_path_factory.mktemp("proxy")
    certificate, key = folder / "segment.pem", folder / "segment.key"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    options = ServeOptions(token=TOKEN, most_upload_mb=1)
    with running(Predictor(make_model(), device="cpu"), folder / "desk", options) as address, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        (block,) = re.findall(r"```nginx\n(.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL)
        for shown, here in (
            ("443", f"127.0.0.1:{port}"),
            ("segment.example.org", "localhost"),
            ("/etc/ssl/certs/segment.pem", str(certificate)),
            ("/etc/ssl/private/segment.key", str(key)),
            ("http://127.0.0.1:8000/", f"{address}/"),
        ):
            assert block.count(shown) == 1, shown
            block = block.replace(shown, here)
        stored = "".join(
            f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        configuration = folder / "nginx.conf"
        configuration.write_text(
            f"daemon off; pid {folder}/pid; error_log {folder}/errors; events {{}}\n"
            f"http {{ access_log off; {stored}\n{block}}}\n"
        )
        process = subprocess.Popen([nginx, "-p", folder, "-c", configuration], stderr=subprocess.DEVNULL)
        try:
            _wait_for(port, process, folder / "errors")
            yield f"https://localhost:{port}/satunet", certificate
        finally:
            process.terminate()
            process.wait(timeout=30)


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError(f"nginx did not start: {log.read_text() if log.exists() else ''}")


def test_a_client_works_through_the_proxy(
    proxied: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, certificate = proxied
    image = np.random.default_rng(0).normal(0, 0.01, SHAPE).astype(np.float32)
    image[BOX] += 5
    write_volume(tmp_path / "scan.nii.gz", image, like=Grid(shape=SHAPE, affine=np.eye(4)))
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with Server(address, token=TOKEN).bring(tmp_path / "scan.nii.gz") as scan:
        job = scan.ask("bright", modality="mri", combine=True)
        (mask,) = [f for f in job.save(tmp_path / "out") if f.suffix != ".json"]
    expected = np.zeros(SHAPE, bool)
    expected[BOX] = True
    np.testing.assert_array_equal(read_label_map(mask).array > 0, expected)
    with pytest.raises(ServerError, match="a token is required"):
        Server(address, token="another token of the same length").bring(tmp_path / "scan.nii.gz")
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(ServerError, match="certificate"):
        Server(address, token=TOKEN).bring(tmp_path / "scan.nii.gz")


def test_the_page_is_there_and_uploads_are_limited_by_satunet(proxied: tuple[str, Path]) -> None:
    import ssl

    address, certificate = proxied
    with httpx.Client(verify=ssl.create_default_context(cafile=str(certificate))) as client:
        without_slash = client.get(address)
        assert without_slash.status_code == 301 and without_slash.headers["location"].endswith("/satunet/")
        page = client.get(f"{address}/")
        assert page.status_code == 200
        named = re.findall(r'(?:src|href)="(?!data:)([^"]+)"', page.text)
        assert named and not [n for n in named if n.startswith(("/", "http"))]  # relative, so below the proxy's path
        assert all(client.get(f"{address}/{n}").status_code == 200 for n in named)
        headers = {"Authorization": f"Bearer {TOKEN}"}
        assert client.get(f"{address}/model").status_code == 401
        assert client.get(f"{address}/model", headers=headers).status_code == 200
        # Refused while it is on its way: the answer comes through, and nobody meets a closed connection.
        for size in (2_000_000, 1_500_000, 20_000_000) * 5:
            answer = client.post(f"{address}/scans?filename=x.nii.gz", headers=headers, content=bytes(size))
            assert answer.status_code == 413 and "MB" in answer.json()["detail"], size
        answer = client.post(f"{address}/scans?filename=x.nii.gz", content=bytes(2_000_000))
        assert answer.status_code == 401
