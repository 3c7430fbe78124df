"""Orthanc with its DICOMweb plug-in, as Debian packages them: a process on loopback with a folder of its own."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

PLUGINS = (
    "/usr/share/orthanc/plugins/libOrthancDicomWeb.so",
    "/usr/share/orthanc/plugins-disabled/libOrthancDicomWeb.so",
    "/usr/local/share/orthanc/plugins/libOrthancDicomWeb.so",
)
USER, PASSWORD = "radiology", "secret of the test"


@dataclass(frozen=True)
class Orthanc:
    """One that runs; asked here over its own REST interface, which is not DICOMweb."""

    root: str

    @property
    def dicomweb(self) -> str:
        return f"{self.root}/dicom-web"

    def get(self, path: str) -> Any:
        answer = httpx.get(f"{self.root}{path}", auth=(USER, PASSWORD))
        answer.raise_for_status()
        return answer.json() if "json" in answer.headers["content-type"] else answer.content

    def put(self, file: Path) -> None:
        httpx.post(f"{self.root}/instances", content=file.read_bytes(), auth=(USER, PASSWORD)).raise_for_status()

    def objects(self, modality: str) -> list[bytes]:
        """Files of all instances of a modality."""
        series = [self.get(f"/series/{s}") for s in self.get("/series")]
        found = [i for s in series if s["MainDicomTags"]["Modality"] == modality for i in s["Instances"]]
        return [self.get(f"/instances/{i}/file") for i in found]


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Orthanc]:
    """An empty archive; skips the test where Orthanc is not installed."""
    program = shutil.which("Orthanc")
    plugin = next((p for p in PLUGINS if Path(p).is_file()), None)
    if program is None or plugin is None:
        pytest.skip("Orthanc is not installed (Debian: apt-get install orthanc orthanc-dicomweb)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "HttpPort": port,
        "DicomServerEnabled": False,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {USER: PASSWORD},
        "Plugins": [plugin],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, str(folder / "orthanc.json")], stdout=log, stderr=log, cwd=folder)
        try:
            made = Orthanc(f"http://127.0.0.1:{port}")
            end = time.monotonic() + 60
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    made.get("/dicom-web/studies")
                    break
                assert process.poll() is None and time.monotonic() < end, (folder / "log").read_text()
                time.sleep(0.1)
            yield made
        finally:
            process.terminate()
            process.wait(timeout=30)
