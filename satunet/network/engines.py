"""Engines: ways to run a trained network; ``auto`` takes the fastest that works. Results agree within rounding.

======== ========================================================= ==============================================
engine   how the network is run                                    where ``auto`` uses it
======== ========================================================= ==============================================
fused    CPU: :mod:`satunet.network.cpu.fused`, which needs no     CPU, except in float16; CUDA, where it works
         compiler; CUDA: :mod:`satunet.network.gpu`
compile  CPU: as fused, with the last step of norms compiled by    nowhere: only on request
         ``torch.compile``; GPU: the whole backbone compiled,
         channels last
eager    the modules one by one, under autocast                    elsewhere
======== ========================================================= ==============================================
"""

from __future__ import annotations

import copy
import functools
import logging
import os
import shutil
from pathlib import Path
from typing import Any, TypeVar, get_args

import torch
from torch import Tensor, nn

from satunet.compute.choices import Engine as Engine
from satunet.compute.devices import Precision, precision_for
from satunet.errors import UserError
from satunet.network.backbone import UNet, use_channels_last, use_cpu_training
from satunet.network.cpu.fused import FusedUNet
from satunet.network.cpu.norms import Norm, scale_
from satunet.network.gpu import trouble

logger = logging.getLogger(__name__)

Network = TypeVar("Network", bound=nn.Module)

_ROWS_AT_ONCE = 1 << 14
"""Number of voxels scaled at once if compilation failed, so that float32 temporaries stay small."""


def accelerate(
    network: nn.Module,
    device: torch.device,
    *,
    engine: Engine = "auto",
    precision: Precision = "auto",
    cache_dir: Path | None = None,
) -> nn.Module:
    """The network on ``device``, prepared for fast prediction; weights are shared with the given one where possible.

    Args:
        network: Network in evaluation mode. A network whose backbone is not satunet's is only moved.
        device: Device on which the network will run.
        engine: Engine; see the table above.
        precision: Precision, as in :mod:`satunet.compute.devices`.
        cache_dir: Folder for compiled kernels; satunet's cache folder if not given.

    Raises:
        UserError: The engine does not exist, or cannot run on the device.
    """
    if engine not in get_args(Engine):
        raise UserError(f"engine {engine!r}; allowed are {', '.join(get_args(Engine))}")
    chosen = choose_engine(device, engine)
    network = network.to(device)
    backbone: Any = getattr(network, "backbone", None)
    if not isinstance(backbone, UNet):
        return network
    if chosen == "eager":
        return network
    if device.type == "cuda" and chosen == "fused":
        use_channels_last(network)
        return network
    if device.type != "cpu":
        # Channels last only here: unlike the compiled norm, torch's own copies to the usual layout and back.
        network = network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        return _with_backbone(network, torch.compile(backbone))
    dtype = precision_for(device, precision)
    if dtype is torch.float16:
        if engine == "auto":
            return network
        raise UserError(f"engine {engine!r} computes in float32 or bfloat16 on a CPU; for float16, take 'eager'")
    norm = compiled_norm(cache_dir) if chosen == "compile" else None
    return _with_backbone(network, FusedUNet(backbone, dtype, norm))


def for_training(network: Network, device: torch.device) -> Network:
    """The network on ``device``, with the memory layout and blocks that make training steps fastest there."""
    network = network.to(device)
    if device.type == "cpu":
        use_cpu_training(network)
    if device.type == "cuda" and choose_engine(device, "auto") == "fused":
        use_channels_last(network)
    return network


def choose_engine(device: torch.device, engine: Engine) -> Engine:
    """The engine to use: ``auto`` is resolved, and ``compile`` and ``fused`` fall back if something is missing.

    Raises:
        UserError: The engine cannot run on the device.
    """
    if engine == "fused" and device.type not in ("cpu", "cuda"):
        raise UserError(
            f"engine 'fused' runs on a CPU or CUDA, not on {device}; allowed there are auto, eager, compile"
        )
    if engine == "auto" and device.type not in ("cpu", "cuda"):
        return "eager"
    if engine in ("auto", "fused"):
        reason = trouble(device) if device.type == "cuda" else None
        if reason is None:
            return "fused"
        _say_eager(device, reason)
        return "eager"
    if engine == "compile" and device.type == "cpu" and compiler() is None:
        logger.warning(
            "engine 'compile' needs a C++ compiler, and there is none (g++, clang++, or the one that $CXX names); "
            "continuing with 'fused', whose results are the same"
        )
        return "fused"
    return engine


@functools.cache
def _say_eager(device: torch.device, reason: str) -> None:
    logger.warning("engine 'fused' does not run on %s (%s); continuing with 'eager', which is slower", device, reason)


def compiler() -> str | None:
    """The C++ compiler that torch would use; ``None`` if there is none."""
    named = os.environ.get("CXX")
    return next((found for name in (named, "g++", "clang++") if name and (found := shutil.which(name))), None)


def compiled_norm(cache_dir: Path | None = None) -> Norm:
    """A compiled :class:`satunet.network.cpu.norms.Norm`; if compilation fails, it warns and uses the ordinary one.

    Statistics are not compiled: torch's own code is as fast, and compiled code holds the GIL, which makes threads wait.
    """
    from satunet.jobs.cache import cache_dir as default_cache_dir

    # Not torch's default folder below /tmp, which does not survive a restart.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str((cache_dir or default_cache_dir()) / "inductor"))
    compiled = torch.compile(_scale_, dynamic=True)
    works = True

    def run(rows: Tensor, scale: Tensor, offset: Tensor, negative_slope: float | None) -> None:
        nonlocal works
        if works:
            try:
                compiled(rows, scale, offset, 1.0 if negative_slope is None else negative_slope)
                return
            except Exception as error:  # the compiler, its headers, a full disk: there are countless causes
                works = False
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                logger.warning("torch.compile failed (%s); continuing with the engine 'fused'", reason)
        for part in rows.split(_ROWS_AT_ONCE):
            scale_(part, scale, offset, negative_slope)

    return Norm(scale=run, in_pieces=False)


def _scale_(rows: Tensor, scale: Tensor, offset: Tensor, negative_slope: float) -> None:
    """:func:`satunet.network.cpu.norms.scale_`; when compiled, one loop over memory."""
    normalized = rows.float() * scale + offset
    rows.copy_(torch.where(normalized > 0, normalized, normalized * negative_slope))


def _with_backbone(network: nn.Module, backbone: Any) -> nn.Module:
    """A shallow copy of the network with another backbone; everything else is shared."""
    changed = copy.copy(network)
    changed._modules = dict(network._modules)
    changed._modules["backbone"] = backbone
    return changed
