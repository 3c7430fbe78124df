"""MetaImage headers (``.mha``, ``.mhd``) as ITK writes them, parsed strictly.

Keys are ITK's, with its synonyms. A header that contradicts itself is refused, and so are image types that satunet
cannot interpret. Geometry is converted from LPS to RAS.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satunet.errors import NotThreeDimensionalError, UnreadableImageError
from satunet.images.stored import MOST_AXES, Encoding, Stored, header_bytes, inside_folder, integers, numbers

_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_SYNONYMS = {
    "Position": "Offset",
    "Origin": "Offset",
    "Orientation": "TransformMatrix",
    "Rotation": "TransformMatrix",
    "ElementByteOrderMSB": "BinaryDataByteOrderMSB",
}
_MOST_FILES = 100_000


def read_metaimage(path: Path) -> Stored:
    """Read a MetaImage's header.

    Raises:
        UnreadableImageError: The file has no MetaImage header, or one that contradicts itself.
        NotThreeDimensionalError: Several values per voxel.
        MissingFileError: The file of its voxels is missing.
    """
    fields, offset, listed = _fields(path, header_bytes(path))
    n = integers(path, "NDims", _need(path, fields, "NDims"), count=1)[0]
    if not 1 <= n <= MOST_AXES:
        raise UnreadableImageError(path, f"the header's NDims is {n}; allowed are 1 to {MOST_AXES}")
    shape = integers(path, "DimSize", _need(path, fields, "DimSize"), count=n)
    dtype = _dtype(path, fields)
    channels = integers(path, "ElementNumberOfChannels", fields.get("ElementNumberOfChannels", "1"), count=1)[0]
    if channels != 1:
        raise NotThreeDimensionalError(path, f"{channels} values per voxel; allowed is one")
    encoding, packed = _encoding(path, fields)
    files, offset = _files(path, fields, listed, offset)
    return Stored(
        path=path,
        shape=shape,
        affine=_affine(path, fields, n),
        dtype=dtype,
        encoding=encoding,
        files=files,
        offset=offset,
        packed=packed,
        spaced="ElementSpacing" in fields or "ElementSize" in fields,
    )


def _fields(path: Path, content: bytes) -> tuple[dict[str, str], int, list[str]]:
    """Fields by name, the offset of the header's end in bytes, and the lines after it if they list files."""
    fields: dict[str, str] = {}
    start = 0
    while "ElementDataFile" not in fields:
        end = content.find(b"\n", start)
        end = len(content) if end < 0 else end
        line = content[start:end].decode("utf-8", errors="surrogateescape").strip()
        if start >= len(content) or len(fields) > 1000:
            raise UnreadableImageError(path, "not a readable MetaImage: its header has no ElementDataFile")
        start = end + 1
        if not line:
            continue
        key, mark, value = line.partition("=") if "=" in line else line.partition(":")
        if not mark:
            raise UnreadableImageError(path, f"not a readable MetaImage: its header has the line {line[:60]!r}")
        key, value = _SYNONYMS.get(key.strip(), key.strip()), value.strip()
        if fields.setdefault(key, value) != value:
            raise UnreadableImageError(path, f"the header gives {key} twice: {fields[key][:40]!r} and {value[:40]!r}")
    if fields.get("ObjectType", "Image") != "Image":
        raise UnreadableImageError(path, f"a MetaImage of type {fields['ObjectType'][:40]!r}; allowed is Image")
    listed = []
    if fields["ElementDataFile"].split()[:1] == ["LIST"]:
        listed = [line.strip() for line in content[start:].decode("utf-8", errors="surrogateescape").splitlines()]
    return fields, start, [name for name in listed if name]


def _need(path: Path, fields: dict[str, str], key: str) -> str:
    if key not in fields:
        raise UnreadableImageError(path, f"not a readable MetaImage: its header has no {key}")
    return fields[key]


