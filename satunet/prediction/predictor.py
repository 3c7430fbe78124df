"""Masks of prompts in one scan.

The image is encoded once a window; prompts are decoded in chunks, which is exact because queries do not see each
other. Probabilities of a group of prompts are summed up over the windows in the scan's preprocessed grid; a group is
as large as the memory allowed, and each prompt goes back to the file's grid inside its own box.
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
from satunet.devices import autocast_for, pick_device
from satunet.errors import PromptError, UserError
from satunet.imageio import Image, read_image
from satunet.labels import PromptMatch, match_prompt
from satunet.network.model import ImageFeatures, mask_logits
from satunet.prediction.model_folder import ModelFolder
from satunet.prediction.window import gaussian_weights, window_starts
from satunet.preprocessing.transform import preprocess_image, restore_mask
from satunet.text import TextEncoder, load_text_encoder

logger = logging.getLogger(__name__)

_DECODE_CHUNK = 64
_MASK_CHUNK = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptMask:
    """What a prompt gave.

    Attributes:
        match: What the prompt means to the model.
        mask: (X, Y, Z) in the image's own grid; ``None`` for a prompt the model cannot know.
    """

    match: PromptMatch
    mask: NDArray[np.bool_] | None


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
        memory_gb: Memory for the probabilities of a group of prompts.
    """

    def __init__(
        self,
        model: ModelFolder | Path,
        *,
        device: str = "auto",
        overlap: float = 0.5,
        precision: str = "auto",
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
        masks: list[NDArray[np.bool_] | None] = [None] * len(matches)
        if usable:
            queries = self._queries([matches[i] for i in usable])
            for i, mask in zip(usable, self._masks(loaded, queries, chosen, on_progress), strict=True):
                masks[i] = mask
        return Prediction(
            image=loaded,
            modality=chosen,
            masks=tuple(PromptMask(match=m, mask=mask) for m, mask in zip(matches, masks, strict=True)),
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
    ) -> list[NDArray[np.bool_]]:
        plan = self.model.plan
        prepared = preprocess_image(image, modality=modality, plan=plan)
        volume = torch.from_numpy(prepared.array)
        shape = prepared.geometry.shape
        padded, before = _pad_to(volume, plan.patch_size)
        starts = window_starts(padded.shape[1:], plan.patch_size, self.overlap)
        voxels = int(np.prod(shape))
        group = max(1, int(self.memory_gb * 2**30 / (4 * voxels)))
        groups = [queries[i : i + group] for i in range(0, len(queries), group)]
        total = len(starts) * len(groups)
        index = torch.tensor([MODALITIES.index(modality)], device=self.device)
        inside = tuple(slice(b, b + n) for b, n in zip(before, shape, strict=True))
        masks: list[NDArray[np.bool_]] = []
        for number, part in enumerate(groups):
            sums = torch.zeros((len(part), *padded.shape[1:]), dtype=torch.float32)
            weight = torch.zeros(padded.shape[1:], dtype=torch.float32)
            for done, start in enumerate(starts, start=1):
                self._add_window(padded, start, part, index, sums, weight)
                if on_progress is not None and on_progress(number * len(starts) + done, total) is False:
                    raise PromptError("cancelled")
            for k in range(len(part)):
                probability = (sums[k][inside] / weight[inside]).numpy()
                masks.append(restore_mask(probability, prepared.geometry))
        return masks

    @torch.inference_mode()
    def _add_window(
        self, volume: Tensor, start: Sequence[int], queries: Tensor, modality: Tensor, sums: Tensor, weight: Tensor
    ) -> None:
        """Add a window's weighted probabilities to the sums."""
        patch = self.model.plan.patch_size
        window = tuple(slice(s, s + p) for s, p in zip(start, patch, strict=True))
        gauss = torch.from_numpy(gaussian_weights(patch)).to(self.device)
        crop = volume[(slice(None), *window)][None].to(self.device)
        with autocast_for(self.device, self.precision):  # type: ignore[arg-type]
            features = self.network.encode_image(crop)
            embeddings = torch.cat(list(self._embeddings(features, queries, modality)), dim=1).float()
        full = features.maps[0].float()
        for first in range(0, len(queries), _MASK_CHUNK):
            logits = mask_logits(full, embeddings[:, first : first + _MASK_CHUNK])[0]
            sums[(slice(first, first + _MASK_CHUNK), *window)] += (logits.sigmoid_() * gauss).cpu()
        weight[window] += gauss.cpu()

    def _embeddings(self, features: ImageFeatures, queries: Tensor, modality: Tensor) -> list[Tensor]:
        chunks = queries.to(self.device).split(_DECODE_CHUNK)
        return [self.network.decode(features, chunk[None], modality)[0] for chunk in chunks]


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


def _pad_to(volume: Tensor, patch: Sequence[int]) -> tuple[Tensor, tuple[int, int, int]]:
    """Pad (1, X, Y, Z) with zeros to at least the patch, evenly; what was put before each axis."""
    widths: list[int] = []
    before: list[int] = []
    for n, p in zip(volume.shape[1:], patch, strict=True):
        missing = max(0, p - n)
        before.append(missing // 2)
        widths = [missing // 2, missing - missing // 2, *widths]  # torch pads the last axis first
    x, y, z = before
    return torch.nn.functional.pad(volume, widths), (x, y, z)
