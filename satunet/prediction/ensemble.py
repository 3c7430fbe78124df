"""The models of a predictor: which of them see a scan in the same way, which are asked for a prompt, and with what query.

Models that see scans in the same way (folds of a training) are one :class:`Group`: they share the preprocessed scan and
its windows, and the engine averages their probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from satunet.errors import PromptError
from satunet.geometry import extent_mm
from satunet.labels.names import normalize_name, other_side
from satunet.models.folder import ModelFolder
from satunet.network.engines import accelerate
from satunet.plan import UnifiedPlan
from satunet.prediction.door.jobs import Vocabulary
from satunet.prediction.masks.found import Look, PreparedScan
from satunet.prediction.options import PredictOptions
from satunet.prompts.matching import PromptMatch
from satunet.text import TextEncoder
from satunet.windows.engine import Member

Embeddings = Mapping[str, NDArray[np.floating[Any]]]
"""Prompt → embedding (D,), for prompts that are given as such."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """Models that see scans in the same way.

    Attributes:
        models: Models of the group.
        networks: Their networks on the device.
    """

    models: tuple[ModelFolder, ...]
    networks: tuple[Any, ...]

    @property
    def plan(self) -> UnifiedPlan:
        """Plan by which the group sees a scan."""
        return self.models[0].plan

    @property
    def side_axis(self) -> int:
        """Axis of a preprocessed scan that runs from one side of the body to the other."""
        return next(axis for axis, letter in enumerate(self.plan.orientation) if letter in "LR")


@dataclass(frozen=True, kw_only=True, eq=False)
class Ensemble:
    """All models of a predictor.

    Attributes:
        models: Models, in the order given.
        groups: The same models, grouped by how they see a scan.
        vocabulary: Classes that they can be asked for, and the text encoder of the first.
    """

    models: tuple[ModelFolder, ...]
    groups: tuple[Group, ...]
    vocabulary: Vocabulary
    _encoders: dict[int, TextEncoder] = field(default_factory=dict, init=False)

    @classmethod
    def of(cls, models: Sequence[ModelFolder], device: torch.device, options: PredictOptions) -> Ensemble:
        """Group models, and bring their networks onto the device.

        Args:
            models: Models that predict together.
            device: Device of the networks.
            options: Options that say how the networks are run.
        """
        alike: dict[str, list[ModelFolder]] = {}
        for model in models:
            plan = model.plan
            key = (plan.orientation, plan.spacing_mm, plan.patch_size, plan.normalization, plan.class_spacings_mm,
                   plan.class_windows, plan.fit_windows, plan.fit_windows and plan.network.divisor)  # fmt: skip
            alike.setdefault(repr(key), []).append(model)
        engine, precision = options.engine, options.precision
        groups = tuple(
            Group(
                models=tuple(same),
                networks=tuple(accelerate(m.network, device, engine=engine, precision=precision) for m in same),
            )
            for same in alike.values()
        )
        return cls(models=tuple(models), groups=groups, vocabulary=Vocabulary.of(models))

    def with_networks(self, wrap: Callable[[Any], Any]) -> Ensemble:
        """The same models with wrapped networks.

        Args:
            wrap: Function that takes a network on the device and returns its replacement.
        """
        groups = tuple(replace(g, networks=tuple(wrap(n) for n in g.networks)) for g in self.groups)
        return replace(self, groups=groups)

    def looks(self, scan: PreparedScan, matches: Sequence[PromptMatch]) -> dict[Look, list[int]]:
        """Look → positions of the prompts that are predicted with it."""
        looks: dict[Look, list[int]] = {}
        for number, group in enumerate(self.groups):
            extent = extent_mm(scan.image.grid, group.plan.orientation)
            for i, match in enumerate(matches):
                if match.status != "unknown" and self.voters(group, match, scan.modality):
                    name = match.class_name or next((n for n, _ in match.nearest), None)
                    spacing = group.plan.spacing_for(name, scan.modality, extent)
                    window = group.plan.window_of(name, scan.modality, spacing[0])
                    looks.setdefault((number, spacing, window), []).append(i)
        return looks

    def voters(self, group: Group, match: PromptMatch, modality: str) -> list[int]:
        """Positions of the models of a group that are asked for a prompt.

        Words that name no class are predicted by all models. A class is predicted by those that were trained on it in
        the scan's modality or, if there are none, by those that know it at all.
        """
        if match.class_name is None:
            return list(range(len(group.models)))
        name = match.class_name
        trained = any(name in m.space and modality in m.space.info(name).modalities for m in self.models)
        return [
            i
            for i, model in enumerate(group.models)
            if name in model.space and (not trained or modality in model.space.info(name).modalities)
        ]

    def members(
        self,
        group: Group,
        matches: Sequence[PromptMatch],
        modality: str,
        embeddings: Embeddings,
        *,
        held: bool,
        mirrored: bool,
    ) -> list[Member]:
        """The networks of a group, with the query of each prompt.

        Args:
            group: The group.
            matches: What to look for.
            modality: Modality of the scan.
            embeddings: Prompt → embedding, for prompts that are given as such.
            held: Whether one window holds the scan.
            mirrored: Whether each network also looks at windows that are mirrored left to right, where it was trained
                to do so.
        """
        voters = [self.voters(group, match, modality) for match in matches]
        members = [
            Member(
                network=network,
                queries=self._queries(model, matches, embeddings),
                asked=torch.tensor([i in own for own in voters]),
                offsets=_offsets(model.plan, matches, modality, held),
            )
            for i, (model, network) in enumerate(zip(group.models, group.networks, strict=True))
        ]
        return members + (self._mirrored(members, group, matches, modality, held) if mirrored else [])

    def flips(self, group: Group) -> tuple[tuple[int, ...], ...]:
        """Axes along which a window is mirrored, look by look; the first look is not mirrored."""
        if group.plan.mirrored_classes:
            return ((),)  # trained with no other mirroring
        axes = [axis for axis in range(3) if not (self.vocabulary.space.has_sides and axis == group.side_axis)]
        return tuple(flip for count in range(len(axes) + 1) for flip in combinations(axes, count))

    def _mirrored(
        self, members: Sequence[Member], group: Group, matches: Sequence[PromptMatch], modality: str, held: bool
    ) -> list[Member]:
        """The same networks once more, looking at windows mirrored left to right and asked for the other sides."""
        sides = {k: side for k, match in enumerate(matches) if (side := _other_side(match, group, modality))}
        if not sides:
            return []
        known = torch.zeros(len(matches), dtype=torch.bool)
        known[list(sides)] = True
        asked_for = [sides.get(k, match) for k, match in enumerate(matches)]
        turned = []
        for member, model in zip(members, group.models, strict=True):
            queries = member.queries.clone()
            queries[known] = self._queries(model, list(sides.values()), {})
            asked = known if member.asked is None else member.asked & known
            offsets = _offsets(model.plan, asked_for, modality, held)
            turned.append(replace(member, queries=queries, asked=asked, offsets=offsets, flips=((group.side_axis,),)))
        return turned

    def _queries(self, model: ModelFolder, matches: Sequence[PromptMatch], embeddings: Embeddings) -> Tensor:
        """(N, D) embeddings: the one that was given, otherwise that of the class for a known prompt, otherwise the
        prompt's.
        """
        bank = model.bank
        texts = [m.class_name or " ".join(m.prompt.lower().split()) for m in matches]
        # A prompt that a model does not predict needs no embedding from it.
        texts = [bank.texts[0] if m.class_name and m.class_name not in model.space else t
                 for m, t in zip(matches, texts, strict=True)]  # fmt: skip
        missing = [t for m, t in zip(matches, texts, strict=True) if m.prompt not in embeddings and t not in bank]
        missing = list(dict.fromkeys(missing))
        fresh = dict(zip(missing, self._encoder_of(model).encode(missing), strict=True)) if missing else {}
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

    def _encoder_of(self, model: ModelFolder) -> TextEncoder:
        number = next(i for i, other in enumerate(self.models) if other is model)
        if number not in self._encoders:
            self._encoders[number] = self.vocabulary.encoder if number == 0 else model.text_encoder()
        return self._encoders[number]


def _offsets(plan: UnifiedPlan, matches: Sequence[PromptMatch], modality: str, held: bool) -> Tensor | None:
    """(N,) numbers that are added to the logits of prompts; ``None`` for a plan that has no thresholds for the
    modality.
    """
    if modality not in plan.class_thresholds and not (held and modality in plan.held_thresholds):
        return None
    return torch.tensor([plan.logit_offset(match.class_name, modality, held=held) for match in matches])


def _other_side(match: PromptMatch, group: Group, modality: str) -> PromptMatch | None:
    """What to ask in a window that is mirrored left to right: the other side, or the same if the class has none.

    ``None`` if a model that knows the class was not trained on it in mirrored scans.
    """
    if match.class_name is None:
        return None
    name = normalize_name(match.class_name)
    other = match.class_name if name.side is None else f"{other_side(name.side)} {name.base}"
    knowing = [model for model in group.models if match.class_name in model.space]
    if any({match.class_name, other} - set(model.plan.mirrored_classes.get(modality, ())) for model in knowing):
        return None
    return replace(match, class_name=other)
