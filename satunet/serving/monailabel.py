"""The protocol of MONAI Label, so that its plug-ins for 3D Slicer and OHIF work with this server unchanged.

A satunet model appears as two MONAI Label models: ``segment_everything`` (type ``segmentation``: every class known in
the scan's modality) and ``segment_by_text``. No model type of MONAI Label takes free text, but the plug-ins pass on
``params``, in which ``prompts`` holds the prompts, as a list or as one text with commas. Training is not offered, and
labels that a client wants to save are refused, because this is not an annotation store.

Images are addressed by the names that clients give them; the names of files are chosen by the server.
"""

from __future__ import annotations

import json
import secrets
import shutil
import threading
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, File, Form, Response, UploadFile
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse

from satunet import __version__
from satunet.errors import UserError
from satunet.prediction.options import Outputs
from satunet.serving.desk import Brought, Desk, Job, UnknownError
from satunet.serving.uploads import UNPACKED, ending_of, receive, scan_in

if TYPE_CHECKING:
    from satunet.labels import LabelSpace

EVERYTHING = "segment_everything"
BY_TEXT = "segment_by_text"
_CHUNK = 1 << 20

Upload = Annotated[UploadFile | None, File()]
Params = Annotated[str, Form()]


def router(desk: Desk) -> APIRouter:
    """Routes of the protocol."""
    images = _Images(desk)
    routes = APIRouter(tags=["MONAI Label"])

    @routes.get("/auth/")
    def auth() -> dict[str, Any]:
        """State that there is no login with a password; a token may be required."""
        return {"enabled": False}

    @routes.get("/info/")
    def info() -> dict[str, Any]:
        """Models and labels that the server offers."""
        return {
            "name": "satunet",
            "description": "Text-prompted segmentation of 3D medical images",
            "version": __version__,
            "labels": list(desk.predictor.vocabulary.space.class_names),
            "models": _models(desk.predictor.vocabulary.space),
            "trainers": {},
            "strategies": {},
            "scoring": {},
            "train_stats": {},
            "datastore": {"total": len(images.names), "completed": 0},
        }

    @routes.get("/datastore/")
    def datastore(output: str = "stats") -> dict[str, Any]:
        """Images on the server."""
        if output == "all":
            return {"name": "satunet", "description": "", "images": {}, "objects": {n: {} for n in images.names}}
        return {"total": len(images.names), "completed": 0, "label_tags": {}, "train": []}

    @routes.put("/datastore/")
    async def add_image(file: UploadFile, image: str | None = None, params: Params = "{}") -> dict[str, str]:
        """Upload an image."""
        name = image or secrets.token_urlsafe(6)
        await images.bring(name, file)
        return {"image": name}

    @routes.get("/datastore/image")
    def get_image(image: str) -> FileResponse:
        """An uploaded image."""
        scan = images.scan(image).scan
        return FileResponse(scan.path, filename=f"image{scan.ending}")

    @routes.delete("/datastore/")
    def remove_image(id: str) -> dict[str, Any]:
        """Delete an image."""
        images.forget(id)
        return {}

    @routes.put("/datastore/label")
    def save_label(image: str) -> None:
        """Refuse to save a label: nothing is kept for training."""
        raise UserError(f"this server does not store labels; save the label of {image!r} on your own machine")

    @routes.put("/session/")
    async def create_session(files: list[UploadFile]) -> dict[str, Any]:
        """Upload an image under a name that the server chooses."""
        if len(files) != 1:
            raise UserError(f"a session takes one file, got {len(files)}; put a DICOM series into a .zip")
        name = secrets.token_urlsafe(12)
        await images.bring(name, files[0], private=True)
        return {"session_id": name, "session_info": {"name": name}}

    @routes.get("/session/{session}")
    def get_session(session: str) -> dict[str, Any]:
        """An existing session."""
        images.scan(session)
        return {"name": session}

    @routes.delete("/session/{session}")
    def remove_session(session: str) -> dict[str, Any]:
        """Delete a session."""
        images.forget(session)
        return {"name": session}

    @routes.post("/infer/{model}")
    async def infer(
        model: str,
        image: str = "",
        session_id: str = "",
        params: Params = "{}",
        file: Upload = None,
        output: str | None = None,
    ) -> Response:
        """Segment an image: one label map, and the names of its labels."""
        if model not in (EVERYTHING, BY_TEXT):
            raise UnknownError(f"no model {model!r}; there are {EVERYTHING} and {BY_TEXT}")
        wanted = _prompts(params, model)
        temporary = secrets.token_urlsafe(12) if file is not None else None
        if file is not None and temporary is not None:
            await images.bring(temporary, file, private=True)
        try:
            scan = images.scan(temporary or session_id or image)
            job = await run_in_threadpool(desk.ask, scan.id, wanted, Outputs(combine=True))
            await _ended(job)
            return _answer(job, output)
        finally:
            if temporary is not None:
                images.forget(temporary)

    return routes


