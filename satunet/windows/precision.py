"""In which precision a network looks at windows: float16 where it is best, something wider where a network overflows
it.

On CUDA, float16 is as fast as bfloat16 and has eight times its accuracy; but numbers end at 65504. Networks with norms
are far from that, and one that is not is found out in its first window: what overflows is not finite at the end. Then
it is looked at again, and from then on, in a wider precision.
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
"""Networks whose numbers float16 does not hold."""

Look = tuple[Tensor, Tensor]
"""(B, C, x, y, z) full-resolution features and (B, N, E) mask embeddings."""


def look_in(network: Any, device: torch.device, precision: Precision, run: Callable[[], Look]) -> Look:
    """What ``run`` gives under autocast; again in a wider precision where float16 does not hold it.

    Args:
        network: That ``run`` runs; remembered if it overflows.
        device: Device on which it runs.
        precision: Precision that was asked for; ``auto`` is float16 on CUDA.
        run: Looks at windows.
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
    # Where nothing helps, it was not float16: a scan with values that are no numbers, or broken weights.
    if network not in _OVERFLOWED and _finite(again):
        _OVERFLOWED.add(network)
        logger.warning(
            "the network's numbers are too large for float16; going on in %s (--precision %s says so from the start)",
            _name(wider),
            _name(wider),
        )
    return again


def _name(dtype: torch.dtype) -> Any:
    return str(dtype).removeprefix("torch.")


def _finite(found: Look) -> bool:
    """Whether all numbers are finite: their sum is, which takes one pass over a map and no memory."""
    return all(bool(torch.isfinite(part.sum(dtype=torch.float32))) for part in found)
