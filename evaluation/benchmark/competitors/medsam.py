"""MedSAM, or any SAM of ``transformers``, as a competitor: slice by slice, prompted with boxes of the reference.

As in SAT's comparison (arXiv 2312.17183), every axial slice that shows a class is segmented from one box around the
class in that slice, tight or loose; the oracle box uses the tight box itself as the mask. A box tells where a structure
is and on which slices, which a text does not, so these columns are upper bounds and not on a par with the others.

Slices are prepared as by MedSAM's authors (Ma et al., arXiv 2304.12306): windowed, scaled to 0 … 1 and resized to the
network's square. Slices are taken along the axis nearest to head–foot.
"""

from __future__ import annotations

import logging
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from satunet.compute.devices import pick_device
from satunet.datasets.raw import Case
from satunet.errors import ModelError
from satunet.evaluation.benchmark.conclusions.results import Cost
from satunet.evaluation.benchmark.costs import Meter, cost_of_runs, record_run
from satunet.evaluation.benchmark.stamps import STAMP, is_fresh
from satunet.evaluation.benchmark.tasks import Task
from satunet.evaluation.scoring.label_index import LabelIndex
from satunet.geometry import reorient
from satunet.images.hounsfield import to_hounsfield
from satunet.images.image import Image, read_image, read_label_map, write_label_map
from satunet.jobs.files import mask_file_name, write_json
from satunet.jobs.fresh import Stamp
from satunet.jobs.records import to_plain
from satunet.jobs.workers import reason_of
from satunet.prediction.results.places import MANIFEST

logger = logging.getLogger(__name__)

Boxes = Literal["tight", "loose", "oracle"]
PUBLISHED = "wanglab/medsam-vit-base"
LOOSE = 0.08
"""Largest distance that a side of a loose box moves outwards, as a share of the slice's side."""

_CT_WINDOW = (-160.0, 240.0)  # width 400, level 40: MedSAM's for soft tissue
_PERCENTILES = (0.5, 99.5)
_MOST_BOXES = 64


