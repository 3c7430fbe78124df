"""Several sources in one training: each with its own spacing, patch, share of the steps and kind of image.

A step takes crops of one group, so that all have one shape, and the patch fits the group's scans. Which group, person,
crop, classes, wording and look is a function of the seed and the step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from satunet.datasets.raw import MODALITIES
from satunet.labels import LabelSpace, text_variants
from satunet.labels.names import normalize_name
from satunet.text import TextBank
from satunet.trainers.synthetic import painting, trunks
from satunet.trainers.synthetic.crops import Deformation, crop_places, sample
from satunet.trainers.synthetic.subjects import Subject
from satunet.trainers.unified.batches.batch import Batch, Sample
from satunet.trainers.unified.batches.sampling import Query, sample_rng
from satunet.trainers.unified.loss import IGNORED
from satunet.types import Axes


@dataclass(frozen=True, kw_only=True)
class Group:
    """Sources that are trained at one spacing with one patch.

    Attributes:
        name: Name for logs.
        share: Share of the steps, at the beginning and at the end; in between it changes evenly.
        kind: ``"real"`` images, or painted ``"brain"`` or ``"trunk"``.
        subjects: The people.
        patch: Voxels of a crop.
        spacing_mm: Least and largest spacing of a crop.
        batch: Crops a step.
        deformation: Deformation of the crops.
        foreign: Classes that none of the scans can show, asked for now and then.
        foreground_share: Share of crops that are centred on a class.
        cut_share: Share of painted crops in which the scan ends within the crop; see :func:`_cropped`.
        fineness: Painted voxels along each side of a crop's voxel, which is their mean: a boundary within a voxel gives
            it a value in between, as it does in a scanner.
        names: Tissue id → name, of painted images.
        label_of: (tissues,) int64, tissue id → label id, of painted images.
        predicted: Whether prediction looks for the group's classes at its spacing.
    """

    name: str
    share: tuple[float, float]
    kind: Literal["real", "brain", "trunk"] = "real"
    subjects: Sequence[Subject]
    patch: Axes
    spacing_mm: tuple[float, float]
    batch: int = 2
    deformation: Deformation = field(default_factory=Deformation)
    foreign: Sequence[str] = ()
    foreground_share: float = 0.6
    cut_share: float = 0.35
    fineness: int = 1
    names: Mapping[int, str] = field(default_factory=dict)
    label_of: Tensor | None = None
    predicted: bool = True

    @property
    def typical_mm(self) -> float:
        """Spacing in the middle of its range, to a tenth: what prediction takes."""
        low, high = self.spacing_mm
        return round(math.sqrt(low * high), 1)


def class_patches(groups: Sequence[Group], space: LabelSpace) -> dict[str, dict[str, dict[float, Axes]]]:
    """Modality → class → spacings at which the groups train it, finest first → patch; of two, the larger."""
    found: dict[str, dict[str, dict[float, Axes]]] = {}
    for group in groups:
        if not group.predicted:
            continue
        painted = {"brain": ("mri",), "trunk": ("ct", "mri")}.get(group.kind, ())
        for person in group.subjects:
            for modality in painted or (person.modality,):
                for name in space.classes_of(person.dataset):
                    patches = found.setdefault(modality, {}).setdefault(name, {})
                    patches[group.typical_mm] = max(
                        patches.get(group.typical_mm, (0, 0, 0)), group.patch, key=math.prod
                    )
    return {m: {name: dict(sorted(values.items())) for name, values in c.items()} for m, c in found.items()}


def mirrored_classes(groups: Sequence[Group], space: LabelSpace) -> dict[str, tuple[str, ...]]:
    """Modality → classes that every group which trains them mirrors."""
    found: dict[str, dict[str, bool]] = {}
    for group in groups:
        painted = {"brain": ("mri",), "trunk": ("ct", "mri")}.get(group.kind, ())
        for dataset, own in {(p.dataset, p.modality) for p in group.subjects}:
            for modality in painted or (own,):
                classes = found.setdefault(modality, {})
                for name in space.classes_of(dataset):
                    classes[name] = classes.get(name, True) and group.deformation.mirror
    return {m: tuple(sorted(name for name, every in c.items() if every)) for m, c in found.items()}


def one_piece(groups: Sequence[Group], space: LabelSpace, *, people: int = 5, least: float = 0.97) -> tuple[str, ...]:
    """Classes that are one connected piece in the labels of every group that has them.

    Args:
        groups: The sources.
        space: Label space of the classes.
        people: Label maps of a dataset that are looked at, at most.
        least: Share of a class's voxels that the largest piece must have.
    """
    import cc3d

    seen: dict[str, list[Subject]] = {}
    for group in groups:
        for person in group.subjects:
            several = seen.setdefault(person.dataset, [])
            if len(several) < people and all(person.case != other.case for other in several):
                several.append(person)
    found: dict[str, bool] = {}
    for dataset, several in seen.items():
        for person in several:
            labels = person.labels.numpy()
            for name in space.classes_of(dataset):
                ids = [i for i in space.ids_of(dataset, name) if i in person.locations]
                if not ids or not found.get(name, True):
                    continue
                places = np.concatenate([person.locations[i] for i in ids])
                box = tuple(slice(max(0, a - 8), b + 9) for a, b in zip(places.min(0), places.max(0), strict=True))
                mask = np.isin(labels[box], ids)
                pieces = cc3d.connected_components(mask, connectivity=26)
                found[name] = bool(np.bincount(pieces[mask]).max() >= least * mask.sum())
    # Both sides of a structure may touch in some people and not in others, and a tumour may have satellites.
    return tuple(
        name
        for name, whole in sorted(found.items())
        if whole and not space.info(name).lesion and not _has_sides(name, space)
    )


def _has_sides(name: str, space: LabelSpace) -> bool:
    return space.info(name).side is None and normalize_name(f"left {name}").canonical in space


class MixtureBatches:
    """Step → batch.

    Args:
        groups: The sources.
        space: Label space of all their datasets.
        bank: Embeddings of every wording.
        steps: Steps of the training, over which the shares change.
        seed: Seed of all random draws.
        queries: Queries a crop that are shown, at most.
        negatives: Queries a crop that are not shown, at most.
        device: Device on which crops are cut and painted.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        space: LabelSpace,
        bank: TextBank,
        *,
        steps: int,
        seed: int = 0,
        queries: int = 32,
        negatives: int = 6,
        device: torch.device | str = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self.groups, self.space, self.bank, self.seed = [_moved(g, self.device) for g in groups], space, bank, seed
        self.queries, self.negatives = queries, negatives
        self.steps = steps
        self.variants = {c.name: [v for v in text_variants(c) if v in bank] for c in space.classes}
        self.swaps = {
            d: swapped_ids({n: i for n, i in space.ids[d].items() if space.info(n).source_names}).to(self.device)
            for d in space.ids
        }

    def group_of(self, step: int) -> Group:
        """Group of a step."""
        rng = np.random.default_rng([self.seed, 7, step])
        done = step / max(1, self.steps)
        shares = np.array([(1 - done) * g.share[0] + done * g.share[1] for g in self.groups])
        return self.groups[int(rng.choice(len(self.groups), p=shares / shares.sum()))]

    def __getitem__(self, step: int) -> Batch:
        group = self.group_of(step)
        return Batch.of([self.sample(group, step, index) for index in range(group.batch)])

    def sample(self, group: Group, step: int, index: int) -> Sample:
        """One crop of a step and what is asked of it."""
        rng = sample_rng(self.seed, step, index)
        generator = torch.Generator(self.device).manual_seed(int(rng.integers(2**31)))
        datasets = sorted({s.dataset for s in group.subjects})
        dataset = datasets[int(rng.integers(len(datasets)))]
        people = [s for s in group.subjects if s.dataset == dataset]
        person = people[int(rng.integers(len(people)))]
        image, labels, modality = self.crop(group, person, rng, generator)
        queries = self._queries(group, person.dataset, frozenset(torch.unique(labels).tolist()) - {0, IGNORED}, rng)
        return Sample(
            image=image[None],
            labels=labels.int(),
            embeddings=self.bank.matrix([self._wording(q.name, rng) for q in queries]),
            queries=queries,
            modality=MODALITIES.index(modality),
            scan=f"{person.dataset}__{person.case}",
        )

    def crop(
        self, group: Group, person: Subject, rng: np.random.Generator, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, str]:
        """Image (X, Y, Z) float32, labels (X, Y, Z) int64 and modality of a crop of a person."""
        spacing = float(np.exp(rng.uniform(*np.log(group.spacing_mm))))
        spacings = tuple(spacing * np.exp(rng.normal(0, 0.04, 3)))
        centre = self._centre(group, person, spacings, rng)
        mirrored = group.deformation.mirror and bool(rng.random() < 0.5)
        places = crop_places(
            centre, group.patch, spacings, person.spacing_mm, group.deformation, rng, mirrored=mirrored,
            device=self.device, fineness=group.fineness,
        )  # fmt: skip
        if person.image is not None:
            labels = sample(person.labels, places, labels=True, outside=IGNORED)
            image, modality = sample(person.image, places, labels=False), person.modality
            image = _vary(image, labels != IGNORED, rng, generator, modality)
        else:
            assert person.tissues is not None and group.label_of is not None
            coarse = places if group.fineness == 1 else _means(places.movedim(-1, 0), group.fineness).movedim(0, -1)
            labels = group.label_of[sample(person.tissues, coarse, labels=True)]
            tissues = sample(person.tissues, places, labels=True)
            if group.kind == "brain":
                image, modality = self._head(group, tissues, spacing, rng, generator), "mri"
            else:
                image, modality = self._trunk(group, person, tissues, places, rng, generator)
            if rng.random() < group.cut_share:
                image, labels = _cropped(image, labels, rng)
        if mirrored:
            labels = self.swaps[person.dataset][labels.clamp_min(0)].where(labels >= 0, labels)
        return image, labels, modality

    def _centre(
        self, group: Group, person: Subject, spacings: Sequence[float], rng: np.random.Generator
    ) -> list[float]:
        low, high = person.box
        if rng.random() < group.foreground_share and person.locations:
            ids = sorted(person.locations)
            places = person.locations[ids[int(rng.integers(len(ids)))]]
            wanted = places[int(rng.integers(len(places)))].astype(float)
            reach = np.array([p * s / n for p, s, n in zip(group.patch, spacings, person.spacing_mm, strict=True)])
            wanted = wanted + rng.uniform(-0.25, 0.25, 3) * reach
        else:
            wanted = rng.uniform(low, high + 1)
        centre = []
        for axis, (n, p) in enumerate(zip(person.labels.shape, group.patch, strict=True)):
            half = p * spacings[axis] / person.spacing_mm[axis] / 2
            if n <= 2 * half:
                centre.append((n - 1) / 2)
            else:
                centre.append(float(np.clip(wanted[axis], half - 0.5, n - half - 0.5)))
        return centre

    def _head(
        self, group: Group, tissues: Tensor, spacing_mm: float, rng: np.random.Generator, generator: torch.Generator
    ) -> Tensor:
        assert group.label_of is not None
        look = painting.brain_look(group.names, len(group.label_of), rng)
        image = painting.paint(tissues, _finer(look, group.fineness), generator)
        stripped = rng.random() < 0.5
        if stripped:
            beyond = (tissues == 0) | (tissues >= 500)
            if rng.random() < 0.5:  # with the water around the brain, or most of it
                beyond |= (tissues == 24) & (painting.smooth_regions(tissues.shape, 2, 6, generator) == 0)
            image = image.masked_fill(beyond, 0.0)
        if group.fineness > 1:
            if rng.random() < 0.5:
                image = painting.blur(image, (float(rng.uniform(0.3, 0.6)) * group.fineness,) * 3)
            image = _means(image[None], group.fineness)[0]
            if stripped:
                beyond = _means(beyond[None].float(), group.fineness)[0] > 0.5
        if rng.random() < 0.4:  # taken at voxels of this size or larger, as scans of 2 mm are
            image = painting.blur(image, (float(rng.uniform(0.4, 0.9)),) * 3)
        image = painting.spoil(image, rng, generator, strength=0.5)
        if look.in_slices and rng.random() < 0.5:
            thickness = rng.uniform(2, 6.5) / spacing_mm
            if thickness > 1.2:
                image = painting.thick_slices(image, int(rng.choice(3, p=(0.2, 0.2, 0.6))), float(thickness))
        if stripped:
            image = image.masked_fill(beyond, 0.0)
        return _standard(image, rng)

    def _trunk(
        self, group: Group, person: Subject, tissues: Tensor, places: Tensor, rng: np.random.Generator,
        generator: torch.Generator,
    ) -> tuple[Tensor, str]:  # fmt: skip
        assert person.depth is not None
        depth = sample(person.depth, places, labels=False, outside=200)
        fillers = list(range(trunks.FILLER, trunks.FILLER + painting.FILLERS))
        regions = painting.smooth_regions(tissues.shape, painting.FILLERS, int(rng.integers(6, 16)), generator)
        body = depth < rng.uniform(12, 40)
        inside = depth < rng.uniform(2, 12)
        between = torch.where(inside, trunks.FILLER + regions, torch.full_like(regions, trunks.FILLER))
        tissues = torch.where((tissues == 0) & body, between, tissues)
        ct = rng.random() < 0.6
        size = trunks.FILLER + painting.FILLERS
        make = painting.ct_look if ct else painting.mr_look
        image = painting.paint(tissues, _finer(make(group.names, size, fillers, rng), group.fineness), generator)
        if group.fineness > 1:
            image = _means(image[None], group.fineness)[0]
        if ct:
            image = painting.blur(image, rng.uniform(0.2, 0.8, 3))
            if rng.random() < 0.3:
                image = painting.thick_slices(image, 2, float(rng.uniform(1.2, 2.5)))
            return _standard(image.clamp(-500, 1000), rng), "ct"
        return _standard(painting.spoil(image, rng, generator), rng), "mri"

    def _queries(self, group: Group, dataset: str, present: frozenset[int], rng: np.random.Generator) -> list[Query]:
        shown: list[tuple[str, tuple[int, ...]]] = []
        absent: list[tuple[str, tuple[int, ...]]] = []
        for name in self.space.classes_of(dataset):
            ids = self.space.ids_of(dataset, name)
            (shown if present.intersection(ids) else absent).append((name, ids))
        chosen = [Query(name=n, ids=i, positive=True) for n, i in _some(shown, self.queries, rng)]
        room = min(self.negatives, max(1, len(chosen)))
        foreign = [(name, ()) for name in group.foreign]
        others = _some(absent, room, rng) + _some(foreign, max(1, room // 2), rng)
        return chosen + [Query(name=n, ids=i, positive=False) for n, i in others]

    def _wording(self, name: str, rng: np.random.Generator) -> str:
        variants = self.variants[name]
        return name if rng.random() < 0.5 else variants[int(rng.integers(len(variants)))]


def _moved(group: Group, device: torch.device) -> Group:
    label_of = None if group.label_of is None else group.label_of.to(device)
    return replace(group, subjects=[person.to(device) for person in group.subjects], label_of=label_of)


def _means(values: Tensor, size: int) -> Tensor:
    """Means of blocks of ``size``³ voxels of (C, X, Y, Z)."""
    means: Tensor = functional.avg_pool3d(values[None], size)[0]
    return means


def _finer(look: painting.Look, fineness: int) -> painting.Look:
    """A look whose spread inside a structure survives the means of finer voxels in part."""
    return look if fineness == 1 else replace(look, spreads=look.spreads * np.float32(fineness))


def swapped_ids(ids: Mapping[str, tuple[int, ...]]) -> Tensor:
    """Label id → id of the same structure on the other side, for mirrored crops; (ids,) int64.

    Args:
        ids: Class → its ids, of one dataset.
    """
    table = torch.arange(max([0, *(i for values in ids.values() for i in values)]) + 1)
    for name, values in ids.items():
        parsed = normalize_name(name)
        if parsed.side == "left" and len(values) == 1:
            other = ids.get(normalize_name(f"right {parsed.base}").canonical)
            if other is not None and len(other) == 1:
                table[values[0]], table[other[0]] = other[0], values[0]
    return table


def _some(items: list[Any], count: int, rng: np.random.Generator) -> list[Any]:
    return [items[i] for i in rng.permutation(len(items))[:count]]


def _standard(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Mean 0 and deviation 1, as the normalisation of a whole scan might have left a part of it."""
    image = (image - image.mean()) / image.std().clamp_min(1e-3)
    return image * float(np.exp(rng.normal(0, 0.2))) + float(rng.normal(0, 0.2))


def _vary(image: Tensor, known: Tensor, rng: np.random.Generator, generator: torch.Generator, modality: str) -> Tensor:
    """A real image under another scanner: gamma, field, blur, noise; outside of the scan it stays 0."""
    strength = 0.6
    if rng.random() < 0.8:
        image = painting.spoil(image, rng, generator, strength=strength)
    if modality == "mri" and rng.random() < 0.1:
        image = -image
    image = image * float(np.exp(rng.normal(0, 0.15))) + float(rng.normal(0, 0.15))
    return image.masked_fill(~known, 0.0)


def _cropped(image: Tensor, labels: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A scan that ends within the crop: zeros outside of a random box, where nothing is asked.

    Half of the boxes have a labelled voxel in their middle, as scans have that somebody cut around a structure. A scan is
    normalised by what it shows, so the box gets mean 0 and deviation 1.
    """
    middle: list[int] | None = None
    if rng.random() < 0.5 and len(places := (labels > 0).nonzero()):
        middle = places[int(rng.integers(len(places)))].tolist()
    box = []
    for axis, n in enumerate(image.shape):
        size = int(n * rng.uniform(0.45, 1.0))
        start = int(rng.integers(0, n - size + 1))
        if middle is not None:
            start = int(np.clip(middle[axis] - rng.uniform(0.25, 0.75) * size, 0, n - size))
        box.append(slice(start, start + size))
    shown, known = torch.zeros_like(image), torch.full_like(labels, IGNORED)
    shown[tuple(box)] = _standard(image[tuple(box)], rng)
    known[tuple(box)] = labels[tuple(box)]
    return shown, known
