"""The checker of types and shapes that signatures are checked by while tests run; see ``scripts/test``."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""A whole number is a float, as for every type checker."""
