"""Manifests in a folder of results: whether a scan is done, and what was found in it."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from satunet.errors import SatunetError
from satunet.jobs.file_names import table_cell
from satunet.jobs.files import read_json, write_text
from satunet.jobs.fresh import FileState, Stamp
from satunet.jobs.records import MALFORMED, from_plain
from satunet.prediction.door.jobs import ScanJob
from satunet.prediction.options import Outputs
from satunet.prediction.results.places import STATISTICS, manifest_file

MANIFEST_VERSION = 6
_COLUMNS = (
    "scan", "prompt", "class", "status", "seen", "confidence", "absent", "left_out", "voxels", "volume_ml",
    "mean_intensity", "covered_ml", "modality", "file", "label", "doubts", "repaired", "note",
)  # fmt: skip


def why_not_done(output: Path, job: ScanJob, outputs: Outputs, combined: Mapping[str, Any]) -> str | None:
    """Reason why a scan has to be predicted; ``None`` if its result exists, is complete, and fits this scan and call.

    Args:
        output: Folder of all results.
        job: Job of the scan.
        outputs: Outputs to write.
        combined: Everything besides the scan that the result depends on, as in the stamp.
    """
    file = manifest_file(output, job.name, outputs.combine)
    if not file.is_file():
        return "there is no result yet"
    try:
        content = read_json(file)
        if content["version"] != MANIFEST_VERSION:
            return "written by another version"
        stale = from_plain(content["stamp"], Stamp, source=file).why_stale(job.scan.files, combined)
        if stale is not None:
            return stale
        wanted = [e["file"] for e in content["prompts"] if e.get("file")]
        missing = [name for name in wanted if name not in content["files"]]
        for name, state in content["files"].items():
            if not from_plain(state, FileState, source=file).is_of(file.parent / name):
                return f"{file.parent / name} is missing or damaged"
    except (OSError, SatunetError, *MALFORMED) as error:
        return f"{file} is damaged ({type(error).__name__})"
    return f"{missing[0]} is missing" if missing else None


def result_rows(output: Path, names: Sequence[str], combine: bool) -> list[dict[str, object]]:
    """Table of the results for people: one row per scan and prompt, from all manifests that exist.

    Returns:
        Rows with ``scan`` (if there are several scans), ``prompt``, ``class``, ``ml``, ``where`` (the slices of the file,
        counted from 1, or the reason why there is no mask), and ``confidence`` if it is known.
    """
    rows: list[dict[str, object]] = []
    for name in names:
        # Scans without a usable manifest are reported among the failures.
        with contextlib.suppress(OSError, *MALFORMED):
            entries = read_json(manifest_file(output, name, combine))["prompts"]
            shown: dict[str, object] = {"scan": name} if len(names) > 1 else {}
            rows += [shown | _row_of(entry) for entry in entries]
    return rows


def _row_of(entry: Mapping[str, Any]) -> dict[str, object]:
    kind = entry.get("class") or ""
    row: dict[str, object] = {"prompt": entry["prompt"], "class": "" if kind == entry["prompt"] else kind}
    voxels, box = entry.get("voxels"), entry.get("box")
    row["ml"] = "" if voxels is None else f"{entry['volume_ml']:,.1f}"
    if voxels is None:
        row["where"] = f"no mask: {entry.get('note') or entry['status']}"
    elif not voxels:
        row["where"] = _why_nothing(entry)
    else:
        row["where"] = f"slices {box[2][0] + 1} to {box[2][1]}" if box else ""
    if entry.get("confidence") is not None:
        row["confidence"] = f"{entry['confidence']:.2f}"
    if entry.get("instances"):
        count = len(entry["instances"])
        row["where"] = f"{row['where']}; {count} instance{'s' if count != 1 else ''}"
    if entry.get("doubts"):
        repaired = " (repaired)" if entry.get("repaired") else ""
        row["where"] = f"{row['where']}; doubtful: {', '.join(entry['doubts'])}{repaired}"
    return row


def _why_nothing(entry: Mapping[str, Any]) -> str:
    if entry.get("left_out"):
        return f"left out: {entry['left_out']}"
    return "covered by others" if entry.get("covered_ml") else "not seen"


def write_statistics(output: Path, names: Iterable[str], combine: bool) -> Path:
    """Write one row per scan and prompt from all manifests that exist, including those of earlier runs."""
    rows: list[dict[str, Any]] = []
    for name in names:
        with contextlib.suppress(OSError, *MALFORMED):  # a scan that failed has no rows
            content = read_json(manifest_file(output, name, combine))
            rows += [{"scan": name, "modality": content["modality"], **entry} for entry in content["prompts"]]
    write_table(output / STATISTICS, _COLUMNS, rows)
    return output / STATISTICS


def write_table(file: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as CSV; cells that a spreadsheet would evaluate as a formula are escaped."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(_plain_cells(row))
    write_text(file, text.getvalue())


def _plain_cells(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Cells that no spreadsheet evaluates as a formula."""
    return {
        key: "; ".join(map(str, value))
        if isinstance(value, list)
        else table_cell(value)
        if isinstance(value, str)
        else value
        for key, value in entry.items()
    }


def is_foreign(manifest: Path) -> bool:
    """Whether a JSON file is not from satunet, such as the files that DICOM converters write next to a scan."""
    try:
        content = read_json(manifest)
    except (OSError, ValueError):
        return False
    return not (isinstance(content, dict) and {"prompts", "stamp"} & set(content))


def files_of(manifest: Path) -> list[Path]:
    """Files that a manifest names, except those in other folders."""
    try:
        names = read_json(manifest)["files"]
        return [manifest.parent / name for name in names if Path(name).name == name]
    except (OSError, *MALFORMED):
        return []