@dataclass(kw_only=True)
class MedSAMCompetitor:
    """A box-prompted SAM.

    Attributes:
        output: Folder of all predictions.
        source: Name on the hub, or folder, of a ``SamModel``; not needed for oracle boxes.
        boxes: Kind of boxes that it is given.
        device: Device to compute on.
    """

    output: Path
    source: str = PUBLISHED
    boxes: Boxes = "tight"
    device: str = "auto"
    _model: Any = field(default=None, repr=False)
    _parameters: int = 0

    @property
    def name(self) -> str:
        """``MedSAM tight``, ``MedSAM loose``, ``oracle box``."""
        return "oracle box" if self.boxes == "oracle" else f"MedSAM {self.boxes}"

    def folder(self, task: Task) -> Path:
        """``<output>/<name>/<dataset>/fold_<fold>``."""
        return self.output / self.name / task.name

    def channels(self, task: Task) -> None:
        """One prediction per case is enough."""

    def predict(self, task: Task) -> dict[str, str]:
        """Write a folder of masks for each case, from its first channel; masks that the same model made from the same
        files are kept.
        """
        folder, failures, scans = self.folder(task), {}, 0
        if self.boxes != "oracle":
            self._network()  # loading does not count as time spent on a scan
        with Meter() as meter:
            for case in task.cases:
                place, made_of = folder / case.identifier, self._made_of(task, case)
                if is_fresh(place / MANIFEST, *made_of):
                    continue
                shutil.rmtree(place, ignore_errors=True)  # made by another model, from other boxes or for other classes
                try:
                    self._predict_case(task, case, place, Stamp.of(*made_of))
                    scans += 1
                except ModelError:
                    raise  # no case can do without the model
                except Exception as error:  # whatever is wrong with this scan, the others go on
                    failures[case.identifier] = reason_of(error)
        record_run(
            folder,
            cases=scans,
            scans=scans,
            seconds=meter.seconds,
            memory_bytes=meter.memory_bytes,
            threads=meter.threads,
        )
        return failures

    def trained_cases(self, task: Task) -> frozenset[str]:
        """Unknown, so none."""
        return frozenset()

    def release(self) -> None:
        """The network is loaded again for the next task."""
        self._model = None

    def cost(self, tasks: Sequence[Task]) -> Cost | None:
        """One network; an oracle box needs none."""
        if self.boxes == "oracle":
            return None
        if not self._parameters:
            self._network()
        return Cost(
            models=1,
            parameters=self._parameters,
            disk_bytes=4 * self._parameters,
            **cost_of_runs([self.folder(task) for task in tasks]),
        )

    def _made_of(self, task: Task, case: Case) -> tuple[list[Path], dict[str, Any]]:
        """Everything that a case's masks depend on: files, and the values that they are combined with."""
        files = [f for f in (case.images[0], task.references[case.identifier]) if f.is_file()]
        return files, {
            "model": None if self.boxes == "oracle" else self.source,
            "boxes": self.boxes,
            "classes": {name: list(ids) for name, ids in task.classes.ids.items()},
        }

    def _predict_case(self, task: Task, case: Case, folder: Path, stamp: Stamp) -> None:
        image = read_image(case.images[0])
        labels = read_label_map(
            task.references[case.identifier],
            grid=image.grid,
            allowed_ids=task.dataset.label_ids,
            trust_shape=task.dataset.trust_shape,
        )
        model = None if self.boxes == "oracle" else self._network()
        masks = segment(
            image, labels.array, task.classes.ids, model, boxes=self.boxes, ct=task.dataset.modalities[0] == "ct"
        )
        entries = []
        for name, mask in masks.items():
            entries.append({"prompt": name, "class": name, "file": f"{mask_file_name(name)}.nii.gz"})
            write_label_map(folder / entries[-1]["file"], mask, like=image)
        write_json(folder / MANIFEST, {STAMP: to_plain(stamp), "prompts": entries}, sealed=True)

    def _network(self) -> Any:
        if self._model is None:
            self._model = load_sam(self.source).to(pick_device(self.device))
            self._parameters = sum(p.numel() for p in self._model.parameters())
        return self._model


def load_sam(source: str) -> Any:
    """A ``SamModel`` in evaluation mode.

    Raises:
        ModelError: There is no model of that name, or it is not a SAM.
    """
    from transformers import SamModel

    try:
        model = SamModel.from_pretrained(source)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{source}: no SamModel of transformers can be loaded from there ({error})") from error
    return model.eval()


def segment(
    image: Image,
    labels: NDArray[np.integer[Any]],
    classes: Mapping[str, Sequence[int]],
    model: Any,
    *,
    boxes: Boxes = "tight",
    ct: bool = False,
) -> dict[str, NDArray[np.bool_]]:
    """Segment the classes of a reference from its boxes.

    Args:
        image: The scan.
        labels: (X, Y, Z) reference ids on the scan's grid.
        classes: Class → ids.
        model: A ``SamModel``; may be ``None`` for oracle boxes.
        boxes: Kind of boxes.
        ct: Whether the scan is a CT, whose window is fixed.

    Returns:
        Class → (X, Y, Z) mask; empty for a class that the reference does not hold.
    """
    voxels = to_hounsfield(image.array) if ct else image.array
    volume, grid = reorient(voxels, image.grid, "RAS")
    reference, _ = reorient(labels, image.grid, "RAS")
    index = LabelIndex(reference)
    found = {name: np.zeros(reference.shape, dtype=bool) for name in classes}
    low, high = _CT_WINDOW if ct else _window(volume)
    for z, prompts in _prompts(index, reference.shape, classes, boxes):
        names, corners = list(prompts), np.array(list(prompts.values()))
        if boxes == "oracle":
            for name, (x0, y0, x1, y1) in prompts.items():
                found[name][x0 : x1 + 1, y0 : y1 + 1, z] = True
            continue
        plane = np.clip((volume[:, :, z].astype(np.float32) - low) / (high - low), 0, 1)
        for name, mask in zip(names, _masks(model, plane, corners), strict=True):
            found[name][:, :, z] = mask
    back = image.grid.orientation
    return {name: reorient(mask, grid, back)[0] for name, mask in found.items()}


