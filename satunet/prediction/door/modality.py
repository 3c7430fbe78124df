"""Which modality a scan is: from what was given, from its file's name, from its intensities."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from satunet.images.hounsfield import hounsfield_offset
from satunet.images.image import Image, strip_ending

# In a file's name, unlike a channel's, a short word is as often something else: PD and HU are initials of patients, "t1"
# is the first visit, "echo 2" the second echo, "us" a country. Only words that hardly stand for anything else are taken.
_WORDS = {
    "ct": {"ct", "cbct", "ncct", "cect", "hrct", "ldct"},
    "pet": {"pet", "suv"},
    "us": {"ultrasound", "sonography"},
    "mri": {"mr", "mri", "t1w", "t1ce", "t1gd", "t2w", "t2star", "flair", "adc", "dwi", "swi", "mprage", "bssfp", "lge"},
}  # fmt: skip
_AIR_HU = -500


def modality_in_name(path: Path) -> str | None:
    """Modality that a file's name says in a word of its own, if it says one and no other."""
    parts = set(re.split(r"[^a-z0-9]+", strip_ending(path.name).lower()))
    found = {modality for modality, words in _WORDS.items() if parts & words}
    return found.pop() if len(found) == 1 else None


def modality_of(image: Image, known: Sequence[str]) -> tuple[str, str]:
    """Modality of a scan among those a model knows, and how it was found out.

    The file's name decides if it names one; a model of one modality leaves no choice; else Hounsfield units tell CT
    from MRI.
    """
    named = modality_in_name(image.path) if image.path is not None else None
    if named is not None and named in known:
        return named, "file name"
    if len(known) == 1:
        return known[0], "the model knows no other"
    if "ct" in known and looks_like_ct(image.array):
        return "ct", "intensities"
    return "mri" if "mri" in known else known[0], "intensities"


def looks_like_ct(array: NDArray[Any]) -> bool:
    """Whether intensities are Hounsfield units, also where they are stored with an offset of 1000 or 1024.

    Air tells: no voxel of MRI or PET lies below -500. Where nothing is negative,
    :func:`~satunet.images.hounsfield.hounsfield_offset` tells.
    """
    return float(array.min(initial=0)) <= _AIR_HU or hounsfield_offset(array) > 0
