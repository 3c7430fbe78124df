"""Counts in sentences."""

from __future__ import annotations


def counted(count: int, one: str, several: str = "") -> str:
    """A number and what is counted: "1 dataset", "1,200 classes".

    Args:
        count: Number.
        one: Noun in the singular.
        several: Noun in the plural, if it is not the singular with an "s".
    """
    return f"{count:,} {one if count == 1 else several or one + 's'}"