def _true(path: Path, fields: dict[str, str], key: str, default: str) -> bool:
    value = fields.get(key, default).lower()
    if value not in ("true", "false", "1", "0"):
        raise UnreadableImageError(path, f"the header's {key} is {value[:40]!r}; allowed are True and False")
    return value in ("true", "1")


def _dtype(path: Path, fields: dict[str, str]) -> np.dtype[Any]:
    name = _need(path, fields, "ElementType")
    if name.endswith("_ARRAY"):
        raise NotThreeDimensionalError(path, f"voxels of type {name[:40]}; allowed is one value per voxel")
    if name not in _TYPES:
        raise UnreadableImageError(path, f"the header's ElementType is {name[:40]!r}; allowed are {', '.join(_TYPES)}")
    return np.dtype((">" if _true(path, fields, "BinaryDataByteOrderMSB", "False") else "<") + _TYPES[name])


def _encoding(path: Path, fields: dict[str, str]) -> tuple[Encoding, int | None]:
    if not _true(path, fields, "BinaryData", "True"):
        return "text", None
    if not _true(path, fields, "CompressedData", "False"):
        return "raw", None
    packed = integers(path, "CompressedDataSize", fields.get("CompressedDataSize", "0"), count=1)[0]
    return "zlib", packed if packed > 0 else None


def _affine(path: Path, fields: dict[str, str], n: int) -> NDArray[np.float64]:
    """Voxel index → RAS+ mm: row i of TransformMatrix is the direction of axis i."""
    # ITK may write ElementSize (extent of a voxel) beside ElementSpacing (distance of voxels); the spacing counts.
    key = "ElementSpacing" if "ElementSpacing" in fields else "ElementSize"
    spacing = numbers(path, key, fields[key], count=n) if key in fields else np.ones(n)
    directions = np.eye(n)
    if "TransformMatrix" in fields:
        directions = numbers(path, "TransformMatrix", fields["TransformMatrix"], count=n * n).reshape(n, n)
    origin = numbers(path, "Offset", fields["Offset"], count=n) if "Offset" in fields else np.zeros(n)
    affine = np.eye(4)
    m = min(n, 3)
    affine[:m, :m] = directions[:m, :m].T * spacing[:m]
    affine[:m, 3] = origin[:m]
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _files(path: Path, fields: dict[str, str], listed: list[str], end: int) -> tuple[tuple[Path, ...], int]:
    """The files of the voxels, and the offset of the voxels in each in bytes."""
    name = fields["ElementDataFile"]
    skip = integers(path, "HeaderSize", fields.get("HeaderSize", "0"), count=1)[0]
    if skip < -1:
        raise UnreadableImageError(path, f"the header's HeaderSize is {skip}; allowed are -1 and numbers from 0")
    if name.upper() == "LOCAL":
        return (path,), end if skip == 0 else skip
    if listed or name.split()[:1] == ["LIST"]:
        names = listed
    elif "%" in name:
        names = _pattern(path, name)
    else:
        names = [name]
    if not 1 <= len(names) <= _MOST_FILES:
        raise UnreadableImageError(path, f"its header names {len(names)} files; allowed are 1 to {_MOST_FILES}")
    return tuple(inside_folder(path, each) for each in names), skip


def _pattern(path: Path, text: str) -> list[str]:
    """Names such as ``slice%03d.raw 1 20 1``: a pattern, the first number, the last, and the step."""
    words = text.split()
    pattern, counts = words[0], integers(path, "ElementDataFile", " ".join(words[1:]) or "-", count=None)
    first, last, step = (*counts, 1)[:3] if len(counts) >= 2 else (0, -1, 1)
    digits = pattern.partition("%")[2].partition("d")[0]
    plain = pattern.count("%") == 1 and "d" in pattern.partition("%")[2] and (digits.isdigit() or not digits)
    if not plain or int(digits or 0) > 20 or step < 1 or not 0 <= last - first < _MOST_FILES:
        raise UnreadableImageError(path, f"the header's ElementDataFile is {text[:80]!r}; that names no files")
    return [pattern % number for number in range(first, last + 1, step)]
