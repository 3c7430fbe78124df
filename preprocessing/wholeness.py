"""Which scans of a store were found whole, so that a rerun need not read all of it again.

A rerun makes again what is damaged. To know that, it reads the files of a scan and compares them with the hashes in the
record, but for those that were found whole before and have the size and times that they had then. Damage beneath the file
system leaves times alone: ``satunet preprocess --verify`` reads everything, and has the next run read what it found.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from satunet.jobs.files import read_json, write_json
from satunet.jobs.fresh import RACY_NS
from satunet.preprocessing.store import ScanRecord, is_whole, scan_files

CHECKED_FILE = "checked.json"


class CheckedScans:
    """What is known of the scans of a store.

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
        self._whole: dict[str, list[list[int]]] = {}

    def is_whole(self, record: ScanRecord) -> bool:
        """Whether the files of a scan hold what was written; they are read where size and times do not tell."""
        now = self._state(record.scan)
        if now is None or not (self._known.get(record.scan) == now or is_whole(self.folder, record)):
            return False
        self._whole[record.scan] = now
        return True

    def made(self, scan: str) -> None:
        """Take in that a scan was written a moment ago."""
        now = self._state(scan)
        if now is not None:
            self._whole[scan] = now

    def forget(self, scan: str) -> None:
        """Have a scan read again by the next run."""
        self._known.pop(scan, None)
        self._whole.pop(scan, None)

    def save(self, *, keep: bool = False) -> None:
        """Write down what was found whole; not what may still change without its times telling (:data:`RACY_NS`).

        Args:
            keep: Whether what was known before stays, for scans that were not asked for.
        """
        settled = time.time_ns() - RACY_NS
        scans = {
            scan: state
            for scan, state in self._whole.items()
            if all(max(times) < settled for _, *times in state) and self._state(scan) == state
        }
        write_json(self.folder / CHECKED_FILE, {"scans": (self._known if keep else {}) | scans}, sealed=True)

    def _state(self, scan: str) -> list[list[int]] | None:
        """Size and times (nanoseconds) of a scan's files but the record; ``None`` where one is missing."""
        try:
            found = [file.stat() for file in scan_files(self.folder, scan)[:3]]
        except OSError:
            return None
        return [[status.st_size, status.st_mtime_ns, status.st_ctime_ns] for status in found]
