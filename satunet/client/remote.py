"""A satunet server as Python objects: upload a scan, ask for prompts, save masks."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from satunet.client.requests import Requests, ServerError, plain_name, quoted
from satunet.errors import MissingFileError

_WAIT_SECONDS = 1.0
"""The server answers when a job ends, but after this time at the latest, so that progress can be shown."""
_BUSY_SECONDS = 5.0


class Server:
    """A satunet server.

    Args:
        address: Address of the server, such as ``http://127.0.0.1:8000``.
        token: Secret of the server, if it requires one.
        timeout_seconds: Longest silence of the server before it counts as gone.
        busy_seconds: Time for which to ask again while too many jobs are waiting.

    Raises:
        ServerError: The address is not a valid one.
    """

    def __init__(
        self, address: str, token: str | None = None, *, timeout_seconds: float = 600.0, busy_seconds: float = 600.0
    ) -> None:
        self._requests = Requests(address, token, timeout_seconds)
        self._busy_seconds = busy_seconds

    @property
    def address(self) -> str:
        """Address of the server."""
        return self._requests.address

    def model(self) -> dict[str, Any]:
        """Name, modalities and classes of the server's model.

        Raises:
            ServerError: The server cannot be reached, or refuses.
        """
        return dict(self._requests.json("GET", "/model"))

    def meaning(self, words: str) -> dict[str, Any]:
        """The meaning of words to the model, and classes whose names contain them.

        Raises:
            ServerError: As :meth:`model`.
        """
        return dict(self._requests.json("GET", f"/prompts?q={quoted(words)}"))

    def bring(self, scan: str | os.PathLike[str]) -> RemoteScan:
        """Upload a scan.

        Args:
            scan: A file that the server reads (NIfTI, NRRD, MHA, a ``.zip``), or a folder of one DICOM series.

        Raises:
            MissingFileError: The file does not exist, or the folder is empty.
            ServerError: As :meth:`model`, or the file is not a scan.
        """
        with _as_file(Path(scan)) as (stream, name):
            size = stream.seek(0, os.SEEK_END)
            stream.seek(0)
            most = self.model().get("most_upload_mb")
            # Refused here, before hours of uploading, or before a proxy cuts the upload off.
            if most is not None and size > 1e6 * most:
                raise ServerError(f"{scan}: {size / 1e6:,.1f} MB; the server takes up to {most:,.0f} MB")
            brought = self._requests.upload(f"/scans?filename={quoted(name)}", stream, size)
        return RemoteScan(self._requests, brought, self._busy_seconds)


class RemoteScan:
    """A scan on a server; at the end of a ``with`` block it is removed there.

    Attributes:
        id: Id of the scan on the server.
        shape: Voxels along its axes.
        spacing_mm: Distance between voxel centres, in millimetres.
    """

    def __init__(self, requests: Requests, brought: dict[str, Any], busy_seconds: float) -> None:
        self._requests, self._busy_seconds = requests, busy_seconds
        self.id = str(brought["scan"])
        self.shape: tuple[int, ...] = tuple(brought["shape"])
        self.spacing_mm: tuple[float, ...] = tuple(brought["spacing_mm"])

    def ask(
        self,
        *prompts: str,
        combine: bool = False,
        instances: bool = False,
        measures: bool = False,
        dicom_seg: bool = False,
        dicom_sr: bool = False,
        rtstruct: bool = False,
        modality: str | None = None,
        on_progress: Callable[[float], None] | None = None,
    ) -> RemoteJob:
        """Segment prompts and wait for the result; anything that ends the wait, such as Ctrl-C, cancels the job.

        Args:
            prompts: Prompts; without any, every class that the model knows in the scan's modality.
            combine: Whether to make one label map instead of one mask per prompt.
            instances: Whether to number what occurs several times (lesions, vertebrae, ribs, teeth); not with
                ``combine``.
            measures: Whether to measure each mask: volume, surface, axes, intensities, and on CT tissues by HU.
            dicom_seg: Whether to write a DICOM Segmentation, for DICOM series.
            dicom_sr: Whether to write the measures as a DICOM Structured Report, for DICOM series.
            rtstruct: Whether to write contours as a DICOM RT Structure Set, for DICOM series.
            modality: Modality of the scan, to override the detected one.
            on_progress: Function that is called with the fraction done, 0 to 1.

        Raises:
            ServerError: The server cannot be reached, refuses, or the job fails.
        """
        job = self.begin(
            *prompts, combine=combine, instances=instances, measures=measures, dicom_seg=dicom_seg, dicom_sr=dicom_sr,
            rtstruct=rtstruct, modality=modality,
        )  # fmt: skip
        try:
            return job.wait(on_progress)
        except BaseException:
            with contextlib.suppress(ServerError):
                job.cancel()
            raise

    def begin(
        self,
        *prompts: str,
        combine: bool = False,
        instances: bool = False,
        measures: bool = False,
        dicom_seg: bool = False,
        dicom_sr: bool = False,
        rtstruct: bool = False,
        modality: str | None = None,
    ) -> RemoteJob:
        """As :meth:`ask`, without waiting for the end."""
        asked = {
            "prompts": list(prompts) or None,
            "combine": combine,
            "instances": instances,
            "measures": measures,
            "dicom_seg": dicom_seg,
            "dicom_sr": dicom_sr,
            "rtstruct": rtstruct,
            "modality": modality,
        }
        end = time.monotonic() + self._busy_seconds
        while True:
            try:
                return RemoteJob(self._requests, self._requests.json("POST", f"/scans/{quoted(self.id)}/jobs", asked))
            except ServerError as error:
                seconds = error.retry_seconds or _BUSY_SECONDS
                if error.status != 503 or time.monotonic() + seconds > end:
                    raise
                time.sleep(seconds)

    def forget(self) -> None:
        """Remove the scan, its jobs and results from the server, if they are still there."""
        try:
            self._requests.json("DELETE", f"/scans/{quoted(self.id)}")
        except ServerError as error:
            if error.status != 404:
                raise

    def __enter__(self) -> RemoteScan:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.forget()
        else:  # the first error is the one to report
            with contextlib.suppress(ServerError):
                self.forget()


class RemoteJob:
    """A job of prompts for a scan on a server."""

    def __init__(self, requests: Requests, answer: dict[str, Any]) -> None:
        self._requests, self._answer = requests, answer

    @property
    def id(self) -> str:
        """Id of the job on the server."""
        return str(self._answer["job"])

    @property
    def state(self) -> str:
        """State at the last request: waiting, running, done, failed or cancelled."""
        return str(self._answer["state"])

    @property
    def prompts(self) -> list[dict[str, Any]]:
        """Result of each prompt: class, status, voxels, millilitres, and measures and instances if requested."""
        return list(self._answer["prompts"])

    @property
    def not_looked_for(self) -> list[str]:
        """Classes left out of a request for every class because the scan is too large; by name, they are segmented."""
        return list(self._answer.get("not_looked_for", []))

    @property
    def modality(self) -> str | None:
        """Modality that the scan was taken for."""
        found = self._answer["modality"]
        return None if found is None else str(found)

    @property
    def files(self) -> list[str]:
        """Names of the results."""
        return list(self._answer["files"])

    def wait(self, on_progress: Callable[[float], None] | None = None) -> RemoteJob:
        """Wait until the job is done.

        Raises:
            ServerError: The job failed or was cancelled, or the server cannot be reached.
        """
        while self.state in ("waiting", "running"):
            if on_progress is not None:
                on_progress(float(self._answer["progress"]))
            self._answer = self._requests.json("GET", f"/jobs/{quoted(self.id)}?wait={_WAIT_SECONDS}")
        if self.state != "done":
            raise ServerError(f"the job {self.state}" + (f": {self._answer['error']}" if self._answer["error"] else ""))
        if on_progress is not None:
            on_progress(1.0)
        return self

    def cancel(self) -> None:
        """Cancel the job.

        Raises:
            ServerError: The server cannot be reached, or no longer has the job.
        """
        self._answer = self._requests.json("DELETE", f"/jobs/{quoted(self.id)}")

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Save all results; each file appears whole and replaces an existing one.

        Raises:
            ServerError: The server cannot be reached, or no longer has the results.
        """
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        return [self._save(name, target / plain_name(name)) for name in self.files]

    def _save(self, name: str, file: Path) -> Path:
        temporary = file.parent / f".tmp-{secrets.token_hex(8)}"
        try:
            with temporary.open("xb") as stream:
                self._requests.download(f"/jobs/{quoted(self.id)}/files/{quoted(name)}", stream)
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)
        return file


@contextlib.contextmanager
def _as_file(scan: Path) -> Iterator[tuple[IO[bytes], str]]:
    """A scan as one file, and a name to send that keeps only the ending of the real one."""
    if not scan.is_dir():
        try:
            stream = scan.open("rb")
        except OSError as error:
            raise MissingFileError(scan, error.strerror or str(error)) from error
        with stream:
            ending = re.search(r"(\.nii\.gz|\.[A-Za-z0-9]+)$", scan.name)
            yield stream, f"scan{ending[0].lower() if ending else ''}"
        return
    files = sorted(f for f in scan.rglob("*") if f.is_file() and not f.name.startswith("."))
    if not files:
        raise MissingFileError(scan, "no files in this folder")
    with tempfile.TemporaryFile() as packed:
        with zipfile.ZipFile(packed, "w", strict_timestamps=False) as archive:
            for number, file in enumerate(files):
                archive.write(file, f"{number:06d}.dcm")  # file names may contain patients' names, and are not sent
        yield packed, "scan.zip"
