"""NRRD headers (``.nrrd``), parsed strictly, with the same geometry as in ITK.

Coordinates of a named space are converted to RAS; spaces without a known orientation count as LPS, as in ITK.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satunet.errors import NotThreeDimensionalError, UnreadableImageError
from satunet.images.stored import MOST_AXES, Encoding, Stored, header_bytes, inside_folder, integers, numbers

_TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}
_ENCODINGS: dict[str, Encoding] = {
    "raw": "raw",
    "gz": "gzip",
    "gzip": "gzip",
    "bz2": "bzip2",
    "bzip2": "bzip2",
    "txt": "text",
    "text": "text",
    "ascii": "text",
    "hex": "hex",
}
_DOMAINS = {"domain", "space", "???", "none", "unknown"}
"""Kinds of axes that are spatial; axes of any other kind hold the values of one voxel."""
_LPS, _RAS, _LAS = np.diag([-1.0, -1.0, 1.0]), np.eye(3), np.diag([-1.0, 1.0, 1.0])
_SPACES = {
    "right-anterior-superior": _RAS,
    "ras": _RAS,
    "left-anterior-superior": _LAS,
    "las": _LAS,
    "left-posterior-superior": _LPS,
    "lps": _LPS,
    "scanner-xyz": _LPS,
    "3d-right-handed": _LPS,
    "3d-left-handed": _LPS,
}
_MICRONS = {"um": 1e-3, "µm": 1e-3, "micron": 1e-3, "microns": 1e-3, "m": 1e3, "meter": 1e3, "cm": 10.0, "mm": 1.0}


def read_nrrd(path: Path) -> Stored:
    """Read an NRRD's header.

    Raises:
        UnreadableImageError: The file has no NRRD header, or one that contradicts itself.
        NotThreeDimensionalError: Several values per voxel.
        MissingFileError: The file of its voxels is missing.
    """
    fields, end, listed = _fields(path, header_bytes(path))
    n = integers(path, "dimension", _need(path, fields, "dimension"), count=1)[0]
    if not 1 <= n <= MOST_AXES:
        raise UnreadableImageError(path, f"the header's dimension is {n}; allowed are 1 to {MOST_AXES}")
    sizes = integers(path, "sizes", _need(path, fields, "sizes"), count=n)
    encoding = _ENCODINGS.get(_need(path, fields, "encoding").lower())
    if encoding is None:
        raise UnreadableImageError(
            path, f"the header's encoding is {fields['encoding'][:40]!r}; allowed are {', '.join(_ENCODINGS)}"
        )
    axes = _axes_in_space(path, fields, sizes)
    files, lines, offset = _files(path, fields, listed, end)
    return Stored(
        path=path,
        shape=tuple(sizes[axis] for axis in axes),
        affine=_affine(path, fields, n, axes),
        dtype=_dtype(path, fields, encoding),
        encoding=encoding,
        files=files,
        offset=offset,
        lines=lines,
        spaced="space directions" in fields
        or "axis maxs" in fields
        or "nan" not in fields.get("spacings", "nan").lower(),
    )


def _fields(path: Path, content: bytes) -> tuple[dict[str, str], int, list[str]]:
    """Fields by name, the offset of the header's end in bytes, and the lines in it that list files."""
    if not re.match(rb"NRRD000\d\r?\n", content):
        raise UnreadableImageError(path, "not a readable NRRD: it does not begin with NRRD and a version")
    fields: dict[str, str] = {}
    listed: list[str] = []
    start = content.index(b"\n") + 1
    while start < len(content):
        end = content.find(b"\n", start)
        end = len(content) if end < 0 else end
        line = content[start:end].decode("utf-8", errors="surrogateescape").rstrip("\r")
        start = end + 1
        if not line.strip():
            return fields, start, listed
        if "data file" in fields and fields["data file"].split()[:1] == ["LIST"]:
            listed.append(line.strip())
            continue
        if line.startswith("#") or ":=" in line:
            continue
        key, mark, value = line.partition(":")
        if not mark or len(fields) > 1000:
            raise UnreadableImageError(path, f"not a readable NRRD: its header has the line {line[:60]!r}")
        key, value = _key(key), value.strip()
        if fields.setdefault(key, value) != value:
            raise UnreadableImageError(path, f"the header gives {key} twice: {fields[key][:40]!r} and {value[:40]!r}")
    if "data file" not in fields:
        raise UnreadableImageError(path, "not a readable NRRD: its header does not end")
    return fields, start, listed


def _key(key: str) -> str:
    """A field's name in one spelling; the format has synonyms with and without a space."""
    key = key.strip().lower()
    return {
        "datafile": "data file",
        "lineskip": "line skip",
        "byteskip": "byte skip",
        "axismins": "axis mins",
        "axismaxs": "axis maxs",
        "centers": "centerings",
        "spacedirections": "space directions",
        "spaceorigin": "space origin",
    }.get(key, key)


def _need(path: Path, fields: dict[str, str], key: str) -> str:
    if key not in fields:
        raise UnreadableImageError(path, f"not a readable NRRD: its header has no {key}")
    return fields[key]


def _axes_in_space(path: Path, fields: dict[str, str], sizes: tuple[int, ...]) -> list[int]:
    """Axes that are spatial; an axis over the values of one voxel is refused unless its size is 1."""
    kinds = fields.get("kinds", "").lower().split() or ["domain"] * len(sizes)
    if len(kinds) != len(sizes):
        raise UnreadableImageError(path, f"the header gives {len(kinds)} kinds of axes for {len(sizes)} axes")
    several = [(kind, n) for kind, n in zip(kinds, sizes, strict=True) if kind not in _DOMAINS and n != 1]
    if several:
        raise NotThreeDimensionalError(
            path, f"{several[0][1]} values per voxel (an axis of the kind {several[0][0][:40]!r}); allowed is one"
        )
    return [axis for axis, kind in enumerate(kinds) if kind in _DOMAINS]


