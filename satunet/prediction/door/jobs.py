"""A user's call becomes jobs in which everything is decided.

The meaning of the prompts and the modality of each scan are decided here, once. Folder runs, clusters, dry runs and
servers all take the same :class:`ScanJob`. If only the intensities can tell the modality, :meth:`ScanJob.settled`
decides it by the same rules as soon as the scan is read.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from satunet.datasets.raw import MODALITIES
from satunet.errors import PromptError, UserError
from satunet.geometry import Grid
from satunet.images.image import Image
from satunet.labels import LabelSpace
from satunet.labels.space import ClassInfo
from satunet.models.folder import ModelDescription
from satunet.prediction.door.inputs import Scan, as_prompts
from satunet.prediction.door.modality import modality_in_name, modality_of
from satunet.prediction.door.worthwhile import Known, worth_looking_for
from satunet.prediction.options import PredictOptions
from satunet.prompts.matching import PromptMatch
from satunet.prompts.reader import PromptReader
from satunet.text import TextEncoder

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Vocabulary:
    """Classes that a model, or several models together, can segment.

    Attributes:
        space: Classes that at least one of the models knows.
        load_encoder: Function that loads the text encoder, for prompts that nothing else explains.
        earned: Pairs of class and modality that have a score, if every model has scores; otherwise ``None``.
        models: Classes and plan of each model.
    """

    space: LabelSpace
    load_encoder: Callable[[], TextEncoder]
    earned: frozenset[tuple[str, str]] | None = None
    models: tuple[Known, ...] = ()

    @classmethod
    def of(cls, models: Sequence[ModelDescription]) -> Vocabulary:
        """The vocabulary of models that are used together, with the text encoder of the first model."""
        first = models[0]
        space = first.space
        if any(model.space.class_names != space.class_names for model in models[1:]):
            space = _united([model.space for model in models])
        scores = [model.card.scores if model.card is not None else () for model in models]
        earned = frozenset((s.class_name, s.modality) for own in scores for s in own) if all(scores) else None
        known = tuple(Known(space=model.space, plan=model.plan) for model in models)
        return cls(space=space, load_encoder=first.text_encoder, earned=earned, models=known)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities in which at least one class is known, in the order of :data:`satunet.datasets.raw.MODALITIES`."""
        known = {m for c in self.space.classes for m in c.modalities}
        return tuple(m for m in MODALITIES if m in known)

    @cached_property
    def encoder(self) -> TextEncoder:
        """The text encoder."""
        return self.load_encoder()

    def match(self, prompts: str | Iterable[str]) -> list[PromptMatch]:
        """The meaning of prompts; the text encoder is used only for prompts that nothing else explains.

        Returns:
            One match per prompt, in order; a prompt that stands for several classes ("kidneys", "abdominal organs")
            gives one match per class, with the prompt in ``expanded_from``.

        Raises:
            PromptError: There is no prompt, or an empty one.
        """
        return [match for prompt in as_prompts(prompts) for match in self._reader.read(prompt, lambda: self.encoder)]

    def every_class(self, modality: str) -> tuple[PromptMatch, ...]:
        """All classes that are known in a modality.

        Raises:
            PromptError: No class is known in this modality.
        """
        names = [c.name for c in self.space.classes if modality in c.modalities]
        if not names:
            known = ", ".join(self.modalities)
            raise PromptError(f"the model knows no classes in modality {modality!r}; it knows classes in {known}")
        return tuple(PromptMatch(prompt=n, class_name=n, status="known", similarity=1.0) for n in names)

    def worth_looking_for(
        self, matches: Sequence[PromptMatch], modality: str, grid: Grid
    ) -> tuple[tuple[PromptMatch, ...], tuple[str, ...]]:
        """The classes to look for in a scan when every class is requested, and the names of those left out.

        See :mod:`satunet.prediction.door.worthwhile`.
        """
        names = [m.class_name for m in matches if m.class_name is not None and m.status != "unknown"]
        kept = worth_looking_for(names, modality, grid, self.models)
        left_out = tuple(name for name in names if name not in kept)
        return tuple(m for m in matches if m.class_name not in left_out), left_out

    def offered(self, match: PromptMatch, modality: str) -> PromptMatch:
        """The match for a scan of a given modality: a model with scores segments only classes that have a score.

        Returns:
            The match, or one with the status ``"unknown"`` and a note that says why.
        """
        if self.earned is None or match.status not in ("known", "similar"):
            return match
        name = match.class_name
        if name is None:
            note = f"{match.prompt!r} is not one of the model's classes"
        elif (name, modality) in self.earned:
            return match
        else:
            others = sorted(m for n, m in self.earned if n == name)
            note = f"{name!r} has no score in {modality} and is therefore not segmented; it has scores in "
            # The modality may have been guessed from the intensities, and wrongly.
            note += f"{' and '.join(others)} (if this is such a scan: --modality {others[0]})" if others else "none"
        return replace(match, status="unknown", note=note)

    def learned_elsewhere(self, match: PromptMatch, modality: str) -> str:
        """A note if a class was never trained in a modality; empty if it was, or if the match names no class."""
        if match.class_name is None or match.class_name not in self.space:
            return ""
        trained = self.space.info(match.class_name).modalities
        if not trained or modality in trained:
            return ""
        return (
            f"{match.class_name!r} was learned from {' and '.join(trained)} only, but this scan is taken as {modality}: "
            "its mask is a guess"
        )

    @cached_property
    def _reader(self) -> PromptReader:
        return PromptReader(self.space)


