"""File names made from what people type: safe on every file system, readable and unique.

A name keeps letters and digits of every script, ``+``, ``-`` and ``.``; everything else becomes ``_``. File systems
also differ in case (NTFS, APFS), composed and decomposed accents (APFS), reserved names (``CON``, ``NUL`` on Windows)
and length (255 bytes, 143 on eCryptfs). If any of them would treat two names as the same, a hash of the text is
appended.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Collection, Iterable

MOST_BYTES = 96
"""Length of a name in UTF-8; with ending, ``_probability`` and the prefix of a temporary file it stays below 143."""

_DEVICES = re.compile(r"(?:con|prn|aux|nul|conin\$|conout\$|clock\$|(?:com|lpt)[0-9])", re.IGNORECASE)


def safe_name(text: str) -> str:
    """A file name, without ending, for any text; it is never empty, and a safe name is returned unchanged.

    If a text is too long, its beginning is kept and a hash of the whole text is appended.
    """
    composed = unicodedata.normalize("NFC", text).strip()
    name = "".join(c if c.isalnum() or c in "+-." else "_" for c in composed).strip(".")
    if name.startswith("-"):  # programs would mistake it for an option
        name = f"_{name[1:]}"
    stem, dot, rest = name.partition(".")
    if _DEVICES.fullmatch(unicodedata.normalize("NFKC", stem)):
        name = f"{stem}_{dot}{rest}"
    if len(name.encode()) > MOST_BYTES:
        start = name.encode()[: MOST_BYTES - 9].decode(errors="ignore").rstrip(".")
        name = f"{start}_{_digest(text, 8)}"
    return name or "_"


def unique_names(texts: Iterable[str], *, taken: Collection[str] = (), suffixes: Collection[str] = ("",)) -> list[str]:
    """A safe name for each text, in order, so that they are distinct on every file system.

    Of several texts with the same name, the first keeps it. The others get a hash of their text, so that a name does
    not depend on the number of texts.

    Args:
        texts: Texts that need file names.
        taken: Names that must not be used.
        suffixes: Suffixes that will be appended; names are distinct with all of them.
    """
    used = {name_key(name) for name in taken}
    names = []
    for text in texts:
        name = base = safe_name(text)
        number = 0
        while any(name_key(f"{name}{suffix}") in used for suffix in suffixes):
            number += 1
            name = f"{base}_{_digest(text, 6)}" + (f"_{number}" if number > 1 else "")
        used |= {name_key(f"{name}{suffix}") for suffix in suffixes}
        names.append(name)
    return names


_FORMULAS = ("=", "+", "-", "@", "\t", "\r")


def table_cell(text: str) -> str:
    """A text as a table cell that no spreadsheet mistakes for a formula; the inverse is :func:`text_of_cell`."""
    return f"'{text}" if text.lstrip("'").startswith(_FORMULAS) else text


def text_of_cell(cell: str) -> str:
    """The text of a cell that :func:`table_cell` made."""
    return cell[1:] if cell.startswith("'") and cell.lstrip("'").startswith(_FORMULAS) else cell


def name_key(name: str) -> str:
    """A key that is equal for names that some file system treats as the same."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).upper().casefold())


def _digest(text: str, digits: int) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:digits]