def _prompts(
    index: LabelIndex, shape: Sequence[int], classes: Mapping[str, Sequence[int]], boxes: Boxes
) -> Iterator[tuple[int, dict[str, tuple[int, int, int, int]]]]:
    """Slice → class → (x0, y0, x1, y1), with the last row and column inside the box."""
    by_slice: dict[int, dict[str, tuple[int, int, int, int]]] = {}
    for name, ids in classes.items():
        box = index.box(ids)
        if box is None:
            continue
        mask = index.mask(ids, box)
        for k in range(mask.shape[2]):
            xs, ys = (np.flatnonzero(mask[:, :, k].any(axis=other)) for other in (1, 0))
            if len(xs):
                z, x, y = k + box[2].start, box[0].start, box[1].start
                corners = (x + int(xs[0]), y + int(ys[0]), x + int(xs[-1]), y + int(ys[-1]))
                by_slice.setdefault(z, {})[name] = _moved(corners, shape, name, z) if boxes == "loose" else corners
    yield from sorted(by_slice.items())


def _moved(corners: tuple[int, int, int, int], shape: Sequence[int], name: str, z: int) -> tuple[int, int, int, int]:
    """A box whose sides moved outwards, each by a random length; the same in every run."""
    shares = np.random.default_rng(zlib.crc32(f"{name}:{z}".encode())).uniform(0, LOOSE, size=4)
    x0, y0, x1, y1 = corners
    return (
        max(0, x0 - round(shares[0] * shape[0])),
        max(0, y0 - round(shares[1] * shape[1])),
        min(shape[0] - 1, x1 + round(shares[2] * shape[0])),
        min(shape[1] - 1, y1 + round(shares[3] * shape[1])),
    )


def _masks(model: Any, plane: NDArray[np.float32], corners: NDArray[np.int64]) -> Iterator[NDArray[np.bool_]]:
    """An (X, Y) mask for each box in a plane scaled to 0 … 1; the plane is encoded only once."""
    device = next(model.parameters()).device
    side = int(model.config.vision_config.image_size)
    # Pictures have rows from the front of the patient to the back, as radiologists look at them: y in reverse.
    picture = torch.from_numpy(np.ascontiguousarray(plane.T[::-1])).to(device)
    height, width = picture.shape
    pixels = torch.nn.functional.interpolate(picture[None, None], (side, side), mode="bilinear", align_corners=False)
    with torch.inference_mode():
        embedding = model.get_image_embeddings(pixels.expand(1, 3, -1, -1))
        for start in range(0, len(corners), _MOST_BOXES):
            x0, y0, x1, y1 = (torch.from_numpy(c) for c in corners[start : start + _MOST_BOXES].T)
            box = torch.stack([x0 / width, (height - 1 - y1) / height, (x1 + 1) / width, (height - y0) / height], dim=1)
            prompts = (box * side).to(device, torch.float32)[None]
            logits: Tensor = model(image_embeddings=embedding, input_boxes=prompts, multimask_output=False).pred_masks
            planes = torch.nn.functional.interpolate(logits[0], (height, width), mode="bilinear", align_corners=False)
            for mask in (planes[:, 0] > 0).cpu().numpy():
                yield mask[::-1].T


def _window(volume: NDArray[Any]) -> tuple[float, float]:
    """Percentiles of the voxels that are not background."""
    inside = volume[volume > volume.min()]
    low, high = (float(v) for v in np.percentile(inside if inside.size else volume, _PERCENTILES))
    return (low, high) if high > low else (low, low + 1.0)
