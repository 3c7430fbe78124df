"""The server's routes.

======================================  =====================================================================
POST   /scans                           upload a scan → its id, shape, spacing
GET    /scans/{scan}                    id, shape, spacing
GET    /scans/{scan}/image              the scan as a file, for a viewer
DELETE /scans/{scan}                    delete the scan, its jobs and results
POST   /scans/{scan}/jobs               prompts → a job
GET    /jobs/{job}                      state, progress, results; at once, or when the job ends
DELETE /jobs/{job}                      cancel the job
GET    /jobs/{job}/files/{name}         a file of the results
GET    /model                           classes and modalities of the model
GET    /prompts?q=…                     what the model takes words to mean, and suggestions
GET    /health, /metrics                for monitoring
/info, /datastore, /infer/{model}       MONAI Label's protocol, see :mod:`satunet.serving.monailabel`
======================================  =====================================================================

An error in a request is reported as one sentence in JSON: ``{"detail": …}``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import ClientDisconnect

from satunet import __version__
from satunet.errors import DiskFullError, ScanError, UserError
from satunet.jobs.files import disk_trouble, read_json
from satunet.prediction.options import Modality, Outputs
from satunet.prediction.predictor import Predictor
from satunet.prediction.results.instances import Instance, comes_in_numbers
from satunet.prediction.results.measures import Measures
from satunet.serving import monailabel
from satunet.serving.desk import Brought, BusyError, Desk, Job, UnknownError, told, without_places
from satunet.serving.door import Door, too_large
from satunet.serving.options import ServeOptions
from satunet.serving.uploads import UNPACKED, TooLargeError, ending_of, receive, scan_in

logger = logging.getLogger(__name__)

_MOST_PROMPTS = 2000
_TIDY_SECONDS = 30.0
_MOST_WAIT_SECONDS = 10.0
_KINDS = {".csv": "text/csv; charset=utf-8", ".dcm": "application/dicom", ".png": "image/png"}


class Asked(BaseModel):
    """Request to segment a scan."""

    model_config = ConfigDict(extra="forbid")

    prompts: (
        Annotated[list[Annotated[str, Field(min_length=1, max_length=500)]], Field(max_length=_MOST_PROMPTS)] | None
    )
    """Prompts, or ``null`` for every class that the model knows in the scan's modality and that is worth looking for in
    a scan of this size."""
    combine: bool = False
    """Whether to write one label map instead of one mask per prompt."""
    instances: bool = False
    """Whether to number the instances of structures that occur more than once (lesions, vertebrae, ribs, teeth), in a
    label map beside each mask and in ``prompts``; not with ``combine``."""
    measures: bool = False
    """Whether to measure volume, surface, axes and intensities of each mask, and on CT the shares of tissues by HU
    range: in ``prompts``, and as a table (CSV)."""
    dicom_seg: bool = False
    """Whether to write a DICOM Segmentation as well, for DICOM series."""
    dicom_sr: bool = False
    """Whether to write the measures as a DICOM Structured Report (TID 1500), together with the Segmentation that it
    refers to, for DICOM series."""
    rtstruct: bool = False
    """Whether to write contours as a DICOM RT Structure Set, for DICOM series."""
    modality: Modality | None = None
    """Modality of the scan, if the server should not determine it."""

    @property
    def outputs(self) -> Outputs:
        """Outputs to write; the fields have the same names here and there."""
        return Outputs(**self.model_dump(include={f.name for f in fields(Outputs)}))


class ScanAnswer(BaseModel):
    """A scan on the server."""

    scan: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    dicom: bool
    """Whether the scan is a DICOM series, for which DICOM objects can be written."""


class PromptAnswer(BaseModel):
    """Result of a prompt, as in the manifest; unknown values are left out."""

    model_config = ConfigDict(extra="allow", populate_by_name=True)

    prompt: str
    class_name: Annotated[str | None, Field(alias="class")] = None
    """Class that the prompt means."""
    status: str
    """Status of the prompt: ``known``, ``similar`` or ``unknown``."""
    note: str | None = None
    """Note on the mask, or the reason why there is none."""
    seen: bool | None = None
    voxels: int | None = None
    volume_ml: float | None = None
    mean_intensity: float | None = None
    confidence: float | None = None
    """Expected Dice of the mask."""
    absent: float | None = None
    """Probability that the scan does not show the structure."""
    file: str | None = None
    """Name of the mask among the files."""
    label: int | None = None
    """Number of the structure in the label map, with ``combine``."""
    measures: Measures | None = None
    instances: list[Instance] | None = None


class JobAnswer(BaseModel):
    """Progress and results of a job."""

    job: str
    scan: str
    state: str
    progress: float
    waiting: int
    error: str | None = None
    seconds: float | None = None
    modality: str | None = None
    prompts: list[PromptAnswer] = []
    not_looked_for: list[str] = []
    """Classes that were left out because the scan is too large for them, if every class was requested; they are looked
    for if requested by name."""
    files: list[str] = []


def create_app(predictor: Predictor, folder: Path, options: ServeOptions) -> FastAPI:
    """The server as an ASGI application.

    Args:
        predictor: Predictor with its model.
        folder: Private folder of the server for uploads and results; it is removed at the end.
        options: Options of the server.

    Raises:
        UserError: The token file cannot be read, or does not hold a token.
    """
    token = options.secret()
    desk = Desk(predictor, folder, options)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        tidying = asyncio.create_task(_tidy_now_and_then(desk))
        try:
            yield
        finally:
            tidying.cancel()
            await run_in_threadpool(desk.close)
            shutil.rmtree(folder, ignore_errors=True)

    app = FastAPI(
        title="satunet",
        version=__version__,
        summary="Text-prompted segmentation of 3D medical images",
        lifespan=lifespan,
    )
    app.add_middleware(Door, token=token, most_upload_bytes=options.most_upload_bytes)
    app.state.desk = desk
    _add_errors(app, folder)
    _add_scans(app, desk)
    _add_jobs(app, desk)
    _add_model(app, desk)
    _add_watching(app, desk)
    app.include_router(monailabel.router(desk))
    return app


async def _tidy_now_and_then(desk: Desk) -> None:
    while True:
        await asyncio.sleep(_TIDY_SECONDS)
        await run_in_threadpool(desk.tidy)


def _add_errors(app: FastAPI, folder: Path) -> None:
    codes: dict[type[Exception], int] = {
        UnknownError: 404,
        BusyError: 503,
        TooLargeError: 413,
        ScanError: 422,
        UserError: 422,
    }

    def handler(code: int) -> Callable[[Request, Exception], Response]:
        def answer(_: Request, error: Exception) -> Response:
            headers = {"Retry-After": "10"} if code == 503 else None
            return JSONResponse({"detail": told(error, folder)}, status_code=code, headers=headers)

        return answer

    for kind, code in codes.items():
        app.add_exception_handler(kind, handler(code))

    async def disk(_: Request, error: Exception) -> Response:
        trouble = disk_trouble(error)
        if trouble is None:
            raise error
        logger.error("%s: %s", folder, trouble)
        return JSONResponse({"detail": told(error, folder)}, status_code=507)

    for of_disks in (OSError, DiskFullError):
        app.add_exception_handler(of_disks, disk)

    async def gone(_: Request, error: Exception) -> Response:
        return Response(status_code=400)  # the client aborted its upload: no fault of the server, and no one reads this

    app.add_exception_handler(ClientDisconnect, gone)


def _add_scans(app: FastAPI, desk: Desk) -> None:
    @app.post("/scans", status_code=201)
    async def bring_scan(request: Request, filename: str) -> ScanAnswer:
        """Upload a scan as the body of the request; the ending of ``filename`` gives the format."""
        ending = ending_of(filename)
        most = desk.options.most_upload_bytes
        announced = request.headers.get("content-length", "")
        if announced.isdigit() and int(announced) > most:
            raise TooLargeError(too_large(most))
        name, folder = desk.new_folder()
        try:
            await receive(request.stream(), folder / f"upload{ending}", most)
            scan = await run_in_threadpool(scan_in, folder / f"upload{ending}", UNPACKED * most)
            brought = await run_in_threadpool(desk.bring, name, folder, scan)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return _answer_of_scan(brought)

    @app.get("/scans/{scan}")
    def show_scan(scan: str) -> ScanAnswer:
        """Shape and spacing of a scan."""
        return _answer_of_scan(desk.scan(scan))

    @app.get("/scans/{scan}/image")
    def image(scan: str) -> FileResponse:
        """The scan as a file; a DICOM series is converted to NIfTI."""
        found = desk.scan(scan)
        if found.scan.series is None:
            return FileResponse(found.scan.path, filename=f"scan{found.scan.ending}")
        file = found.folder / "series.nii.gz"
        if not file.is_file():
            from satunet.images.image import write_volume

            loaded = found.scan.read()
            write_volume(file, loaded.array, like=loaded.grid)
        return FileResponse(file, filename="scan.nii.gz")

    @app.delete("/scans/{scan}", status_code=204)
    def forget_scan(scan: str) -> None:
        """Delete a scan, its jobs and results."""
        desk.forget(scan)


def _answer_of_scan(brought: Brought) -> ScanAnswer:
    return ScanAnswer(
        scan=brought.id,
        shape=brought.shape,
        spacing_mm=brought.spacing_mm,
        dicom=brought.scan.series is not None,
    )


def _add_jobs(app: FastAPI, desk: Desk) -> None:
    @app.post("/scans/{scan}/jobs", status_code=202, response_model_exclude_unset=True)
    def ask(scan: str, asked: Asked) -> JobAnswer:
        """Start a job that segments a scan."""
        return answer_of(desk, desk.ask(scan, asked.prompts, asked.outputs, asked.modality))

    @app.get("/jobs/{job}", response_model_exclude_unset=True)
    async def show_job(job: str, wait: Annotated[float, Query(ge=0, le=_MOST_WAIT_SECONDS)] = 0.0) -> JobAnswer:
        """State, progress and results; with ``wait``, as soon as the job ends, but after that many seconds at most."""
        found = desk.job(job)
        await found.end(wait)
        return await run_in_threadpool(answer_of, desk, found)

    @app.delete("/jobs/{job}", response_model_exclude_unset=True)
    def cancel(job: str) -> JobAnswer:
        """Cancel a job."""
        return answer_of(desk, desk.cancel(job))

    @app.get("/jobs/{job}/files/{name}", response_class=FileResponse)
    def result(job: str, name: str) -> Response:
        """A file of the results, by the name in the job's list."""
        found = desk.job(job).files.get(name)
        if found is None:
            raise UnknownError(f"this job has no result {name!r}")
        if found.suffix == ".json":
            return JSONResponse(without_places(read_json(found)))
        return FileResponse(found, filename=name, media_type=_KINDS.get(found.suffix, "application/octet-stream"))


