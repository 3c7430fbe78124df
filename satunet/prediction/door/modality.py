"""Modality of a scan, from its file's name and its intensities."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from satunet.images.hounsfield import hounsfield_offset
from satunet.images.image import Image, strip_ending

# Unlike in the name of a channel, short words in a file name often mean something else: "PD" and "HU" may be a patient's
# initials, "t1" the first visit, "echo 2" the second echo, "us" a country. Only unambiguous words are listed.
_WORDS = {
    "ct": {"ct", "cbct", "ncct", "cect", "hrct", "ldct"},
    "pet": {"pet", "suv"},
    "us": {"ultrasound", "sonography"},
    "mri": {"mr", "mri", "t1w", "t1ce", "t1gd", "t2w", "t2star", "flair", "adc", "dwi", "swi", "mprage", "bssfp", "lge"},
}  # fmt: skip
_AIR_HU = -500
INTENSITIES = "intensities"
"""Source of a modality that was guessed from the voxel values, because nothing else states it."""


def modality_in_name(path: Path) -> str | None:
    """Modality stated by a separate word in a file's name, if exactly one is stated."""
    parts = set(re.split(r"[^a-z0-9]+", strip_ending(path.name).lower()))
    found = {modality for modality, words in _WORDS.items() if parts & words}
    return found.pop() if len(found) == 1 else None


def modality_of(image: Image, known: Sequence[str]) -> tuple[str, str]:
    """Modality of a scan among those that a model knows, and how it was determined.

    The file's name decides if it states one. A model with a single modality leaves no choice. Otherwise, Hounsfield
    units tell CT from the rest.
    """
    named = modality_in_name(image.path) if image.path is not None else None
    if named is not None and named in known:
        return named, "file name"
    if len(known) == 1:
        return known[0], "the model knows no other"
    if "ct" in known and looks_like_ct(image.array):
        return "ct", INTENSITIES
    return "mri" if "mri" in known else known[0], INTENSITIES


def looks_like_ct(array: NDArray[Any]) -> bool:
    """Whether intensities are Hounsfield units, possibly stored with an offset of 1024.

    Air gives CT away: no voxel of MRI or PET is below -500. If no value is negative,
    :func:`~satunet.images.hounsfield.hounsfield_offset` decides.
    """
    return float(array.min(initial=0)) <= _AIR_HU or hounsfield_offset(array) > 0
