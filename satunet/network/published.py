"""SAT's published checkpoints as weights of :class:`~satunet.network.model.PromptedUNet`.

A checkpoint is ``{"step", "model_state_dict", "optimizer_state_dict"}``. Names start with ``module.`` (from DDP), and
each convolution block is stored twice: its modules ``conv`` and ``norm`` are also elements 0 and 1 of ``all_modules``.
Checkpoints of newer network libraries store the encoder a second time, inside the decoder.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from satunet.errors import ModelError
from satunet.network.config import NetworkConfig

PUBLISHED_MODALITIES = ("ct", "mri", "us", "pet")
"""Modality of each row of the published modality embedding."""

_FIRST_WEIGHT = "backbone.encoder.stages.0.0.convs.0.conv.weight"
_ALIASES = (
    (re.compile(r"^backbone\.decoder\.encoder\."), "backbone.encoder."),
    (re.compile(r"\.all_modules\.0\."), ".conv."),
    (re.compile(r"\.all_modules\.1\."), ".norm."),
)


def state_dict_of(checkpoint: Mapping[str, Any], *, source: Path | str) -> dict[str, Tensor]:
    """The tensors of a published checkpoint, without DDP's prefix in their names.

    Raises:
        ModelError: There is no ``model_state_dict``, or it holds anything but tensors.
    """
    state = checkpoint.get("model_state_dict")
    if not isinstance(state, Mapping) or not state:
        raise ModelError(
            f"{source}: not a SAT checkpoint: it must hold 'model_state_dict', but holds {sorted(map(str, checkpoint))}"
        )
    other = [str(key) for key, value in state.items() if not isinstance(value, Tensor)]
    if other:
        raise ModelError(f"{source}: these entries of 'model_state_dict' are not tensors: {', '.join(other[:8])}")
    return {str(key).removeprefix("module."): value for key, value in state.items()}


def network_state(state: Mapping[str, Tensor], *, source: Path | str) -> dict[str, Tensor]:
    """One tensor per parameter; second names are dropped after a check that both copies are equal.

    Raises:
        ModelError: Two names of a parameter have different values; the message lists them.
    """
    found: dict[str, Tensor] = {}
    differing = []
    for key, value in state.items():
        name = key
        for pattern, replacement in _ALIASES:
            name = pattern.sub(replacement, name)
        first = found.setdefault(name, value)
        if first is not value and not _same(first, value):
            differing.append(name)
    if differing:
        raise ModelError(
            f"{source}: {len(differing)} tensors occur twice in the checkpoint, and their copies differ: "
            f"{', '.join(sorted(set(differing))[:8])}"
        )
    return found


def preset_of(state: Mapping[str, Tensor], presets: Sequence[NetworkConfig], *, source: Path | str) -> NetworkConfig:
    """The preset of a checkpoint, recognised by the width of its first convolution.

    Raises:
        ModelError: No preset matches.
    """
    first = state.get(_FIRST_WEIGHT)
    widths = {config.features_per_stage[0]: config for config in presets}
    if first is None or first.ndim != 5 or first.shape[0] not in widths:
        got = "is missing" if first is None else f"has shape {tuple(first.shape)}"
        known = ", ".join(f"{config.preset}: {width} features" for width, config in widths.items())
        raise ModelError(
            f"{source}: not a SAT network: the first convolution, {_FIRST_WEIGHT}, {got} (known are {known}); the "
            f"checkpoint has {len(state)} tensors, such as {', '.join(sorted(state)[:3])}"
        )
    return widths[first.shape[0]]


def with_modality(config: NetworkConfig) -> NetworkConfig:
    """The preset with the modality embedding in the network."""
    return dataclasses.replace(config, adapter="modality")


def modality_rows(published: Tensor, modalities: Sequence[str]) -> tuple[Tensor, dict[str, str]]:
    """The published modality embedding in the order of ``modalities``, and the origin of each row.

    A modality that SAT does not have gets the mean of the three that it was trained on (CT, MRI, PET). Such a row is
    untrained, and its origin says so.

    Args:
        published: (4 or 5, D) with the rows :data:`PUBLISHED_MODALITIES`; SAT never used a fifth row.
        modalities: Modalities of the returned rows.
    """
    trained = [PUBLISHED_MODALITIES.index(m) for m in ("ct", "mri", "pet")]
    rows, sources = [], {}
    for name in modalities:
        if name in PUBLISHED_MODALITIES:
            rows.append(published[PUBLISHED_MODALITIES.index(name)])
            sources[name] = "published" + (", but no dataset of SAT-DS trains it" if name == "us" else "")
        else:
            rows.append(published[trained].mean(0))
            sources[name] = "mean of ct, mri and pet: SAT has no such modality"
    return torch.stack(rows).to(torch.float32), sources


def _same(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return a.data_ptr() == b.data_ptr() or bool(torch.equal(a, b))
