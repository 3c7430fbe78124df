"""What a folder holds, without what differs from run to run: times, and how long something took."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from satunet.preprocessing.store.index import mapped_arrays
from satunet.preprocessing.store.scans import INDEX

_VOLATILE = re.compile(
    r"^(content_sha256|sums|inputs|source|rates|seconds|threads|date|time_ns|change_ns|seen_ns|stamp|timestamps|memory_bytes|seconds_per_scan|seconds_per_case|"
    r"started|notes|files|throughput\w*|scans_per_second|\w*_seconds|\w*_timestamps)$"
)
"""Keys of JSON files; ``stamp`` and ``files`` hold times of change, and hashes of files that hold them; ``threads`` is a cost of
predictions, which is unknown of those that a killed run made."""
_NO_RESULT = re.compile(
    r"(\.log|checked\.json|training_log_.*\.txt|progress\.png|\.lock|report\.html|report\.md|runs\.json|costs\.csv|"
    r"events\.out\.tfevents.*)$"
)
"""Files whose content tells about the run, times among it."""


def tree(folder: Path) -> dict[str, str]:
    """Path → digest of what a file says, of all files below a folder; left-over temporary folders as well."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir():
            if path.name.startswith(".tmp-"):
                found[f"{name}/"] = "folder"
        elif not _NO_RESULT.search(path.name):
            found[name] = digest(path)
    return found


def temporary(folder: Path) -> list[str]:
    """What writers left half-written."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob(".tmp-*"))


def differences(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    """Files that are missing, additional or other, a phrase each."""
    told = [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    told += [f"{name} is additional" for name in sorted(found.keys() - expected.keys())]
    return told + [f"{n} differs" for n in sorted(expected.keys() & found.keys()) if expected[n] != found[n]]


def digest(path: Path) -> str:
    """Digest of what a file says."""
    content = path.read_bytes()
    try:
        if path.suffix == ".json":
            content = _told(json.loads(content))
        elif path.suffix == ".jsonl":
            content = b"\n".join(_told(json.loads(line)) for line in content.splitlines())
        elif path.suffix == ".gz":
            content = gzip.decompress(content)
        elif path.suffix == ".pth":
            content = hashlib.sha256(b"".join(_pieces(_checkpoint(path)))).digest()
        elif path.name == INDEX:  # but for the hashes of records, which hold times
            found = mapped_arrays(path)
            assert found is not None, "an index that does not fit"
            rows, labels = found
            content = repr([(rows[name].tolist(), name) for name in rows.dtype.names if name != "record"]).encode()
            content += labels.tobytes()
        elif path.suffix == ".safetensors":  # metadata come in any order
            end = 8 + int.from_bytes(content[:8], "little")
            content = _told(json.loads(content[8:end])) + content[end:]
    except Exception as error:
        return f"broken: {error}"
    return hashlib.sha256(content).hexdigest()


def _told(value: Any) -> bytes:
    return json.dumps(_lasting(value), sort_keys=True).encode()


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        if {"job", "done", "already_done"} <= value.keys():  # a summary: which run did an item is no result
            value = {**value, "done": sorted([*value["done"], *value["already_done"]])}
            del value["already_done"]
        if {"preprocessing", "scans"} <= value.keys():  # a store's manifest: hashes of records, which hold times
            value = {**value, "scans": sorted(value["scans"])}
        return {k: _lasting(v) for k, v in value.items() if not _VOLATILE.match(k)}
    return [_lasting(v) for v in value] if isinstance(value, list) else value


def _checkpoint(path: Path) -> Any:
    import torch

    return torch.load(path, map_location="cpu", weights_only=False)


def _pieces(value: Any) -> Iterator[bytes]:
    import numpy as np
    import torch

    if isinstance(value, torch.Tensor):
        yield value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, np.ndarray):
        yield value.tobytes()
    elif isinstance(value, dict):
        for key, member in value.items():
            if not re.search(r"timestamps|^logging$|seconds|^run$", str(key)):
                yield str(key).encode()
                yield from _pieces(member)
    elif isinstance(value, (list, tuple)):
        for member in value:
            yield from _pieces(member)
    else:
        yield repr(value).encode()
