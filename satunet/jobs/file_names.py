"""Names of files made from what people type: safe on every file system, readable, and each once.

A name keeps letters and digits of every script, ``+``, ``-`` and ``.``; everything else becomes ``_``. Beyond the
characters, file systems differ in case (NTFS, APFS), in composed and decomposed accents (APFS), in reserved names
(``CON``, ``NUL`` on Windows) and in length (255 bytes, 143 on eCryptfs): two names that any of them takes for one are
told apart by a hash of their texts.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Collection, Iterable

MOST_BYTES = 96
"""Of a name in UTF-8: with an ending, ``_probability`` and the prefix of a temporary file it stays below 143."""

_DEVICES = re.compile(r"(?:con|prn|aux|nul|conin\$|conout\$|clock\$|(?:com|lpt)[0-9])", re.IGNORECASE)


def safe_name(text: str) -> str:
    """A file name, without ending, for any text; never empty, and the name of a safe name is that name.

    A text that is too long keeps its beginning and gets a hash of the whole.
    """
    composed = unicodedata.normalize("NFC", text).strip()
    name = "".join(c if c.isalnum() or c in "+-." else "_" for c in composed).strip(".")
    if name.startswith("-"):  # an option to every program
        name = f"_{name[1:]}"
    stem, dot, rest = name.partition(".")
    if _DEVICES.fullmatch(unicodedata.normalize("NFKC", stem)):
        name = f"{stem}_{dot}{rest}"
    if len(name.encode()) > MOST_BYTES:
        start = name.encode()[: MOST_BYTES - 9].decode(errors="ignore").rstrip(".")
        name = f"{start}_{_digest(text, 8)}"
    return name or "_"


def unique_names(texts: Iterable[str], *, taken: Collection[str] = (), suffixes: Collection[str] = ("",)) -> list[str]:
    """A safe name for each text, in order, no two of which any file system takes for one.

    The first text of a name keeps it; a further one gets a hash of its text, so that the name does not depend on how
    many there are.

    Args:
        texts: Texts that need file names.
        taken: Names that may not be given.
        suffixes: What is put behind a name: no name with a suffix is another one with a suffix.
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
    """A text as a cell of a table that no spreadsheet takes for a formula; the inverse is :func:`text_of_cell`."""
    return f"'{text}" if text.lstrip("'").startswith(_FORMULAS) else text


def text_of_cell(cell: str) -> str:
    """The text that :func:`table_cell` made a cell of."""
    return cell[1:] if cell.startswith("'") and cell.lstrip("'").startswith(_FORMULAS) else cell


def name_key(name: str) -> str:
    """Equal for names that some file system takes for one."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).upper().casefold())


def _digest(text: str, digits: int) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:digits]
