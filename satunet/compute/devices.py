"""Device and precision: one rule for training, and one exception for prediction.

Training on CUDA uses bfloat16 if the GPU has it, otherwise float16. Prediction on CUDA uses float16, which is as fast
and has an eighth of the rounding errors: gradients need bfloat16's range, normalised feature maps do not. A CPU uses
bfloat16 only if it has instructions for it, because emulated bfloat16 is several times slower than float32. Apple's MPS
uses float32. The environment variable ``SATUNET_PRECISION`` overrides this rule: it sets what ``auto`` means in this
process and those that it starts.
"""

from __future__ import annotations

import contextlib
import functools
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from satunet.compute.choices import Precision as Precision
from satunet.errors import UserError

if TYPE_CHECKING:  # importing torch takes a second, and the help of commands needs only the name Precision
    import torch

PRECISION_VARIABLE = "SATUNET_PRECISION"


def pick_device(name: str | torch.device = "auto") -> torch.device:
    """The device with this name; ``auto`` prefers CUDA, then MPS, then the CPU.

    Raises:
        UserError: torch does not know the name, or this machine does not have the device.
    """
    import torch

    if isinstance(name, str) and name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if _has_mps() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device {name!r}; allowed are auto, cuda, cuda:<number>, mps, cpu") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device {name!r} was asked for, but torch {torch.__version__} sees {_cuda_devices()}")
    if device.type == "mps" and not _has_mps():
        raise UserError("device 'mps' was asked for, but this machine has none")
    return device


def precision_for(device: torch.device, amp: Precision = "auto") -> torch.dtype:
    """Data type of convolutions and matrix products on ``device``.

    Raises:
        UserError: ``amp`` or ``SATUNET_PRECISION`` is not in :data:`Precision`.
    """
    import torch

    where = "precision"
    if amp == "auto":
        where, amp = PRECISION_VARIABLE, os.environ.get(PRECISION_VARIABLE) or "auto"  # type: ignore[assignment]
    if amp not in get_args(Precision):
        raise UserError(f"{where} {amp!r}; allowed are {', '.join(get_args(Precision))}")
    if amp != "auto":
        chosen: torch.dtype = getattr(torch, amp)
        return chosen
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu" and cpu_has_bfloat16():
        return torch.bfloat16
    return torch.float32


def precision_for_prediction(device: torch.device, amp: Precision = "auto") -> torch.dtype:
    """As :func:`precision_for`, but ``auto`` is float16 on CUDA, where :mod:`satunet.windows.precision` notices
    overflow.

    Raises:
        UserError: As for :func:`precision_for`.
    """
    if amp == "auto" and device.type == "cuda" and not os.environ.get(PRECISION_VARIABLE):
        amp = "float16"
    return precision_for(device, amp)


def wider_than_float16(device: torch.device) -> torch.dtype:
    """The fastest precision on ``device`` that can represent numbers above 65504."""
    import torch

    native = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else cpu_has_bfloat16()
    return torch.bfloat16 if native and device.type in ("cuda", "cpu") else torch.float32


def autocast_for(device: torch.device, amp: Precision = "auto") -> AbstractContextManager[object]:
    """Context in which the network runs on ``device``: autocast to :func:`precision_for`, or nothing for float32."""
    import torch

    dtype = precision_for(device, amp)
    if dtype is torch.float32:
        # Not enabled=False, which would switch off an autocast that the caller opened.
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


@functools.cache
def cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 natively (AVX512-BF16 or AMX on x86, BF16 on ARM)."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False  # not Linux: float32 is correct everywhere, at worst slower
    flags = next((line for line in text.splitlines() if line.lower().startswith(("flags", "features"))), "")
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags.lower().split()))


def _has_mps() -> bool:
    import torch

    return bool(torch.backends.mps.is_available())


def _cuda_devices() -> str:
    import torch

    count = torch.cuda.device_count()
    return f"{count} CUDA device{'' if count == 1 else 's'}"
