"""Reading checkpoint files without running code from them, with one clear error for anything that is wrong."""

from __future__ import annotations

import hashlib
import importlib
import mmap
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from satunet.errors import ModelError
from satunet.network.config import NetworkConfig
from satunet.network.model import PromptedUNet

_SHOWN = 8  # number of keys in a message: a wrong checkpoint has hundreds


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a ``torch.save`` file onto the CPU without running code from it.

    nnU-Net's checkpoints contain numpy scalars in their training log; these types are allowed, others are refused
    (``torch.load(weights_only=True)``). Tensors are memory-mapped if the file's format allows it. A checkpoint is a ZIP
    archive with a CRC-32 for each member; torch does not verify it when it maps the file, so it is verified here.

    Raises:
        ModelError: The file does not exist, is truncated, is not a checkpoint, or holds objects other than data.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"{path}: no such checkpoint")
    if path.stat().st_size == 0:
        raise ModelError(f"{path}: the checkpoint is empty (0 bytes)")
    try:
        with torch.serialization.safe_globals(_numpy_types()):
            mapped = zipfile.is_zipfile(path)  # torch cannot map files of its format before version 1.6
            if mapped:
                check_archive(path)
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except ModelError:
        raise
    except Exception as error:  # UnpicklingError, RuntimeError of the zip reader, EOFError, KeyError, …
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        refused = "Unsupported" in str(error) or "GLOBAL" in str(error)
        why = "it holds Python objects other than weights and numbers" if refused else f"truncated or corrupt ({first})"
        raise ModelError(f"{path}: the checkpoint cannot be read: {why}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}: a checkpoint holds a dictionary, but this one holds a {type(content).__name__}")
    return content


def check_archive(path: Path) -> None:
    """Check that the content of a ZIP archive as ``torch.save`` writes it is undamaged.

    Raises:
        ModelError: A member of the archive does not match its checksum.
        zipfile.BadZipFile: The archive cannot be read.
    """
    from isal import isal_zlib

    with (
        zipfile.ZipFile(path) as archive,
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        memoryview(content) as view,
    ):
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED:
                with archive.open(member) as packed:  # reading it to the end checks it
                    while packed.read(1 << 20):
                        pass
                continue
            archive.open(member).close()  # raises if the member's own header contradicts the archive's directory
            start = member.header_offset
            names, extra = struct.unpack("<HH", view[start + 26 : start + 30])
            start += 30 + names + extra
            if isal_zlib.crc32(view[start : start + member.file_size]) != member.CRC:
                raise ModelError(f"{path}: damaged: the content of {member.filename} in it does not match its checksum")


def network_weights(checkpoint: Mapping[str, Any], *, source: Path | str) -> dict[str, Tensor]:
    """The network's tensors in a checkpoint with nnU-Net's layout, without the prefixes of DDP and ``torch.compile``.

    Raises:
        ModelError: The checkpoint has no network weights.
    """
    weights = checkpoint.get("network_weights")
    if not isinstance(weights, Mapping) or not weights:
        raise ModelError(f"{source}: no 'network_weights' in the checkpoint; it has {sorted(map(str, checkpoint))}")
    cleaned: dict[str, Tensor] = {}
    for key, value in weights.items():
        if not isinstance(value, Tensor):
            raise ModelError(f"{source}: {key!r} in 'network_weights' is a {type(value).__name__}, not a tensor")
        name = str(key)
        for prefix in ("_orig_mod.", "module.", "_orig_mod."):  # from torch.compile, DDP, or both
            name = name.removeprefix(prefix)
        cleaned[name] = value
    return cleaned


def load_weights(network: nn.Module, weights: Mapping[str, Tensor], *, source: Path | str) -> None:
    """Copy ``weights`` into ``network``; the tensors' names and shapes must be exactly those of the network.

    A network built on the device ``meta`` takes over the tensors instead of copying them.

    Raises:
        ModelError: Tensors are missing, superfluous, of another shape, or not finite; the message lists them.
    """
    expected = network.state_dict()
    missing = sorted(expected.keys() - weights.keys())
    extra = sorted(weights.keys() - expected.keys())
    common = sorted(expected.keys() & weights.keys())
    shapes = [
        f"{key} {tuple(weights[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in common
        if weights[key].shape != expected[key].shape
    ]
    broken = [key for key in common if weights[key].is_floating_point() and not bool(weights[key].isfinite().all())]
    faults = [
        f"{len(keys)} {what}: {_some(keys)}"
        for what, keys in (
            ("missing", missing),
            ("not part of this network", extra),
            ("of another shape", shapes),
            ("with NaN or infinite values", broken),
        )
        if keys
    ]
    if faults:
        raise ModelError(f"{source}: the weights do not fit the network of the plan; tensors " + "; ".join(faults))
    if any(tensor.is_meta for tensor in expected.values()):
        # Built without memory, the network takes the tensors themselves, cast to its own types.
        types = {key: tensor.dtype for key, tensor in expected.items()}
        network.load_state_dict({k: w.detach().to(types[k]) for k, w in weights.items()}, strict=True, assign=True)
    else:
        network.load_state_dict(dict(weights), strict=True)


def empty_network(config: NetworkConfig) -> PromptedUNet:
    """A network on the device ``meta``, without memory for its weights; :func:`load_weights` fills it."""
    with torch.device("meta"), _NoRandomNumbers():
        return PromptedUNet(config)


class _NoRandomNumbers(TorchFunctionMode):
    """Skips initialisations: on the device ``meta`` they have no effect but to import torch's compiler (about 1 s)."""

    _SKIPPED = frozenset({Tensor.normal_, Tensor.uniform_, Tensor.fill_, Tensor.zero_})

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Return the tensor unchanged instead of filling it, and an empty tensor instead of an identity matrix."""
        if func in self._SKIPPED or getattr(func, "__module__", "") == nn.init.__name__:
            return args[0] if args else (kwargs or {})["tensor"]
        if func is torch.eye:
            return torch.empty(args[0], args[0])
        return func(*args, **(kwargs or {}))


def hash_weights(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values, independent of the file they come from; 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for key in sorted(weights):
        tensor = weights[key].detach().cpu().contiguous()
        digest.update(f"{key}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _numpy_types() -> list[Any]:
    core: Any = importlib.import_module("numpy._core.multiarray")
    scalars = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")
    return [core.scalar, core._reconstruct, np.ndarray, np.dtype, *(type(np.dtype(s)) for s in scalars)]


def _some(keys: list[str]) -> str:
    rest = len(keys) - _SHOWN
    return ", ".join(keys[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