@dataclass(frozen=True, kw_only=True)
class ScanJob:
    """One scan, and all decisions about it.

    Attributes:
        scan: The scan.
        requested: Prompts in the user's words; ``None`` if every class known in the scan's modality is requested.
        matches: Meaning of the prompts; ``None`` if every class is requested and the modality is not yet known.
        modality: Modality; ``None`` if only the intensities can tell.
        modality_from: Source of the modality.
        not_looked_for: Classes left out because this scan is too large for them, if every class is requested; see
            :mod:`satunet.prediction.door.worthwhile`.
    """

    scan: Scan
    requested: tuple[str, ...] | None
    matches: tuple[PromptMatch, ...] | None
    modality: str | None = None
    modality_from: str = ""
    not_looked_for: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the results."""
        return self.scan.name

    def settled(self, vocabulary: Vocabulary, image: Image) -> ScanJob:
        """The job with modality and matches decided, which may need the image.

        Raises:
            PromptError: Every class is requested, and none is known in the modality.
        """
        modality, how = self.modality, self.modality_from
        if modality is None:
            modality, how = modality_of(image, vocabulary.modalities)
        matches = self.matches if self.matches is not None else vocabulary.every_class(modality)
        matches = tuple(vocabulary.offered(match, modality) for match in matches)
        left_out = self.not_looked_for
        if self.matches is None:
            matches, left_out = vocabulary.worth_looking_for(matches, modality, image.grid)
        notes = [vocabulary.learned_elsewhere(m, modality) if m.status != "unknown" else "" for m in matches]
        matches = tuple(
            replace(m, note=f"{m.note}; {note}" if m.note else note) if note and note not in m.note else m
            for m, note in zip(matches, notes, strict=True)
        )
        return replace(self, modality=modality, modality_from=how, matches=matches, not_looked_for=left_out)


@dataclass(kw_only=True)
class _Meanings:
    """Meanings of prompts, each looked up once."""

    vocabulary: Vocabulary
    known: dict[str, tuple[PromptMatch, ...]] = field(default_factory=dict)

    def of(self, prompts: Sequence[str]) -> tuple[PromptMatch, ...]:
        for prompt in prompts:
            if prompt not in self.known:
                self.known[prompt] = tuple(self.vocabulary.match(prompt))
        # Two prompts may stand for the same class, whose mask is written once.
        return tuple({m.prompt: m for p in prompts for m in self.known[p]}.values())


def resolve(
    scans: Sequence[Scan], prompts: str | Iterable[str] | None, vocabulary: Vocabulary, options: PredictOptions
) -> list[ScanJob]:
    """Decide what to segment in each scan; prompts that name no class are logged once.

    Args:
        scans: Scans of the call.
        prompts: Prompts for scans without their own; ``None`` for every class known in the scan's modality.
        vocabulary: Vocabulary of the models.
        options: Options of the user.

    Raises:
        PromptError: A prompt cannot be used; with ``strict``, also if a prompt names no class or a class was never
            trained in the modality of a scan.
        UserError: A modality is unknown.
    """
    common = None if prompts is None else tuple(dict.fromkeys(as_prompts(prompts)))
    meanings = _Meanings(vocabulary=vocabulary)
    jobs = []
    for scan in scans:
        requested = scan.prompts or common
        modality, how = _modality(scan, vocabulary, options)
        matches = None if requested is None else meanings.of(requested)
        jobs.append(ScanJob(scan=scan, requested=requested, matches=matches, modality=modality, modality_from=how))
    report_prompts(meanings.known)
    if options.strict:
        _refuse_unknown(meanings.known, jobs, vocabulary)
    return jobs


def _modality(scan: Scan, vocabulary: Vocabulary, options: PredictOptions) -> tuple[str | None, str]:
    known = vocabulary.modalities
    own = scan.modality if scan.modality != "other" else None
    named = modality_in_name(scan.path) if scan.series is None else None
    for modality, how in (
        (options.modality, "given"),
        (own, "DICOM header" if scan.series is not None else "list of scans"),
        (named if named in known else None, "file name"),
        (known[0] if len(known) == 1 else None, "the model knows no other"),
    ):
        if modality is not None:
            if modality not in MODALITIES:
                raise UserError(f"{scan.path}: modality {modality!r}; allowed are {', '.join(MODALITIES)}")
            return modality, how
    return None, ""


def report_prompts(known: dict[str, tuple[PromptMatch, ...]]) -> None:
    """Log the meaning of each prompt that names no class or several, once."""
    for prompt, found in known.items():
        match = found[0]
        if match.expanded_from is not None:
            logger.info("prompt %r stands for %s", prompt, ", ".join(m.prompt for m in found))
            continue
        near = ", ".join(f"{name} ({value:.2f})" for name, value in match.nearest)
        if match.status == "similar":
            how = f"segmented as {match.class_name!r}" if match.class_name else "segmented by its wording"
            logger.warning("prompt %r names no class of the model; %s; nearest: %s", prompt, how, near)
        elif match.status == "unknown":
            why = (match.note or "not known to the model") + (f"; nearest: {near}" if near else "")
            logger.warning("prompt %r: %s; no mask is written", prompt, why)
        elif match.note:
            logger.info("prompt %s", match.note)


def _refuse_unknown(known: dict[str, tuple[PromptMatch, ...]], jobs: Sequence[ScanJob], vocabulary: Vocabulary) -> None:
    unknown = [m for found in known.values() for m in found if m.status != "known"]
    if unknown:
        near = "; ".join(
            m.note or f"{m.prompt!r} (nearest: {', '.join(n for n, _ in m.nearest) or 'none'})" for m in unknown
        )
        raise PromptError(f"--strict: these prompts do not name a class of the model: {near}")
    for job in jobs:
        for match in job.matches or ():
            note = vocabulary.learned_elsewhere(match, job.modality) if job.modality is not None else ""
            if note:
                raise PromptError(f"--strict: {job.scan.path}: {note}")


def _united(spaces: Sequence[LabelSpace]) -> LabelSpace:
    """Union of several label spaces: all their classes, each in every modality in which one of the spaces knows it."""
    found: dict[str, ClassInfo] = {}
    for space in spaces:
        for info in space.classes:
            before = found.get(info.name)
            if before is not None:
                modalities = tuple(m for m in MODALITIES if m in {*before.modalities, *info.modalities})
                info = replace(before, modalities=modalities)
            found[info.name] = info
    ids = {dataset: classes for space in spaces for dataset, classes in space.ids.items()}
    return LabelSpace(classes=tuple(found[name] for name in sorted(found)), ids=ids)
