"""One colour for each structure, the same in DICOM objects, label maps, pictures, viewers and reports.

The colours of the classes of SAT-DS are in a table (``colours.tsv``). Structures that occur together in a dataset are
as far apart in CIELAB as possible; both sides of a structure have one hue, the left one lighter; saturated reds and
oranges are reserved for lesions. The colour of any other name is computed from its letters, outside of the hues of
lesions.

Rejected: colours by position in a list. The colour of a structure would then depend on the other prompts.
"""

from __future__ import annotations

import colorsys
import csv
import hashlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

Colour: TypeAlias = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""

_NEAR = 40.0
"""Distance in RGB below which two colours of one legend count as the same."""


def colour_of(name: str) -> Colour:
    """The colour of a structure; case, underscores and doubled spaces do not matter."""
    key = _key(name)
    return _table().get(key) or _made_up(key, 0)


def colours_of(names: Iterable[str]) -> list[Colour]:
    """Colours of structures that are shown together.

    A name that is not in the table gets another colour if its own is close to an earlier one, as far as there are any.
    """
    table, chosen = _table(), list[Colour]()
    for key in map(_key, names):
        colour = table.get(key) or _made_up(key, 0)
        for attempt in range(1, 12):
            if key in table or all(_distance(colour, other) > _NEAR for other in chosen):
                break
            colour = _made_up(key, attempt)
        chosen.append(colour)
    return chosen


def css(colour: Colour) -> str:
    """The colour as ``#rrggbb``."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


@lru_cache(maxsize=1)
def _table() -> dict[str, Colour]:
    with (Path(__file__).parent / "colours.tsv").open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t")
        return {row["class"]: _from_css(row["colour"]) for row in rows}


def _from_css(text: str) -> Colour:
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)


def _key(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").split())


def _made_up(key: str, attempt: int) -> Colour:
    """A hue from yellow to magenta, hashed from the name without its side; the left side is lighter."""
    words = key.split()
    side = next((w for w in words if w in ("left", "right")), None)
    base = " ".join(w for w in words if w != side)
    digest = hashlib.sha256(f"{attempt} {base}".encode()).digest()
    hue = (62 + 270 * int.from_bytes(digest[:4], "big") / 2**32) / 360
    light = {"left": 0.68, "right": 0.42, None: 0.55}[side]
    red, green, blue = colorsys.hls_to_rgb(hue, light, 0.5 + 0.3 * digest[4] / 255)
    return round(255 * red), round(255 * green), round(255 * blue)


def _distance(a: Colour, b: Colour) -> float:
    return float(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) ** 0.5)