def answer_of(desk: Desk, job: Job) -> JobAnswer:
    """The answer to a client about a job."""
    manifest = job.manifest
    return JobAnswer(
        job=job.id,
        scan=job.brought.id,
        state=job.state,
        progress=1.0 if job.state == "done" else job.done / job.total if job.total else 0.0,
        waiting=desk.waiting,
        error=job.error,
        seconds=job.seconds,
        modality=manifest.get("modality", job.decided.modality),
        prompts=[PromptAnswer(**entry) for entry in manifest.get("prompts", [])],
        not_looked_for=manifest.get("not_looked_for", []),
        files=sorted(job.files),
    )


def _add_model(app: FastAPI, desk: Desk) -> None:
    @app.get("/model")
    def model() -> dict[str, Any]:
        """Classes and modalities of the model."""
        vocabulary = desk.predictor.vocabulary
        return {
            "model": desk.predictor.model.path.name,
            "most_upload_mb": desk.options.most_upload_mb,
            "modalities": list(vocabulary.modalities),
            "classes": [
                {
                    "name": c.name,
                    "modalities": list(c.modalities),
                    "in_numbers": comes_in_numbers(c.name, vocabulary.space),
                }
                for c in vocabulary.space.classes
            ],
        }

    @app.get("/prompts")
    def prompts(q: Annotated[str, Field(min_length=1, max_length=500)], suggest: int = 8) -> dict[str, Any]:
        """What the model takes words to mean, and classes whose names contain them."""
        matches = desk.predictor.match(q) if q.strip() else []
        words = q.lower().split()
        names = desk.predictor.vocabulary.space.class_names
        near = [n for n in names if all(w in n for w in words)]
        near.sort(key=lambda n: (not n.startswith(q.lower()), len(n), n))
        return {
            "meaning": [
                {"prompt": m.prompt, "class": m.class_name, "status": m.status, "note": m.note} for m in matches
            ],
            "suggestions": near[: max(0, min(suggest, 50))],
        }


