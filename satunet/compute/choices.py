"""Allowed precisions and engines, without importing torch, because the help of commands shows them."""

from __future__ import annotations

from typing import Literal

Precision = Literal["auto", "bfloat16", "float16", "float32"]
"""``auto`` follows the rule of :mod:`satunet.compute.devices`; the others are used as given."""

Engine = Literal["auto", "eager", "fused", "compile"]
"""Way to run a network, see :mod:`satunet.network.engines`."""
