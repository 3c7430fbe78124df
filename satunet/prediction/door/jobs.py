"""The door: what a user asked for becomes jobs, in which everything is decided.

What prompts mean and which modality a scan has is decided here, once. A folder's run, a cluster, a dry run and a server
take the same :class:`ScanJob`; where only the intensities can tell the modality, :meth:`ScanJob.settled` decides when the
scan is read, by the same rules.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from satunet.datasets.raw import MODALITIES
from satunet.errors import PromptError, UserError
from satunet.images.image import Image
from satunet.labels import LabelSpace
from satunet.labels.space import ClassInfo
from satunet.models.folder import ModelDescription
from satunet.prediction.door.inputs import Scan, as_prompts
from satunet.prediction.door.modality import modality_in_name, modality_of
from satunet.prediction.options import PredictOptions
from satunet.prompts.matching import PromptMatch
from satunet.prompts.reader import PromptReader
from satunet.text import TextEncoder

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Vocabulary:
    """What a model, or several that are used together, can be asked for.

    Attributes:
        space: Classes that any of them knows.
        load_encoder: Gives the text encoder, for words that nothing else explains.
        earned: Class and modality pairs that have scores, where every model has some; ``None``: nothing is known.
    """

    space: LabelSpace
    load_encoder: Callable[[], TextEncoder]
    earned: frozenset[tuple[str, str]] | None = None

    @classmethod
    def of(cls, models: Sequence[ModelDescription]) -> Vocabulary:
        """Of models that are used together, the first of which has the text encoder."""
        first = models[0]
        space = first.space
        if any(model.space.class_names != space.class_names for model in models[1:]):
            space = _united([model.space for model in models])
        scores = [model.card.scores if model.card is not None else () for model in models]
        earned = frozenset((s.class_name, s.modality) for own in scores for s in own) if all(scores) else None
        return cls(space=space, load_encoder=first.text_encoder, earned=earned)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities that a class is known in, in the order of :data:`satunet.datasets.raw.MODALITIES`."""
        known = {m for c in self.space.classes for m in c.modalities}
        return tuple(m for m in MODALITIES if m in known)

    @cached_property
    def encoder(self) -> TextEncoder:
        """The text encoder."""
        return self.load_encoder()

    def match(self, prompts: str | Iterable[str]) -> list[PromptMatch]:
        """What prompts mean; the text encoder is asked only for those that nothing else explains.

        Returns:
            In order, one match per prompt; a prompt that stands for several classes ("kidneys", "abdominal organs")
            gives one for each, with the prompt in ``expanded_from``.

        Raises:
            PromptError: No prompt, or an empty one.
        """
        return [match for prompt in as_prompts(prompts) for match in self._reader.read(prompt, lambda: self.encoder)]

    def every_class(self, modality: str) -> tuple[PromptMatch, ...]:
        """All classes that are known in a modality.

        Raises:
            PromptError: There is none.
        """
        names = [c.name for c in self.space.classes if modality in c.modalities]
        if not names:
            known = ", ".join(self.modalities)
            raise PromptError(f"the model knows no class for the modality {modality!r}; it knows {known}")
        return tuple(PromptMatch(prompt=n, class_name=n, status="known", similarity=1.0) for n in names)

    def offered(self, match: PromptMatch, modality: str) -> PromptMatch:
        """A match as it is for a scan of a modality: models with scores draw only what they have scores for.

        Returns:
            The match, or one that is ``"unknown"``, with a note that says why.
        """
        if self.earned is None or match.status not in ("known", "similar"):
            return match
        name = match.class_name
        if name is None:
            note = f"{match.prompt!r} is none of the model's classes"
        elif (name, modality) in self.earned:
            return match
        else:
            others = " and ".join(sorted(m for n, m in self.earned if n == name)) or "none"
            note = f"{name!r} has no score in {modality}, and is not drawn there; it has in {others}"
        return replace(match, status="unknown", note=note)

    def learned_elsewhere(self, match: PromptMatch, modality: str) -> str:
        """Sentence about a class that was never trained in a modality; empty if it was, or if there is no class."""
        if match.class_name is None or match.class_name not in self.space:
            return ""
        trained = self.space.info(match.class_name).modalities
        if not trained or modality in trained:
            return ""
        return (
            f"{match.class_name!r} was learned from {' and '.join(trained)} alone, this scan is taken as {modality}: "
            "its mask is a guess"
        )

    @cached_property
    def _reader(self) -> PromptReader:
        return PromptReader(self.space)


