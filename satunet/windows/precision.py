"""Precision of a network in prediction: float16 on CUDA, and a wider type if the network overflows it.

On CUDA, float16 is as fast as bfloat16 and eight times as accurate, but its largest number is 65504. Networks with
norms stay far below that. A network that does not is detected at its first overflow, which makes the output non-finite;
this window and all later ones are computed in a wider precision.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from satunet.compute.devices import Precision, autocast_for, precision_for_prediction, wider_than_float16

logger = logging.getLogger(__name__)

_OVERFLOWED: weakref.WeakSet[Any] = weakref.WeakSet()
"""Networks whose activations overflow float16."""

Look = tuple[Tensor, Tensor]
"""(B, C, x, y, z) full-resolution features and (B, N, E) mask embeddings."""


def look_in(network: Any, device: torch.device, precision: Precision, run: Callable[[], Look]) -> Look:
    """Call ``run`` under autocast, and again in a wider precision if float16 overflows.

    Args:
        network: Network that ``run`` uses; it is remembered if it overflows.
        device: Device on which the network runs.
        precision: Requested precision; ``auto`` is float16 on CUDA.
        run: Function that computes the looks at some windows.
    """
    dtype = precision_for_prediction(device, precision)
    if dtype is not torch.float16:
        with autocast_for(device, _name(dtype)):
            return run()
    wider = wider_than_float16(device)
    if network not in _OVERFLOWED:
        with autocast_for(device, "float16"):
            found = run()
        if _finite(found):
            return found
    with autocast_for(device, _name(wider)):
        again = run()
    # If a wider precision does not help, the cause is not float16 but NaN in the scan, or broken weights.
    if network not in _OVERFLOWED and _finite(again):
        _OVERFLOWED.add(network)
        logger.warning(
            "the network's numbers are too large for float16; continuing in %s (--precision %s starts with it)",
            _name(wider),
            _name(wider),
        )
    return again


def _name(dtype: torch.dtype) -> Any:
    return str(dtype).removeprefix("torch.")


def _finite(found: Look) -> bool:
    """Whether all numbers are finite, judged by their sum, which takes one pass over a map and no memory."""
    return all(bool(torch.isfinite(part.sum(dtype=torch.float32))) for part in found)
