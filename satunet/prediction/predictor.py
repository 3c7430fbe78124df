"""Masks of prompts in one scan: prompts become queries, the engine finds their probabilities, and each goes back to
the file's grid inside its own box.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from satunet.datasets import MODALITIES
from satunet.devices import Precision, pick_device
from satunet.errors import PromptError, UserError
from satunet.imageio import Image, read_image
from satunet.labels import PromptMatch, match_prompt
from satunet.prediction.engine import WindowedScan
from satunet.prediction.masks import BoxedMask, restore_box
from satunet.prediction.model_folder import ModelFolder
from satunet.preprocessing.transform import preprocess_image
from satunet.text import TextEncoder, load_text_encoder

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
        masks: One a prompt, in the order of the prompts.
    """

    image: Image
    modality: str
    masks: tuple[PromptMask, ...]


class Predictor:
    """Predicts with one model.

    Args:
        model: The model, or its folder.
        device: ``auto``, ``cuda``, ``mps`` or ``cpu``.
        overlap: Share of a window that its neighbour covers too.
        precision: As in :mod:`satunet.devices`.
        memory_gb: Memory for the probabilities of prompts; with less, the image is looked at more often, and the masks are
            the same to the last voxel.
    """

    def __init__(
        self,
        model: ModelFolder | Path | str,
        *,
        device: str = "auto",
        overlap: float = 0.5,
        precision: Precision = "auto",
        memory_gb: float = 2.0,
    ) -> None:
        if not 0 <= overlap < 1:
            raise UserError(f"overlap must lie in [0, 1), got {overlap}")
        self.model = model if isinstance(model, ModelFolder) else ModelFolder.load(Path(model))
        self.device = pick_device(device)
        self.overlap = overlap
        self.precision = precision
        self.memory_gb = memory_gb
        self.network = self.model.network.to(self.device)

    @cached_property
    def encoder(self) -> TextEncoder:
        """The text encoder, for texts that are not in the model's bank."""
        return load_text_encoder(self.model.plan.text_encoder)

    def match(self, prompts: Sequence[str]) -> list[PromptMatch]:
        """What prompts mean to the model; the text encoder is asked only for those that name no class.

        Raises:
            PromptError: No prompt, or an empty one.
        """
        if not prompts or any(not p.strip() for p in prompts):
            raise PromptError(f"prompts must be texts that are not empty, got {list(prompts)}")
        known = [match_prompt(p, self.model.space) for p in prompts]
        return [
            m if m.status == "known" else match_prompt(m.prompt, self.model.space, encoder=self.encoder) for m in known
        ]

    def predict(
        self,
        image: Image | Path | str,
        prompts: Sequence[str],
        *,
        modality: str | None = None,
        on_progress: Callable[[int, int], bool | None] | None = None,
    ) -> Prediction:
        """Segment a scan.

        Args:
            image: The scan, or its file.
            prompts: What to look for, in any wording.
            modality: One of :data:`~satunet.datasets.MODALITIES`; guessed if not given.
            on_progress: Called with (windows done, windows); returning ``False`` cancels.

        Raises:
            PromptError: No usable prompt, or cancelled.
            ScanError: The file cannot be used.
        """
        loaded = image if isinstance(image, Image) else read_image(Path(image))
        matches = self.match(prompts)
        chosen = modality or guess_modality(loaded, self.model.modalities)[0]
        if chosen not in MODALITIES:
            raise UserError(f"modality {chosen!r}; allowed are {', '.join(MODALITIES)}")
        usable = [i for i, m in enumerate(matches) if m.status != "unknown"]
        masks: list[BoxedMask | None] = [None] * len(matches)
        if usable:
            queries = self._queries([matches[i] for i in usable])
            for i, mask in zip(usable, self._masks(loaded, queries, chosen, on_progress), strict=True):
                masks[i] = mask
        return Prediction(
            image=loaded,
            modality=chosen,
            masks=tuple(PromptMask(match=m, boxed=mask) for m, mask in zip(matches, masks, strict=True)),
        )

    def _queries(self, matches: Sequence[PromptMatch]) -> Tensor:
        """(N, D) embeddings: the class's own for a known prompt, the prompt's otherwise."""
        bank = self.model.bank
        texts = [m.class_name or " ".join(m.prompt.lower().split()) for m in matches]
        missing = [t for t in dict.fromkeys(texts) if t not in bank]
        fresh = dict(zip(missing, self.encoder.encode(missing), strict=True)) if missing else {}
        return torch.from_numpy(np.stack([fresh[t] if t in fresh else bank.matrix([t])[0] for t in texts]))

    def _masks(
        self, image: Image, queries: Tensor, modality: str, on_progress: Callable[[int, int], bool | None] | None
    ) -> list[BoxedMask]:
        plan = self.model.plan
        prepared = preprocess_image(image, modality=modality, plan=plan)

        def report(done: int, total: int) -> None:
            if on_progress is not None and on_progress(done, total) is False:
                raise PromptError("cancelled")

        windows = WindowedScan(
            network=self.network,
            volume=torch.from_numpy(prepared.array[0]),
            queries=queries,
            modality=MODALITIES.index(modality),
            patch=plan.patch_size,
            overlap=self.overlap,
            device=self.device,
            precision=self.precision,
            memory_bytes=int(self.memory_gb * 2**30),
            on_progress=report,
        )
        masks: list[BoxedMask] = []
        for found in windows.probabilities():
            if found.values is None:
                masks.append(BoxedMask.empty(image.grid.shape))
            else:
                masks.append(restore_box(found.values.numpy(), found.box, prepared.geometry))
        return masks


def guess_modality(image: Image, known: Sequence[str]) -> tuple[str, str]:
    """Modality of a scan, and how it was found out.

    The file's name decides if it names one; a model of one modality leaves no choice; else Hounsfield units tell CT
    from MRI.
    """
    from satunet.datasets import modality_of_channel

    if image.path is not None:
        named = modality_of_channel(image.path.name)
        if named != "other" and named in known:
            return named, "file name"
    if len(known) == 1:
        return known[0], "the model knows no other"
    looks_ct = float(image.array.min()) <= -500 and "ct" in known
    guess = "ct" if looks_ct else "mri" if "mri" in known else known[0]
    return guess, "intensities"
