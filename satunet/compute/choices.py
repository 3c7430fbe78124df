"""Choices of where and how to compute, without importing torch, because the help of commands shows them."""

from __future__ import annotations

from typing import Literal

Precision = Literal["auto", "bfloat16", "float16", "float32"]
"""``auto`` follows the rule of :mod:`satunet.compute.devices`; the others are used as given."""

Engine = Literal["auto", "eager", "fused", "compile"]
"""See :mod:`satunet.network.engines`."""