def _add_watching(app: FastAPI, desk: Desk) -> None:
    @app.get("/health")
    def health() -> dict[str, Any]:
        """Whether the server is running."""
        return {"status": "ok", "version": __version__, "waiting": desk.waiting}

    @app.get("/metrics")
    def metrics() -> PlainTextResponse:
        """Counters and memory use in the text format of Prometheus."""
        lines = []
        for name, count in desk.counts.items():
            lines += [f"# TYPE satunet_{name}_total counter", f"satunet_{name}_total {count}"]
        gauges = {
            "waiting_jobs": desk.waiting,
            "features_bytes": desk.features.used_bytes,
            "features_hits": desk.features.hits,
            "features_misses": desk.features.misses,
            "prepared_scans_bytes": desk.prepared.used_bytes,
        }
        for name, value in gauges.items():
            lines += [f"# TYPE satunet_{name} gauge", f"satunet_{name} {value}"]
        return PlainTextResponse("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")

    @app.get("/", include_in_schema=False)
    def page() -> HTMLResponse:
        """The page."""
        from satunet.serving.page import page as made

        return HTMLResponse(made())

    @app.get("/static/niivue.js", include_in_schema=False)
    def niivue() -> FileResponse:
        """The viewer's library."""
        from satunet.serving.page import NIIVUE

        return FileResponse(NIIVUE, media_type="text/javascript")
