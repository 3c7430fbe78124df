"""The widget: it takes an image layer, prompts and a server, and returns a labels layer.

napari's layers do not say where the patient's left is. If a layer shows a file's voxels as they are stored, or with
reversed axes, the file is sent, because its header does. All other layers are assumed to be as ITK's readers return
them: axes (z, y, x), towards the patient's head, back and left, with the layer's scale in millimetres.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from satunet.client import Server
from satunet.errors import SatunetError, UserError
from satunet.geometry import Grid
from satunet.images.image import read_image, read_label_map, write_volume

if TYPE_CHECKING:
    import napari.layers
    from magicgui.widgets import FunctionGui

Labels = tuple[np.ndarray[Any, Any], dict[str, Any], str]


def segment(layer: Any, words: list[str], server: Server, on_progress: Callable[[float], None] | None = None) -> Labels:
    """Segment prompts in an image layer.

    Args:
        layer: A 3D image layer of one channel.
        words: Prompts; without any, every class that the model knows.
        server: Server that does the work.
        on_progress: Function that is called with the fraction done, 0 to 1.

    Returns:
        A labels layer in napari's form: data with the layer's axes, attributes, kind. ``metadata`` has the result of
            each prompt, ``features`` the meaning of each number.

    Raises:
        ServerError: The server cannot be reached, or refuses.
        UserError: The layer is not 3D.
    """
    if layer.data.ndim != 3 or getattr(layer, "rgb", False):
        raise UserError(f"the layer must be 3D, of one channel; {layer.name!r} has shape {layer.data.shape}")
    with tempfile.TemporaryDirectory(prefix="satunet-napari-") as made:
        folder = Path(made)
        file, turned = _file_of(layer, folder)
        with server.bring(file) as scan:
            job = scan.ask(*words, combine=True, on_progress=on_progress)
            saved = job.save(folder / "found")
        (found,) = [f for f in saved if f.suffix != ".json"]
        labels = read_label_map(found).array
    named = {entry["label"]: entry["prompt"] for entry in job.prompts if entry.get("label")}
    numbers = [0, *sorted(named)]
    attributes = {
        "name": ", ".join(words) or "every class",
        "scale": layer.scale,
        "translate": layer.translate,
        "rotate": layer.rotate,
        "shear": layer.shear,
        "affine": layer.affine,
        "features": {"index": numbers, "structure": ["", *(named[n] for n in numbers[1:])]},
        "metadata": {"prompts": job.prompts, "modality": job.modality},
    }
    return np.ascontiguousarray(labels.T if turned else labels).astype(np.int32), attributes, "labels"


def _file_of(layer: Any, folder: Path) -> tuple[Path, bool]:
    """File of a layer, and whether its axes are the layer's in reverse."""
    data, path = np.asarray(layer.data), layer.source.path
    if path is not None:
        try:
            stored = read_image(Path(path)).array
        except (SatunetError, OSError):
            stored = None  # some other reader's format: the voxels are sent instead
        for turned in (False, True):
            if stored is not None and np.array_equal(stored.T if turned else stored, data):
                return Path(path), turned
    spacing = [float(s) for s in reversed(layer.scale[-3:])]
    voxels = np.ascontiguousarray(data.T)
    x, y, z = voxels.shape
    grid = Grid(shape=(x, y, z), affine=np.diag([-spacing[0], -spacing[1], spacing[2], 1.0]))
    write_volume(folder / "layer.nii.gz", voxels.astype(np.float32), like=grid)
    return folder / "layer.nii.gz", True


def segment_widget() -> FunctionGui:
    """The widget that napari shows; it stays responsive while the server works."""
    from magicgui import magicgui
    from napari import current_viewer
    from napari.qt.threading import thread_worker
    from napari.utils.notifications import show_error, show_info

    @magicgui(  # type: ignore[untyped-decorator]
        call_button="Segment",
        words={"label": "Words", "tooltip": "separated by commas; if empty, every class that the model knows"},
        address={"label": "Server"},
        token={"label": "Token", "widget_type": "Password"},
    )
    def widget(
        image: napari.layers.Image, words: str = "", address: str = "http://127.0.0.1:8000", token: str = ""
    ) -> None:
        if image is None:
            show_error("open a scan first")
            return
        viewer = current_viewer()
        asked = [w.strip() for w in words.split(",") if w.strip()]

        @thread_worker  # type: ignore[untyped-decorator]
        def work() -> Labels | str:
            try:
                return segment(image, asked, Server(address, token or None))
            except (SatunetError, OSError) as error:  # anything else is a fault, which napari shows with its traceback
                return str(error)

        def show(found: Labels | str) -> None:
            if isinstance(found, str):
                show_error(found)
                return
            data, attributes, _ = found
            viewer.add_labels(data, **attributes)
            absent = [p["prompt"] for p in attributes["metadata"]["prompts"] if not p.get("voxels")]
            if absent:
                show_info(f"not found: {', '.join(absent)}")

        def usable_again() -> None:
            widget.call_button.enabled = True

        widget.call_button.enabled = False
        worker = work()
        worker.returned.connect(show)
        worker.finished.connect(usable_again)
        worker.start()

    return widget
