"""Compressed frames, unpacked in a separate process: malformed bytes may crash or hang the codecs (C).

The process is this module run as a program. It reads a request (JSON) and the packed frames from its standard input and
writes the unpacked ones to its standard output.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_CODECS = {
    "1.2.840.10008.1.2.4.50": "jpeg8",
    "1.2.840.10008.1.2.4.51": "jpeg8",
    "1.2.840.10008.1.2.4.57": "jpeg8",
    "1.2.840.10008.1.2.4.70": "jpeg8",
    "1.2.840.10008.1.2.4.80": "jpegls",
    "1.2.840.10008.1.2.4.81": "jpegls",
    "1.2.840.10008.1.2.4.90": "jpeg2k",
    "1.2.840.10008.1.2.4.91": "jpeg2k",
    "1.2.840.10008.1.2.5": "rle",
}
"""Transfer syntax → codec of imagecodecs."""
_ROOM = 4 << 30
"""Bytes of address space for Python and the codecs, in addition to the frames."""
_SECONDS = 60.0
_SECONDS_PER_VOXEL = 1e-6


def unpack(syntax: str, frames: Sequence[bytes], shape: tuple[int, int], allocated: int) -> list[NDArray[Any]]:
    """Unpack frames.

    Args:
        syntax: Transfer syntax UID.
        frames: Compressed frames.
        shape: Expected (rows, columns) of each frame.
        allocated: Allocated bits per pixel, 8 or 16.

    Returns:
        Stored numbers of each frame, (rows, columns), unsigned.

    Raises:
        ValueError: An unknown syntax, or frames that cannot be unpacked.
    """
    if syntax not in _CODECS:
        from pydicom.uid import UID

        raise ValueError(f"the compression {UID(syntax).name} is not known; convert the file with another tool first")
    if allocated not in (8, 16):
        raise ValueError(f"{allocated} bits are allocated for a compressed pixel; allowed are 8 and 16")
    request = {"codec": _CODECS[syntax], "shape": shape, "bytes": allocated // 8, "sizes": [len(f) for f in frames]}
    size = math.prod(shape) * len(frames)
    try:
        done = subprocess.run(
            [sys.executable, __file__],  # this file alone: neither satunet nor nibabel is imported there
            input=b"".join((json.dumps(request).encode(), b"\n", *frames)),
            capture_output=True,
            timeout=_SECONDS + _SECONDS_PER_VOXEL * size,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"unpacking them took more than {error.timeout:.0f} s") from error
    if done.returncode or len(done.stdout) != size * allocated // 8:
        told = done.stderr.decode(errors="replace").strip().splitlines()
        raise ValueError(told[-1] if told else f"the process that unpacks them ended with {done.returncode}")
    values = np.frombuffer(done.stdout, dtype=f"<u{allocated // 8}")
    return list(values.reshape(len(frames), *shape))


def _decode(codec: str, frame: bytes, shape: Sequence[int], size: int) -> NDArray[Any]:
    import imagecodecs

    if codec == "rle":
        return np.frombuffer(imagecodecs.dicomrle_decode(frame, np.dtype(f"<u{size}")), dtype=f"<u{size}")
    array: NDArray[Any] = getattr(imagecodecs, f"{codec}_decode")(frame)
    if list(array.shape) != list(shape):
        raise ValueError(f"a frame has the shape {array.shape}; the header says {tuple(shape)}")
    if array.dtype.kind not in "iu" or array.dtype.itemsize > size:
        raise ValueError(f"a frame has pixels of type {array.dtype}; the header says {8 * size} bits")
    return array.astype(f"<i{size}" if array.dtype.kind == "i" else f"<u{size}")


def _limit_memory(wanted: int) -> None:
    """Limit the memory of this process to the known size of the frames: a codestream may claim any size."""
    if sys.platform != "win32":
        import resource

        limit = _ROOM + 8 * wanted
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def _main() -> int:
    source = sys.stdin.buffer
    request = json.loads(source.readline())
    _limit_memory(sum(request["sizes"]) + math.prod(request["shape"]) * request["bytes"])
    frames = [source.read(size) for size in request["sizes"]]
    try:
        for frame in frames:
            array = _decode(request["codec"], frame, request["shape"], request["bytes"])
            sys.stdout.buffer.write(np.ascontiguousarray(array).tobytes())
    except Exception as error:
        print(str(error) or type(error).__name__, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main())
