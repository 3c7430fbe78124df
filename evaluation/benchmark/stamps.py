"""Whether what an earlier run of a benchmark left is still that of today's files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from satunet.errors import SatunetError
from satunet.evaluation.benchmark.costs import read_object
from satunet.jobs.fresh import Stamp
from satunet.jobs.records import from_plain

STAMP = "stamp"
"""Key under which a JSON file beside a result keeps what the result was made of."""


def is_fresh(note: Path, files: Sequence[Path], combined: Mapping[str, Any]) -> bool:
    """Whether a note beside a result says that it was made of these files and values.

    Args:
        note: JSON file with a stamp; one that is missing, damaged or of an earlier version makes the result stale.
        files: Input files, in the order of the stamp.
        combined: Values that they are combined with, name → plain value.
    """
    try:
        stamp = from_plain(read_object(note).get(STAMP), Stamp, source=note)
    except SatunetError:
        return False
    return stamp.why_stale(files, combined) is None