@dataclass(frozen=True, kw_only=True)
class ScanJob:
    """One scan, and what was decided about it.

    Attributes:
        scan: The scan.
        requested: What was asked for, in the user's words; ``None``: every class that is known in its modality.
        matches: What that means; ``None`` until the modality is known, where every class is asked for.
        modality: Its modality; ``None`` where only the intensities can tell.
        modality_from: How that was found out.
    """

    scan: Scan
    requested: tuple[str, ...] | None
    matches: tuple[PromptMatch, ...] | None
    modality: str | None = None
    modality_from: str = ""

    @property
    def name(self) -> str:
        """Name of the results."""
        return self.scan.name

    def settled(self, vocabulary: Vocabulary, image: Image) -> ScanJob:
        """The job with modality and matches, which may need the image.

        Raises:
            PromptError: Every class was asked for, and none is known in the modality.
        """
        modality, how = self.modality, self.modality_from
        if modality is None:
            modality, how = modality_of(image, vocabulary.modalities)
        matches = self.matches if self.matches is not None else vocabulary.every_class(modality)
        matches = tuple(vocabulary.offered(match, modality) for match in matches)
        notes = [vocabulary.learned_elsewhere(m, modality) if m.status != "unknown" else "" for m in matches]
        matches = tuple(
            replace(m, note=f"{m.note}; {note}" if m.note else note) if note and note not in m.note else m
            for m, note in zip(matches, notes, strict=True)
        )
        return replace(self, modality=modality, modality_from=how, matches=matches)


@dataclass(kw_only=True)
class _Meanings:
    """What prompts mean, each asked once."""

    vocabulary: Vocabulary
    known: dict[str, tuple[PromptMatch, ...]] = field(default_factory=dict)

    def of(self, prompts: Sequence[str]) -> tuple[PromptMatch, ...]:
        for prompt in prompts:
            if prompt not in self.known:
                self.known[prompt] = tuple(self.vocabulary.match(prompt))
        # Two prompts may stand for one class; its mask is written once.
        return tuple({m.prompt: m for p in prompts for m in self.known[p]}.values())


def resolve(
    scans: Sequence[Scan], prompts: str | Iterable[str] | None, vocabulary: Vocabulary, options: PredictOptions
) -> list[ScanJob]:
    """Decide what is looked for in which scan; says once which prompts name no class.

    Args:
        scans: As they were named.
        prompts: Of scans without prompts of their own; ``None``: every class that is known in the scan's modality.
        vocabulary: Of the model.
        options: The user's.

    Raises:
        PromptError: Prompts that cannot be used; with ``strict``, also prompts that name no class, and classes that
            were never trained in the modality of a scan.
        UserError: An unknown modality.
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
    """Say once what prompts mean that name no class, or several."""
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
            why = match.note or f"nothing the model knows; nearest: {near or 'none'}"
            logger.warning("prompt %r: %s; no mask is written", prompt, why)
        elif match.note:
            logger.info("prompt %s", match.note)


def _refuse_unknown(known: dict[str, tuple[PromptMatch, ...]], jobs: Sequence[ScanJob], vocabulary: Vocabulary) -> None:
    unknown = [m for found in known.values() for m in found if m.status != "known"]
    if unknown:
        near = "; ".join(
            m.note or f"{m.prompt!r} (nearest: {', '.join(n for n, _ in m.nearest) or 'none'})" for m in unknown
        )
        raise PromptError(f"--strict: these prompts name no class of the model: {near}")
    for job in jobs:
        for match in job.matches or ():
            note = vocabulary.learned_elsewhere(match, job.modality) if job.modality is not None else ""
            if note:
                raise PromptError(f"--strict: {job.scan.path}: {note}")


def _united(spaces: Sequence[LabelSpace]) -> LabelSpace:
    """Classes that any of several label spaces has, in the modalities of all."""
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
