"""The door over real sockets: an answer to an upload that is refused arrives, and nothing is read that need not be."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator

import httpx
import pytest

from satunet.prediction import Predictor
from satunet.serving import door
from satunet.serving.options import ServeOptions
from tests.prediction.conftest import make_model
from tests.serving.running import running

TOKEN = "0123456789abcdef"
HEAD = (
    "POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Length: {size}\r\n"
    "Content-Type: {kind}\r\nConnection: {connection}\r\n{more}\r\n"
)


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    options = ServeOptions(token=TOKEN, most_upload_mb=4)
    with running(Predictor(make_model(), device="cpu"), tmp_path_factory.mktemp("server") / "desk", options) as address:
        yield int(address.rsplit(":", 1)[1])


def head(size: int, path: str = "/scans?filename=x.nii.gz", **changes: str) -> bytes:
    values = {"token": TOKEN, "kind": "application/octet-stream", "connection": "close", "more": ""} | changes
    return HEAD.format(path=path, size=size, **values).encode()


def read_all(line: socket.socket) -> bytes:
    found = b""
    while more := line.recv(1 << 16):
        found += more
    return found


def answer(text: bytes) -> tuple[int, str]:
    top, _, body = text.partition(b"\r\n\r\n")
    return int(top.split()[1]), json.loads(body)["detail"]


@pytest.mark.parametrize(
    ("path", "changes", "status", "told"),
    [
        ("/scans?filename=x.nii.gz", {}, 413, "larger than the allowed 4 MB"),
        ("/scans?filename=x.png", {}, 422, "file name must end in"),
        ("/scans?filename=x.nii.gz", {"token": "0123456789abcdeX"}, 401, "a token is required"),
        ("/infer/segment_by_text", {"kind": "multipart/form-data; boundary=b"}, 413, "larger than the allowed 4 MB"),
        ("/nothing", {}, 404, "Not Found"),
    ],
)
@pytest.mark.parametrize("connection", ["close", "keep-alive"])
def test_who_sends_all_before_listening_hears_the_answer(
    port: int, path: str, changes: dict[str, str], status: int, told: str, connection: str
) -> None:
    """Many clients, and proxies for them, read nothing before their upload is out."""
    size = 7_000_000 if status == 413 else 3_000_000
    with socket.create_connection(("127.0.0.1", port), timeout=60) as line:
        line.sendall(head(size, path, connection=connection, **changes))
        for _ in range(size // 250_000):
            line.sendall(bytes(250_000))
            time.sleep(0.005)  # the answer is out long before the end
        found, detail = answer(read_all(line))
        assert found == status and told in detail


def sent_until_closed(port: int, piece: int, pause: float) -> int:
    """Bytes of an upload without end that go out before the server closes the connection."""
    sent, end = 0, time.monotonic() + 20
    with socket.create_connection(("127.0.0.1", port), timeout=60) as line:
        line.sendall(head(10**12))
        try:
            while time.monotonic() < end:
                sent += line.send(bytes(piece))
                time.sleep(pause)
        except OSError:
            return sent
    raise AssertionError(f"still open after {sent} bytes")


def test_a_body_without_end_is_read_up_to_a_bound(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "DRAIN_BYTES", 1_000_000)  # the largest upload is more: 4 MB
    assert sent_until_closed(port, 100_000, 0) < 50_000_000
    monkeypatch.setattr(door, "DRAIN_SECONDS", 1.0)
    sent_until_closed(port, 1000, 0.001)


def test_silence_ends_it(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "SILENT_SECONDS", 0.3)
    with socket.create_connection(("127.0.0.1", port), timeout=60) as line:
        line.sendall(head(6_000_000))
        started = time.monotonic()
        assert answer(read_all(line))[0] == 413
        assert time.monotonic() - started < 20


def test_who_waits_to_be_told_to_go_on_is_answered_at_once(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as line:
        line.sendall(head(6_000_000, more="Expect: 100-continue\r\n"))
        started = time.monotonic()
        found = read_all(line)
        assert answer(found)[0] == 413 and b"100 Continue" not in found
        assert time.monotonic() - started < door.SILENT_SECONDS - 1


def test_no_more_is_read_than_is_allowed(port: int) -> None:
    """Also where nothing is announced, and where the framework would read all of it before anybody looked."""
    address, known = f"http://127.0.0.1:{port}", {"Authorization": f"Bearer {TOKEN}"}
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.nii.gz"\r\n\r\n'
        while sent < 9_000_000:
            sent += 100_000
            yield bytes(100_000)
        yield b"\r\n--b--\r\n"

    form = {"Content-Type": "multipart/form-data; boundary=b"}
    found = httpx.put(f"{address}/datastore/?image=a", headers=known | form, content=endless(), timeout=60)
    assert found.status_code == 413 and "4 MB" in found.json()["detail"]
    sent = 0
    found = httpx.put(f"{address}/datastore/?image=a", headers=form, content=endless(), timeout=60)
    assert found.status_code == 401
    large = json.dumps({"prompts": ["x" * 500] * 40_000}).encode()
    found = httpx.post(f"{address}/scans/x/jobs", headers=known | {"Content-Type": "application/json"}, content=large)
    assert found.status_code == 413 and "16 MB" in found.json()["detail"]


def test_an_answer_to_the_whole_of_a_request_keeps_the_connection(port: int) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        assert client.post("/scans", params={"filename": "x.nii.gz"}, content=b"no scan").status_code == 422
        answer = client.post("/scans/none/jobs", json={"prompts": ["x"]})
        assert answer.status_code == 404 and "connection" not in answer.headers
