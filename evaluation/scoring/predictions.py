"""Find the predictions of a case.

A prediction of the case ``C`` is one of

- a label map ``C.nii.gz`` (or any other image ending), as nnU-Net writes it, with the ids of the reference or those
  of a legend ``C.json`` beside it;
- a folder ``C/`` with a mask for each class, as ``satunet predict`` and TotalSegmentator write it.

Instead of ``C`` the name may carry a channel, ``C_0000``, a dataset, ``Dataset003_X__C``, or both, as the name of
a scan does: ``Dataset003_X__C__0000``. The exact name of a case is never read as another case's name with a suffix.
Channels of a case are scans of their own, each scored; two predictions for one scan are an error.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from satunet.evaluation.scoring.masks import holds_masks
from satunet.images.image import image_ending, strip_ending

_DATASET = re.compile(r"^Dataset\d{3,}_.+?__(?P<rest>.+)$")
_CHANNEL = re.compile(r"^(?P<case>.+?)__?(?P<channel>\d{4})$")


@dataclass(frozen=True, kw_only=True)
class Found:
    """A prediction found for one scan.

    Attributes:
        case: The case it belongs to.
        scan: Name of the scan.
        channel: Channel in its name, if there is one.
        path: Label map or folder of masks.
    """

    case: str
    scan: str
    channel: int | None
    path: Path


def find_predictions(folder: Path, cases: Collection[str]) -> tuple[dict[str, list[Found]], list[Path]]:
    """Predictions of cases.

    Args:
        folder: Folder of the predictions; if it is missing, there are none.
        cases: Names of the cases.

    Returns:
        Case → its predictions, by channel; and images and folders that belong to no case.
    """
    found: dict[str, list[Found]] = {case: [] for case in cases}
    others = []
    entries = sorted(p for p in folder.iterdir() if not p.name.startswith(".")) if folder.is_dir() else []
    for path in entries:
        if not path.is_dir() and image_ending(path) is None:
            continue  # legends, summaries, logs
        name = path.name if path.is_dir() else strip_ending(path.name)
        case, channel = _belongs_to(name, cases)
        if case is None:
            if not path.is_dir() or holds_masks(path):  # any other folder, of results for instance, needs no warning
                others.append(path)
        else:
            found[case].append(Found(case=case, scan=name, channel=channel, path=path))
    for scans in found.values():
        scans.sort(key=lambda s: (s.channel is not None, s.channel or 0, s.scan))
    return found, others


def ambiguous(scans: Iterable[Found]) -> str | None:
    """Reason why a case's predictions are ambiguous, or ``None`` if each is of a different scan."""
    scans = list(scans)
    channels = [s.channel for s in scans]
    if len(scans) > 1 and (None in channels or len(set(channels)) < len(channels)):
        return f"several predictions of one scan: {', '.join(s.path.name for s in scans)}; only one is allowed"
    return None


def _belongs_to(name: str, cases: Collection[str]) -> tuple[str | None, int | None]:
    if name in cases:
        return name, None
    names = [name]
    if match := _DATASET.match(name):
        names.append(match["rest"])
    for candidate in names:
        if candidate in cases:
            return candidate, None
        if (match := _CHANNEL.match(candidate)) and match["case"] in cases:
            return match["case"], int(match["channel"])
    return None, None
