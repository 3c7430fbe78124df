"""Masks of prompts in one scan: prompts become queries, the engine finds their probabilities, and each goes back to
the file's grid inside its own box.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from satunet.compute.devices import Precision, pick_device
from satunet.datasets.raw import MODALITIES
from satunet.errors import PromptError, UserError
from satunet.geometry import reorient
from satunet.images.image import Image, as_image
from satunet.models.folder import ModelFolder
from satunet.network.engines import Engine, accelerate
from satunet.prediction.masks import BoxedMask, restore_box
from satunet.prediction.postprocess import Postprocessing
from satunet.preprocessing.transform import PreprocessedImage, ScanGeometry, preprocess_image
from satunet.prompts.matching import PromptMatch
from satunet.prompts.reader import PromptReader
from satunet.text import TextEncoder
from satunet.windows.engine import Probability, WindowedScan

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptMask:
    """What a prompt gave.

    Attributes:
        match: What the prompt means to the model.
        boxed: The mask in the image's own grid, kept small; ``None`` for a prompt the model cannot know.
    """

    match: PromptMatch
    boxed: BoxedMask | None

    @property
    def mask(self) -> NDArray[np.bool_] | None:
        """(X, Y, Z) in the image's own grid, made anew at every call; ``None`` for a prompt the model cannot know."""
        return None if self.boxed is None else self.boxed.full


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """Masks of a scan.

    Attributes:
        image: The scan.
        modality: Modality it was taken for.
        masks: One a prompt, in the order of the prompts; one a class for a prompt that stands for several.
    """

    image: Image
    modality: str
    masks: tuple[PromptMask, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedScan:
    """A scan that the network can look at.

    Attributes:
        image: As it was given.
        modality: One of :data:`~satunet.datasets.raw.MODALITIES`.
        modality_from: How the modality was found out.
        volume: (X, Y, Z) float32 in the plan's orientation and spacing, normalised.
        geometry: The way back.
        others: The same at other spacings that classes of the model are looked for at; filled when they are needed.
    """

    image: Image
    modality: str
    modality_from: str
    volume: NDArray[np.float32]
    geometry: ScanGeometry
    others: dict[tuple[float, float, float], PreprocessedImage] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class Found(Probability):
    """A prompt's probability, and the way from its grid to the scan's file.

    Attributes:
        geometry: Of the preprocessed scan that it was found in.
    """

    geometry: ScanGeometry


class Predictor:
    """Predicts with one model.

    Args:
        model: The model, or its folder.
        device: ``auto``, ``cuda``, ``mps`` or ``cpu``.
        overlap: Share of a window that its neighbour covers too.
        precision: As in :mod:`satunet.compute.devices`.
        engine: How to run the network, see :mod:`satunet.network.engines`.
        memory_gb: Memory for the probabilities of prompts; with less, the image is looked at more often, and the masks are
            the same to the last voxel.
        mirror: Look at every window mirrored as well, along all axes that keep left and right apart, and average.
        batch: Windows that go through the network at once.
        postprocessing: Of every mask.
    """

    def __init__(
        self,
        model: ModelFolder | Path | str,
        *,
        device: str = "auto",
        overlap: float = 0.5,
        precision: Precision = "auto",
        engine: Engine = "auto",
        memory_gb: float = 2.0,
        mirror: bool = False,
        batch: int = 1,
        postprocessing: Postprocessing | None = None,
    ) -> None:
        if not 0 <= overlap < 1:
            raise UserError(f"overlap must lie in [0, 1), got {overlap}")
        if batch < 1:
            raise UserError(f"batch must be at least 1, got {batch}")
        self.model = model if isinstance(model, ModelFolder) else ModelFolder.load(Path(model))
        self.device = pick_device(device)
        self.overlap = overlap
        self.precision = precision
        self.memory_gb = memory_gb
        self.mirror = mirror
        self.batch = batch
        self.postprocessing = postprocessing or Postprocessing()
        self.network: Any = accelerate(self.model.network, self.device, engine=engine, precision=precision)

    @property
    def settings(self) -> dict[str, Any]:
        """What a result depends on, besides scan, prompts and weights."""
        return {"overlap": self.overlap, "mirror": self.mirror, **asdict(self.postprocessing)}

    @cached_property
    def encoder(self) -> TextEncoder:
        """The text encoder, for texts that are not in the model's bank."""
        return self.model.text_encoder()

    def match(self, prompts: Sequence[str]) -> list[PromptMatch]:
        """What prompts mean to the model; the text encoder is asked only for those that nothing else explains.

        Returns:
            In order, one match a prompt; a prompt that stands for several classes ("kidneys", "abdominal organs") gives
            one for each, with the prompt in ``expanded_from``.

        Raises:
            PromptError: No prompt, or an empty one.
        """
        if not prompts or any(not p.strip() for p in prompts):
            raise PromptError(f"prompts must be texts that are not empty, got {list(prompts)}")
        found: list[PromptMatch] = []
        for prompt in prompts:
            matches = self._reader.read(prompt)
            if matches[0].status == "unknown" and not matches[0].note:
                matches = self._reader.read(prompt, self.encoder)
            found += matches
        return found

    def offered(self, matches: Sequence[PromptMatch], modality: str) -> list[PromptMatch]:
        """Matches as they are for a scan of a modality: a model with scores draws only what it has scores for.

        Args:
            matches: From :meth:`match`.
            modality: Of the scan.

        Returns:
            The same matches; those that are refused are ``"unknown"``, with a note that says why.
        """
        scores = self.model.card.scores if self.model.card is not None else ()
        if not scores:
            return list(matches)
        earned = {(s.class_name, s.modality) for s in scores}
        found = []
        for match in matches:
            name = match.class_name
            if match.status == "similar":
                note = f"{match.prompt!r} is none of the model's classes"
                match = replace(match, status="unknown", note=note)
            elif match.status == "known" and (name, modality) not in earned:
                others = ", ".join(sorted(m for n, m in earned if n == name))
                note = f"{name!r} has no score in {modality}, and is not drawn there; it has in {others or 'none'}"
                match = replace(match, status="unknown", note=note)
            found.append(match)
        return found

    @cached_property
    def _reader(self) -> PromptReader:
        return PromptReader(self.model.space)

    def predict(
        self,
        image: Any,
        prompts: Sequence[str] | Mapping[str, NDArray[np.floating[Any]]],
        *,
        modality: str | None = None,
        on_progress: Callable[[int, int], bool | None] | None = None,
    ) -> Prediction:
        """Segment a scan.

        Args:
            image: A path; a satunet, nibabel or SimpleITK image; or (array, affine), see
                :func:`satunet.images.image.as_image`.
            prompts: What to look for, in any wording; or name → embedding (D,) of the model's text encoder.
            modality: One of :data:`~satunet.datasets.raw.MODALITIES`; guessed if not given.
            on_progress: Called with (windows done, windows); returning ``False`` cancels.

        Raises:
            PromptError: No usable prompt, an embedding of another width, or cancelled.
            ScanError: The file cannot be used.
        """
        if isinstance(prompts, Mapping):
            matches = [PromptMatch(prompt=name, class_name=None, status="embedding") for name in prompts]
        else:
            matches = self.match(prompts)
        scan = self.prepare(as_image(image), modality, matches)
        matches = self.offered(matches, scan.modality)
        masks: list[BoxedMask | None] = [
            None if match.status == "unknown" else BoxedMask.empty(scan.image.grid.shape) for match in matches
        ]
        embeddings = prompts if isinstance(prompts, Mapping) else None
        for i, found in self.find(scan, matches, embeddings=embeddings, on_progress=on_progress):
            masks[i] = self.restore(found, scan)
        return Prediction(
            image=scan.image,
            modality=scan.modality,
            masks=tuple(PromptMask(match=m, boxed=mask) for m, mask in zip(matches, masks, strict=True)),
        )

    def prepare(
        self, image: Image, modality: str | None = None, matches: Sequence[PromptMatch] | None = None
    ) -> PreparedScan:
        """Preprocess a scan; needs no network, and may run beside one.

        Args:
            image: The scan.
            modality: Its modality; guessed if not given.
            matches: What will be looked for, if that is known: a model may see its classes at several spacings.

        Raises:
            UserError: An unknown modality.
        """
        chosen, how = (modality, "given") if modality else guess_modality(image, self.model.modalities)
        if chosen not in MODALITIES:
            raise UserError(f"modality {chosen!r}; allowed are {', '.join(MODALITIES)}")
        spacing, *others = self._by_spacing(image, chosen, matches or ()) or [self.model.plan.spacing_mm]
        done = self._preprocess(image, chosen, spacing)
        return PreparedScan(
            image=image,
            modality=chosen,
            modality_from=how,
            volume=done.array[0],
            geometry=done.geometry,
            others={other: self._preprocess(image, chosen, other) for other in others},
        )

    def _preprocess(self, image: Image, modality: str, spacing: tuple[float, float, float]) -> PreprocessedImage:
        return preprocess_image(image, modality=modality, plan=replace(self.model.plan, spacing_mm=spacing))

    def _by_spacing(
        self, image: Image, modality: str, matches: Sequence[PromptMatch]
    ) -> dict[tuple[float, float, float], list[int]]:
        """Spacing → positions of the prompts that are looked for at it; prompts that the model cannot know at none."""
        plan = self.model.plan
        turned = reorient(np.broadcast_to(np.uint8(0), image.grid.shape), image.grid, plan.orientation)[1]
        x, y, z = (n * s for n, s in zip(turned.shape, turned.spacing_mm, strict=True))
        found: dict[tuple[float, float, float], list[int]] = {}
        for i, match in enumerate(matches):
            if match.status != "unknown":
                name = match.class_name or next((n for n, _ in match.nearest), None)
                found.setdefault(plan.spacing_for(name, modality, (x, y, z)), []).append(i)
        return found

    def find(
        self,
        scan: PreparedScan,
        matches: Sequence[PromptMatch],
        *,
        embeddings: Mapping[str, NDArray[np.floating[Any]]] | None = None,
        on_progress: Callable[[int, int], bool | None] | None = None,
    ) -> Iterator[tuple[int, Found]]:
        """Look for prompts in a scan.

        Yields:
            Position in ``matches`` and where the prompt's probability may exceed one half, as soon as it is known;
            prompts that the model cannot know are left out.

        Raises:
            PromptError: An embedding of another width, or cancelled.
        """
        before = 0  # windows at spacings that are done
        for spacing, usable in self._by_spacing(scan.image, scan.modality, matches).items():
            total = 0

            def report(done: int, of: int) -> None:
                nonlocal total
                total = of
                if on_progress is not None and on_progress(before + done, before + of) is False:  # noqa: B023
                    raise PromptError("cancelled")

            volume, geometry = self._at(scan, spacing)
            queries = self._queries([matches[i] for i in usable], embeddings or {})
            for number, found in self._windows(volume, queries, scan.modality, report).probabilities():
                yield usable[number], Found(box=found.box, values=found.values, geometry=geometry)
            before += total

    def _at(self, scan: PreparedScan, spacing: tuple[float, float, float]) -> tuple[NDArray[np.float32], ScanGeometry]:
        if scan.geometry.spacing_mm == spacing:
            return scan.volume, scan.geometry
        if spacing not in scan.others:
            scan.others[spacing] = self._preprocess(scan.image, scan.modality, spacing)
        return scan.others[spacing].array[0], scan.others[spacing].geometry

    def _windows(
        self, volume: NDArray[np.float32], queries: Tensor, modality: str, report: Callable[[int, int], None]
    ) -> WindowedScan:
        x, y, z = volume.shape
        return WindowedScan(
            network=self.network,
            volume=torch.from_numpy(volume),
            queries=queries,
            modality=MODALITIES.index(modality),
            patch=self.model.plan.window_for((x, y, z)),
            overlap=self.overlap,
            device=self.device,
            precision=self.precision,
            flips=self._flips(),
            batch=self.batch,
            memory_bytes=int(self.memory_gb * 2**30),
            on_progress=report,
        )

    def restore(self, found: Found, scan: PreparedScan) -> BoxedMask:
        """The mask of a probability, in the scan's own grid; needs no network, and may run beside one."""
        if found.values is None:
            return BoxedMask.empty(scan.image.grid.shape)
        mask = restore_box(found.values.numpy(), found.box, found.geometry)
        if self.postprocessing:
            x, y, z = (piece.start for piece in mask.box)
            return BoxedMask.of(self.postprocessing(mask.inside), (x, y, z), mask.shape)
        return mask

    def _queries(self, matches: Sequence[PromptMatch], embeddings: Mapping[str, NDArray[np.floating[Any]]]) -> Tensor:
        """(N, D) embeddings: the one given, else the class's own for a known prompt, the prompt's otherwise."""
        bank = self.model.bank
        texts = [m.class_name or " ".join(m.prompt.lower().split()) for m in matches]
        missing = [t for m, t in zip(matches, texts, strict=True) if m.prompt not in embeddings and t not in bank]
        missing = list(dict.fromkeys(missing))
        fresh = dict(zip(missing, self.encoder.encode(missing), strict=True)) if missing else {}
        rows = []
        for match, text in zip(matches, texts, strict=True):
            if match.prompt in embeddings:
                row = np.asarray(embeddings[match.prompt], dtype=np.float32)
                if row.shape != (bank.dim,) or not np.isfinite(row).all():
                    raise PromptError(
                        f"the embedding of {match.prompt!r} must be {bank.dim} finite numbers, got shape {row.shape}"
                    )
            else:
                row = fresh[text] if text in fresh else bank.matrix([text])[0]
            rows.append(row)
        return torch.from_numpy(np.stack(rows))

    def _flips(self) -> tuple[tuple[int, ...], ...]:
        if not self.mirror:
            return ((),)
        side = next(axis for axis, letter in enumerate(self.model.plan.orientation) if letter in "LR")
        axes = [axis for axis in range(3) if not (self.model.space.has_sides and axis == side)]
        return tuple(flip for count in range(len(axes) + 1) for flip in combinations(axes, count))


def guess_modality(image: Image, known: Sequence[str]) -> tuple[str, str]:
    """Modality of a scan, and how it was found out.

    The file's name decides if it names one; a model of one modality leaves no choice; else Hounsfield units tell CT
    from MRI.
    """
    from satunet.datasets.raw import modality_of_channel

    if image.path is not None:
        named = modality_of_channel(image.path.name)
        if named != "other" and named in known:
            return named, "file name"
    if len(known) == 1:
        return known[0], "the model knows no other"
    looks_ct = float(image.array.min()) <= -500 and "ct" in known
    guess = "ct" if looks_ct else "mri" if "mri" in known else known[0]
    return guess, "intensities"
