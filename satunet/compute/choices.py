"""What may be chosen of where and how to compute, without torch: commands show it in their help."""

from __future__ import annotations

from typing import Literal

Precision = Literal["auto", "bfloat16", "float16", "float32"]
"""``auto`` is the rule of :mod:`satunet.compute.devices`; the others are taken as given."""

Engine = Literal["auto", "eager", "fused", "compile"]
"""See :mod:`satunet.network.engines`."""
