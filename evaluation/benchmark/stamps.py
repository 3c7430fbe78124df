"""Whether results of an earlier run of a benchmark still match today's files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from satunet.errors import SatunetError
from satunet.evaluation.benchmark.costs import read_object
from satunet.jobs.fresh import Stamp
from satunet.jobs.records import from_plain

STAMP = "stamp"
"""Key of the stamp in a JSON file beside a result."""


def is_fresh(note: Path, files: Sequence[Path], combined: Mapping[str, Any]) -> bool:
    """Whether the note beside a result says that it was made from these files and values.

    Args:
        note: JSON file with a stamp; if it is missing, damaged or of an earlier version, the result is stale.
        files: Input files, in the order of the stamp.
        combined: Values that they are combined with, name → plain value.
    """
    try:
        stamp = from_plain(read_object(note).get(STAMP), Stamp, source=note)
    except SatunetError:
        return False
    return stamp.why_stale(files, combined) is None