def _dtype(path: Path, fields: dict[str, str], encoding: Encoding) -> np.dtype[Any]:
    name = " ".join(_need(path, fields, "type").lower().split())
    code = next((code for code, names in _TYPES.items() if name in names), None)
    if code is None:
        raise UnreadableImageError(path, f"the header's type is {name[:40]!r}; allowed are whole and real numbers")
    endian = fields.get("endian", "").lower()
    if endian not in ("little", "big") and (endian or (code[1] != "1" and encoding != "text")):
        raise UnreadableImageError(path, f"the header's endian is {endian[:40]!r}; allowed are little and big")
    return np.dtype((">" if endian == "big" else "<") + code)


def _affine(path: Path, fields: dict[str, str], n: int, axes: list[int]) -> NDArray[np.float64]:
    """Voxel index → RAS+ mm, for the first three of ``axes``."""
    affine = np.eye(4)
    axes = axes[:3]
    m = len(axes)
    if "space" in fields or "space dimension" in fields:
        if "space directions" not in fields:
            raise UnreadableImageError(path, "the header names a space but gives no space directions")
        turn = _SPACES.get(fields.get("space", "lps").lower())
        if turn is None:
            raise UnreadableImageError(
                path, f"the header's space is {fields['space'][:60]!r}; allowed are {', '.join(_SPACES)}"
            )
        directions = _vectors(path, "space directions", fields["space directions"])
        (origin,) = _vectors(path, "space origin", fields.get("space origin", "(0,0,0)"))[:1] or [None]
        if len(directions) != n or origin is None or any(directions[axis] is None for axis in axes):
            raise UnreadableImageError(
                path, f"the header's space directions are {fields['space directions'][:80]!r}; expected {n} vectors"
            )
        scale = _millimetres(fields.get("space units", ""))
        affine[:3, :m] = turn @ np.array([directions[axis] for axis in axes]).T * scale
        affine[:3, 3] = turn @ origin * scale
        return affine
    spacing = _spacings(path, fields, n)
    lowest = numbers(path, "axis mins", fields["axis mins"], count=n) if "axis mins" in fields else None
    centred = fields.get("centerings", "").lower().split()
    for column, axis in enumerate(axes):
        affine[column, column] = spacing[axis]
        if lowest is not None:
            node = axis < len(centred) and centred[axis] == "node"
            affine[column, 3] = lowest[axis] + (0.0 if node else spacing[axis] / 2)
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _spacings(path: Path, fields: dict[str, str], n: int) -> NDArray[np.float64]:
    """Spacings along the axes; 1 where the header has none (``nan``)."""
    scale = _millimetres(fields.get("units", ""))
    if "spacings" not in fields and "axis mins" in fields and "axis maxs" in fields:
        extents = [numbers(path, key, fields[key], count=n) for key in ("axis maxs", "axis mins")]
        sizes = np.array(integers(path, "sizes", fields["sizes"], count=n))
        nodes = np.array((fields.get("centerings", "").lower().split() + ["cell"] * n)[:n]) == "node"
        steps: NDArray[np.float64] = (extents[0] - extents[1]) / np.maximum(sizes - nodes, 1) * scale
        return steps
    words = fields.get("spacings", " ".join(["nan"] * n)).split()
    known = " ".join("1" if word.lower() in ("nan", "none") else word for word in words)
    return numbers(path, "spacings", known, count=n) * scale


def _millimetres(units: str) -> float:
    """Millimetres per unit of an axis; a missing or unknown unit counts as millimetres."""
    names = {name.strip().lower() for name in re.findall(r'"([^"]*)"', units)} - {""}
    return _MICRONS.get(names.pop(), 1.0) if len(names) == 1 else 1.0


def _vectors(path: Path, key: str, text: str) -> list[NDArray[np.float64] | None]:
    """Vectors such as ``(1,0,0) (0,1,0) (0,0,1)``; ``None`` for ``none``, which marks an axis that is not spatial."""
    words = re.findall(r"\([^()]*\)|[^\s()]+", text[:10_000])
    return [
        numbers(path, key, word.strip("()").replace(",", " "), count=3) if word.startswith("(") else None
        for word in words
    ]


def _files(path: Path, fields: dict[str, str], listed: list[str], end: int) -> tuple[tuple[Path, ...], int, int]:
    """The files of the voxels, and lines and bytes to skip in each."""
    lines = integers(path, "line skip", fields.get("line skip", "0"), count=1)[0]
    offset = integers(path, "byte skip", fields.get("byte skip", "0"), count=1)[0]
    if lines < 0 or offset < -1:
        raise UnreadableImageError(
            path, f"the header skips {lines} lines and {offset} bytes; allowed are numbers from 0"
        )
    name = fields.get("data file")
    if name is None:
        if lines and offset >= 0:
            raise UnreadableImageError(
                path, "the header skips lines of its own file; lines can be skipped only in other files"
            )
        return (path,), 0, offset if offset < 0 else end + offset
    if listed or name.split()[:1] == ["LIST"]:
        return tuple(inside_folder(path, each) for each in listed), lines, offset
    if "%" in name:
        raise UnreadableImageError(path, f"its voxels are in {name[:80]!r}; allowed are one file and a LIST of files")
    return (inside_folder(path, name),), lines, offset