class _Images:
    """Images by the names that clients give them."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._scans: dict[str, str] = {}
        self._private: set[str] = set()
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        with self._lock:
            return sorted(name for name in self._scans if name not in self._private)

    async def bring(self, name: str, file: UploadFile, *, private: bool = False) -> None:
        """Receive an upload under a name, replacing an earlier one; a private image is not listed."""
        desk = self._desk
        ending = ending_of(file.filename or "image.nii.gz")
        own, folder = desk.new_folder()
        try:
            place = folder / f"upload{ending}"
            await receive(_chunks(file), place, desk.options.most_upload_bytes)
            scan = await run_in_threadpool(scan_in, place, UNPACKED * desk.options.most_upload_bytes)
            await run_in_threadpool(desk.bring, own, folder, scan)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        with self._lock:
            before = self._scans.get(name)
            self._scans[name] = own
            (self._private.add if private else self._private.discard)(name)
        if before is not None:
            self._forget(before)

    def scan(self, name: str) -> Brought:
        """The image with a name.

        Raises:
            UnknownError: There is no such image, or it has been removed.
        """
        with self._lock:
            own = self._scans.get(name)
        if own is None:
            raise UnknownError(f"no image or session {name!r}")
        return self._desk.scan(own)

    def forget(self, name: str) -> None:
        """Remove an image."""
        with self._lock:
            own = self._scans.pop(name, None)
            self._private.discard(name)
        if own is not None:
            self._forget(own)

    def _forget(self, own: str) -> None:
        try:
            self._desk.forget(own)
        except UnknownError:
            return  # already removed, because it was too old or the disk space was needed


async def _chunks(file: UploadFile) -> AsyncIterator[bytes]:
    while chunk := await file.read(_CHUNK):
        yield chunk


async def _ended(job: Job) -> None:
    await job.end()
    if job.state != "done":
        raise UserError(job.error or "cancelled")


def _models(space: LabelSpace) -> dict[str, Any]:
    labels = {name: number for number, name in enumerate(space.class_names, start=1)}
    common = {"type": "segmentation", "labels": labels, "dimension": 3, "version": __version__}
    return {
        EVERYTHING: common | {"description": "Every class that the model knows in the scan's modality", "config": {}},
        BY_TEXT: common | {"description": "The structures named in 'prompts'", "config": {"prompts": ""}},
    }


def _prompts(params: str, model: str) -> list[str] | None:
    try:
        given = json.loads(params or "{}")
    except (ValueError, RecursionError) as error:
        raise UserError(f"params must be a JSON object, got {params[:60]!r}") from error
    if not isinstance(given, dict):
        raise UserError(f"params must be a JSON object, got {params[:60]!r}")
    if model == EVERYTHING:
        return None
    prompts = given.get("prompts", given.get("label_prompt"))
    texts = prompts.split(",") if isinstance(prompts, str) else prompts
    if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts) or not any(t.strip() for t in texts):
        raise UserError(
            f"{BY_TEXT} needs 'prompts' in params: a list of texts, or one text with commas; got {prompts!r}"
        )
    return [t.strip() for t in texts if t.strip()]


def _answer(job: Job, output: str | None) -> Response:
    manifest = job.manifest
    names = {e["prompt"]: e["label"] for e in manifest["prompts"] if e.get("label") is not None}
    told = {"label_names": names, "prompts": manifest["prompts"], "modality": manifest["modality"]}
    text = json.dumps(told)
    if output == "json":
        return Response(text, media_type="application/json")
    map_file = next(file for name, file in job.files.items() if name.endswith((".nii.gz", ".nii", ".nrrd", ".mha")))
    if output == "image":
        return FileResponse(map_file, filename=map_file.name)
    boundary = secrets.token_hex(16)
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="params"\r\nContent-Type: application/json\r\n\r\n{text}\r\n'
        f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{map_file.name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    body = head.encode() + map_file.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
    return Response(body, media_type=f"multipart/form-data; boundary={boundary}")
