"""Masks of prompts in one scan: prompts become queries, the engine computes their probabilities, and each is brought
back to the file's grid inside its own box.

A predictor has one model or several. Models that see a scan the same way (folds of a training) share its preprocessing
and its windows, and the engine averages their probabilities; those of other models are averaged in the scan's own grid
(:mod:`satunet.prediction.masks.mean`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from satunet.compute.devices import pick_device
from satunet.compute.distributed import own_device
from satunet.confidence.evidence import Evidence, weigh
from satunet.datasets.raw import MODALITIES
from satunet.errors import PromptError, UserError
from satunet.geometry import extent_mm
from satunet.images.image import IN_MEMORY, Image, as_image
from satunet.knowledge.file import default_tree
from satunet.labels.containment import wholes_of
from satunet.models.folder import ModelFolder
from satunet.prediction.door.jobs import Vocabulary
from satunet.prediction.door.limits import require_room
from satunet.prediction.door.modality import modality_of
from satunet.prediction.ensemble import Embeddings, Ensemble, Group
from satunet.prediction.masks.boxed import BoxedMask
from satunet.prediction.masks.found import Found, Look, Prediction, PreparedScan, PromptMask, View, Weighed
from satunet.prediction.masks.judging import judge
from satunet.prediction.masks.mean import Values, larger
from satunet.prediction.masks.plausibility import Anatomy
from satunet.prediction.options import PredictOptions
from satunet.preprocessing.transform import preprocess_image
from satunet.prompts.matching import PromptMatch
from satunet.text import TextEncoder
from satunet.windows.engine import WindowedScan
from satunet.windows.starts import window_starts

OnProgress = Callable[[int, int], bool | None]

SHARED_LEVEL = 2e-3
"""Probability below which a model counts as zero in a mean with other models; a mean gets smaller by at most this."""


class Predictor:
    """Predicts with one model, or with several together.

    Args:
        model: Model or its folder, or several, whose probabilities are averaged. If models know different classes, the
            mean for a class is taken over those that know it.
        options: Options of the prediction.
        changes: Fields of :class:`~satunet.prediction.options.PredictOptions` that differ from ``options``.
    """

    def __init__(
        self,
        model: ModelFolder | Path | str | Sequence[ModelFolder | Path | str],
        options: PredictOptions | None = None,
        **changes: Any,
    ) -> None:
        self.options = replace(options or PredictOptions(), **changes)
        several = [model] if isinstance(model, (ModelFolder, Path, str)) else list(model)
        if not several:
            raise UserError("no model was given")
        models = [m if isinstance(m, ModelFolder) else ModelFolder.load(Path(m)) for m in several]
        self.device = pick_device(own_device(self.options.device))
        self.ensemble = Ensemble.of(models, self.device, self.options)

    @property
    def models(self) -> tuple[ModelFolder, ...]:
        """The models, in the order given."""
        return self.ensemble.models

    @property
    def model(self) -> ModelFolder:
        """The model, or the first of several."""
        return self.models[0]

    @property
    def network(self) -> Any:
        """The network of the first model, on the device."""
        return self.ensemble.groups[0].networks[0]

    @property
    def vocabulary(self) -> Vocabulary:
        """Classes that can be asked for."""
        return self.ensemble.vocabulary

    @property
    def encoder(self) -> TextEncoder:
        """The text encoder, for texts that are not in the model's bank."""
        return self.vocabulary.encoder

    def changed(self, **changes: Any) -> Predictor:
        """The same models with other options; device and precision stay the same.

        Args:
            changes: Fields of :class:`~satunet.prediction.options.PredictOptions`.
        """
        other = copy.copy(self)
        other.options = replace(self.options, **changes)
        return other

    def match(self, prompts: str | Iterable[str]) -> list[PromptMatch]:
        """The meaning of prompts to the model; see :meth:`satunet.prediction.door.jobs.Vocabulary.match`."""
        return self.vocabulary.match(prompts)

    def predict(
        self,
        image: Any,
        prompts: str | Iterable[str] | Embeddings,
        *,
        modality: str | None = None,
        on_progress: OnProgress | None = None,
    ) -> Prediction:
        """Segment a scan.

        Args:
            image: Path; satunet, nibabel or SimpleITK image; or (array, affine), see
                :func:`satunet.images.image.as_image`.
            prompts: What to segment, in any wording: one text or several; or name → embedding (D,) from the model's
                text encoder.
            modality: One of :data:`~satunet.datasets.raw.MODALITIES`; if not given, that of the options, or guessed.
            on_progress: Called with (windows done, windows); returning ``False`` cancels.

        Raises:
            PromptError: There is no usable prompt, an embedding has the wrong width, or the prediction was cancelled.
            ScanError: The file cannot be used.
        """
        embeddings = prompts if isinstance(prompts, Mapping) else None
        if isinstance(prompts, Mapping):
            matches = [PromptMatch(prompt=name, class_name=None, status="embedding") for name in prompts]
        else:
            matches = self.match(prompts)
        loaded = as_image(image)
        modality = modality or self.options.modality or modality_of(loaded, self.vocabulary.modalities)[0]
        matches = [self.vocabulary.offered(match, modality) for match in matches]
        scan = self.prepare(loaded, modality, matches)
        nothing = Weighed(mask=BoxedMask.empty(scan.image.grid.shape), evidence=Evidence(peak=0.0))
        masks: list[Weighed | None] = [None if match.status == "unknown" else nothing for match in matches]
        for i, found in self.find(scan, matches, embeddings=embeddings, on_progress=on_progress):
            masks[i] = self.weigh(found, scan)
        return Prediction(image=scan.image, modality=scan.modality, masks=self.judge(matches, masks, scan))

    def judge(
        self, matches: Sequence[PromptMatch], masks: Sequence[Weighed | None], scan: PreparedScan
    ) -> tuple[PromptMask, ...]:
        """Estimate the confidence of all masks of a scan and note contradictions; options may leave some out."""
        calibrations = [m.calibration for m in self.models if m.calibration is not None]
        return judge(matches, masks, calibrations, self.options, scan.image.grid, self.anatomy)

    @cached_property
    def anatomy(self) -> Anatomy:
        """Anatomical knowledge that masks are compared with."""
        known = [m.calibration.statistics for m in self.models if m.calibration is not None]
        statistics = known[0] if known else None
        return Anatomy(wholes=wholes_of(self.vocabulary.space), statistics=statistics, tree=default_tree())

    def with_networks(self, wrap: Callable[[Any], Any]) -> Predictor:
        """The same models with wrapped networks, for example wrapped to remember encoded features.

        Args:
            wrap: Function that takes a network on the device and returns its replacement.
        """
        other = copy.copy(self)
        other.ensemble = self.ensemble.with_networks(wrap)
        return other

    def prepare(
        self, image: Image, modality: str, matches: Sequence[PromptMatch], *, before: PreparedScan | None = None
    ) -> PreparedScan:
        """Preprocess a scan for its prompts; this needs no network, and may run while one is busy.

        Args:
            image: Image of the scan.
            modality: Modality, one of :data:`~satunet.datasets.raw.MODALITIES`.
            matches: Matches that will be predicted.
            before: Same scan from an earlier call; what was preprocessed for its modality is used again.

        Raises:
            UserError: The modality is unknown.
            ScanTooLargeError: At the spacings of what is asked for, the scan would need more memory than is free.
        """
        if modality not in MODALITIES:
            raise UserError(f"modality {modality!r}; allowed are {', '.join(MODALITIES)}")
        if before is not None and before.modality == modality:
            scan = before
        else:
            scan = PreparedScan(image=image, modality=modality)
        looks = self.ensemble.looks(scan, matches)
        there = {key[:2] for key in scan.views}
        new = {key[:2]: key[1] for key in looks if key[:2] not in there}
        require_room(image.path or IN_MEMORY, image.grid, list(new.values()))
        for key in looks:
            self._view(scan, key)
        return scan

    def windows(self, scan: PreparedScan, matches: Sequence[PromptMatch]) -> int:
        """Number of windows that the networks will predict."""
        return sum(
            self._count(self._view(scan, key)) * len(self.ensemble.groups[key[0]].models)
            for key in self.ensemble.looks(scan, matches)
        )

    def is_held(self, scan: PreparedScan, match: PromptMatch) -> bool:
        """Whether one window holds the scan, wherever a prompt is looked for in it."""
        return all(self._count(self._view(scan, key)) == 1 for key in self.ensemble.looks(scan, [match]))

    def find(
        self,
        scan: PreparedScan,
        matches: Sequence[PromptMatch],
        *,
        embeddings: Embeddings | None = None,
        on_progress: OnProgress | None = None,
        level: float = 0.5,
    ) -> Iterator[tuple[int, Found]]:
        """Predict prompts in a scan.

        Args:
            scan: The scan, prepared for the prompts.
            matches: What to look for.
            embeddings: Prompt → embedding, for prompts that are given as such.
            on_progress: Called with (windows done, windows); returning ``False`` cancels.
            level: Least probability that is of interest.

        Yields:
            Position in ``matches``, and the probability wherever it may exceed ``level``, as soon as it is known;
            prompts that the model cannot know are left out.

        Raises:
            PromptError: An embedding has the wrong width, or the prediction was cancelled.
        """
        asked, owner = list(matches), list(range(len(matches)))
        for i, match in enumerate(matches):
            if sides := self._sides_of(match, scan):
                asked[i] = sides[0]
                asked.append(sides[1])
                owner.append(i)
        halves: dict[int, Found] = {}
        for j, found in self._find(scan, asked, embeddings=embeddings, on_progress=on_progress, level=level):
            i = owner[j]
            if owner.count(i) == 1:
                yield i, found
            elif i in halves:
                half = halves.pop(i)
                both = larger(half.largest_piece(), found.largest_piece())
                yield i, Found(in_file=both, peak=max(half.peak, found.peak),
                               agreement=(half.agreement + found.agreement) / 2)  # fmt: skip
            else:
                halves[i] = found

    def _sides_of(self, match: PromptMatch, scan: PreparedScan) -> tuple[PromptMatch, PromptMatch] | None:
        """Left and right of a class, to be asked for in its place; ``None`` if the class itself is asked for.

        Some classes were learned without sides at a fine spacing, and with sides at a coarse one: the hippocampus in
        crops at 1 mm, where no sides were labelled, and in whole heads, where they were. Where a scan is looked at
        coarsely, the sides are what the network knows.
        """
        name, plan = match.class_name, self.model.plan
        if name is None or match.status != "known" or len(self.models) > 1:
            return None
        spacings = plan.class_spacings_mm.get(scan.modality, {})
        chosen = plan.spacing_for(name, scan.modality, extent_mm(scan.image.grid, plan.orientation))[0]
        if chosen <= spacings.get(name, (chosen,))[0]:
            return None
        left, right = f"left {name}", f"right {name}"
        if any(side not in self.model.space or spacings.get(side) != (chosen,) for side in (left, right)):
            return None
        return replace(match, class_name=left), replace(match, class_name=right)

    def _find(
        self,
        scan: PreparedScan,
        matches: Sequence[PromptMatch],
        *,
        embeddings: Embeddings | None = None,
        on_progress: OnProgress | None = None,
        level: float = 0.5,
    ) -> Iterator[tuple[int, Found]]:
        looks = self.ensemble.looks(scan, matches)
        progress = _Progress(on_progress, sum(self._count(self._view(scan, key)) for key in looks))
        shares = [sum(i in positions for positions in looks.values()) for i in range(len(matches))]
        voters = {
            i: sum(len(self.ensemble.voters(group, matches[i], scan.modality)) for group in self.ensemble.groups)
            for i, count in enumerate(shares)
            if count > 1
        }
        votes: dict[int, tuple[float, float]] = {}  # largest peak, mean agreement so far
        with Values(memory_bytes=self._memory_bytes) as sums:
            for key, positions in looks.items():
                view, group = self._view(scan, key), self.ensemble.groups[key[0]]
                windows = self._windows(group, view, [matches[i] for i in positions], scan.modality, embeddings or {})
                windows.on_progress = progress.next_look(self._count(view))
                windows.level = min(level, SHARED_LEVEL) if any(i in voters for i in positions) else level
                for number, probability in windows.probabilities():
                    i = positions[number]
                    whole = self._is_one_piece(matches[i])
                    found = Found(
                        probability=probability, geometry=view.geometry, one_piece=whole,
                        peak=probability.peak, agreement=probability.agreement,
                    )  # fmt: skip
                    if i not in voters:
                        yield i, found
                        continue
                    share = len(self.ensemble.voters(group, matches[i], scan.modality)) / voters[i]
                    sums.add(i, found.restored(), share)
                    peak, agreement = votes.get(i, (0.0, 0.0))
                    votes[i] = (max(peak, found.peak), agreement + share * found.agreement)
                    shares[i] -= 1
                    if shares[i] == 0:
                        peak, agreement = votes[i]
                        yield i, Found(in_file=sums.take(i), one_piece=whole, peak=peak, agreement=agreement)

    def restore(self, found: Found, scan: PreparedScan) -> BoxedMask:
        """The mask of a probability in the scan's own grid; this needs no network, and may run while one is busy."""
        return self.weigh(found, scan).mask

    def weigh(self, found: Found, scan: PreparedScan) -> Weighed:
        """The mask of a probability, as in :meth:`restore`, with the evidence for it."""
        restored, grid = found.restored(), scan.image.grid
        if restored is None:
            return Weighed(mask=BoxedMask.empty(grid.shape), evidence=Evidence(peak=found.peak))
        values, start = restored
        evidence = weigh(values, start, grid.shape, grid.affine, peak=found.peak, agreement=found.agreement)
        return Weighed(mask=self._mask(values, start, found, scan), evidence=evidence)

    def _mask(
        self, values: NDArray[np.float32], start: tuple[int, int, int], found: Found, scan: PreparedScan
    ) -> BoxedMask:
        mask = BoxedMask.of(values > 0.5, start, scan.image.grid.shape)
        postprocessing = self.options.postprocessing
        if found.one_piece:
            postprocessing = replace(postprocessing, largest_component=True)
        if postprocessing:
            return BoxedMask.of(postprocessing(mask.inside), start, mask.shape)
        return mask

    def _is_one_piece(self, match: PromptMatch) -> bool:
        name = match.class_name
        return name is not None and all(name in m.plan.one_piece for m in self.models if name in m.space)

    @property
    def _memory_bytes(self) -> int:
        return int(self.options.memory_gb * 2**30)

    def _view(self, scan: PreparedScan, key: Look) -> View:
        if key not in scan.views:
            number, spacing, window = key
            same = next((view for other, view in scan.views.items() if other[:2] == key[:2]), None)
            plan = replace(self.ensemble.groups[number].plan, spacing_mm=spacing, patch_size=window)
            if same is None:
                done = preprocess_image(scan.image, modality=scan.modality, plan=plan)
                same = View(volume=done.array[0], geometry=done.geometry, patch=window)
            x, y, z = same.volume.shape
            scan.views[key] = replace(same, patch=plan.window_for((x, y, z)))
        return scan.views[key]

    def _count(self, view: View) -> int:
        shape = [max(n, p) for n, p in zip(view.volume.shape, view.patch, strict=True)]
        return len(window_starts(shape, view.patch, self.options.window_overlap))

    def _windows(
        self, group: Group, view: View, matches: Sequence[PromptMatch], modality: str, embeddings: Embeddings
    ) -> WindowedScan:
        held, options = self._count(view) == 1, self.options
        # Where one window holds the scan, a second look is cheap.
        mirrored = options.mirror or (held and not options.fast)
        first, *others = self.ensemble.members(group, matches, modality, embeddings, held=held, mirrored=mirrored)
        return WindowedScan(
            network=first.network,
            queries=first.queries,
            asked=first.asked,
            offsets=first.offsets,
            others=others,
            volume=torch.from_numpy(view.volume),
            modality=MODALITIES.index(modality),
            patch=view.patch,
            overlap=options.window_overlap,
            device=self.device,
            precision=options.precision,
            flips=self.ensemble.flips(group) if options.mirror else ((),),
            batch=options.batch,
            memory_bytes=self._memory_bytes,
        )


class _Progress:
    """Windows of all looks at a scan, counted together."""

    def __init__(self, on_progress: OnProgress | None, total: int) -> None:
        self._report = on_progress
        self._total = total
        self._before = 0

    def next_look(self, windows: int) -> Callable[[int, int], None]:
        """Progress function for the look that begins now."""
        before = self._before
        self._before += windows

        def advance(done: int, of: int) -> None:
            if self._report is not None and self._report(before + done, self._total + of - windows) is False:
                raise PromptError("cancelled")

        return advance
