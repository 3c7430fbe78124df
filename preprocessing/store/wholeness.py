"""Scans of a store that were checked before, so that a rerun need not read all of them again.

A rerun makes damaged scans again. To find them, it compares the files with the hashes in the record, except for files
that were whole before and still have the same size and times. Damage below the file system does not change times;
``satunet preprocess --verify`` reads everything, and lets the next run read the faulty scans again.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from satunet.jobs.files import read_json, write_json
from satunet.jobs.fresh import RACY_NS
from satunet.preprocessing.store.scans import ARRAY_ENDINGS, RecordHead, ScanRecord, is_whole

CHECKED_FILE = "checked.json"

_State = list[int]
"""Size of a file and its times of modification and of change, in nanoseconds."""


class CheckedScans:
    """The scans of a store that were found whole, with sizes and times of their files.

    Args:
        folder: The store.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            content = read_json(folder / CHECKED_FILE)
        except (OSError, ValueError):
            content = None
        known = content.get("scans") if isinstance(content, dict) else None
        self._known: dict[str, Any] = known if isinstance(known, dict) else {}
        self._whole: dict[str, list[_State]] = {}
        self._listed: dict[str, _State] | None = None

    @contextlib.contextmanager
    def listed(self) -> Iterator[None]:
        """Take sizes and times from one listing of the folder in this block, in which all scans are looked at."""
        self._listed = {}
        with os.scandir(self.folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):  # gone meanwhile, or a broken link
                    self._listed[entry.name] = _state_of(entry.stat())
        try:
            yield
        finally:
            self._listed = None

    def has_sizes(self, head: RecordHead) -> bool:
        """Whether the files of a scan have the sizes that its record says."""
        state = self._state(head.scan)
        sizes = [head.files.get(ending, (None,))[0] for ending in ARRAY_ENDINGS]
        return state is not None and len(head.files) == len(sizes) and [size for size, *_ in state] == sizes

    def is_whole(self, record: RecordHead | ScanRecord) -> bool:
        """Whether the files of a scan are undamaged; they are read only if size and times do not decide."""
        now = self._state(record.scan)
        if now is None or not (self._known.get(record.scan) == now or is_whole(self.folder, record)):
            return False
        self._whole[record.scan] = now
        return True

    def made(self, scan: str) -> None:
        """Note that a scan has just been written."""
        now = self._state(scan)
        if now is not None:
            self._whole[scan] = now

    def forget(self, scan: str) -> None:
        """Let the next run read a scan again."""
        self._known.pop(scan, None)
        self._whole.pop(scan, None)

    def save(self, *, keep: bool = False) -> None:
        """Save the scans that were found whole, except those whose times cannot be trusted yet (:data:`RACY_NS`).

        Args:
            keep: Whether to keep earlier entries of scans that were not checked.
        """
        settled = time.time_ns() - RACY_NS
        with self.listed():
            scans = {
                scan: state
                for scan, state in self._whole.items()
                if all(max(times) < settled for _, *times in state) and self._state(scan) == state
            }
        known = (self._known if keep else {}) | scans
        # Several threads look at scans; sorted, the file does not depend on which of them is first.
        write_json(self.folder / CHECKED_FILE, {"scans": dict(sorted(known.items()))}, sealed=True)

    def _state(self, scan: str) -> list[_State] | None:
        """The states of a scan's files except the record; ``None`` if one is missing."""
        names = [f"{scan}{ending}" for ending in ARRAY_ENDINGS]
        try:
            if self._listed is not None:
                return [self._listed[name] for name in names]
            return [_state_of((self.folder / name).stat()) for name in names]
        except (OSError, KeyError):
            return None


def _state_of(status: os.stat_result) -> _State:
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
