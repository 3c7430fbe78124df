"""Stamps: stale when content changed, however well the change hides, and fresh when only the place did."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from satunet.errors import MissingFileError
from satunet.jobs import fresh
from satunet.jobs.fresh import RACY_NS, FileState, Stamp, content_hash
from satunet.jobs.records import load_record, save_record


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    file = tmp_path / "a" / "scan.nii.gz"
    file.parent.mkdir()
    file.write_bytes(b"voxels of one patient")
    return file


def settled(stamp: Stamp) -> Stamp:
    """The stamp as if it had been made long after its files were written."""
    later = time.time_ns() + 2 * fresh.RACY_NS
    return replace(stamp, files=tuple(replace(f, seen_ns=later) for f in stamp.files))


def test_an_untouched_file_is_fresh_without_being_read(scan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stamp = settled(Stamp.of([scan], {"plan": "x"}))
    monkeypatch.setattr(fresh, "content_hash", lambda path: pytest.fail("read again"))
    assert stamp.why_stale([scan], {"plan": "x"}) is None


def test_what_was_combined_is_named(scan: Path) -> None:
    stamp = Stamp.of([scan], {"plan": "x", "prompts": ("liver",), "modality": None})
    assert stamp.why_stale([scan], {"plan": "x", "prompts": ["liver"], "modality": None}) is None
    assert stamp.why_stale([scan], {"plan": "y", "prompts": ["liver"]}) == "made with another plan"
    told = stamp.why_stale([scan], {"prompts": ["spleen"], "modality": "ct", "plan": "x"})
    assert told == "made with another modality, prompts"


def test_a_replaced_file_is_stale_even_with_its_size_and_times(scan: Path) -> None:
    stamp, status = settled(Stamp.of([scan])), scan.stat()
    scan.write_bytes(b"voxels of two patient")
    os.utime(scan, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert scan.stat().st_size == status.st_size and scan.stat().st_mtime_ns == status.st_mtime_ns
    assert stamp.why_stale([scan]) == f"{scan} is not what the result was made from"


def test_a_file_written_in_the_same_tick_as_its_stamp_is_read_again(
    scan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamp = Stamp.of([scan])
    scan.write_bytes(b"voxels of two patient")
    now = scan.stat()
    frozen = replace(stamp.files[0], time_ns=now.st_mtime_ns, change_ns=now.st_ctime_ns)  # as on a coarse clock
    assert not frozen.is_of(scan)


def test_a_moved_or_touched_file_is_fresh_and_another_of_its_name_is_not(scan: Path, tmp_path: Path) -> None:
    stamp = settled(Stamp.of([scan]))
    os.utime(scan)
    assert stamp.why_stale([scan]) is None
    (tmp_path / "b").mkdir()
    moved = Path(shutil.move(scan, tmp_path / "b" / "scan.nii.gz"))
    assert stamp.why_stale([moved]) is None
    scan.write_bytes(b"voxels of 2nd patient")
    assert stamp.why_stale([scan]) is not None


def test_missing_and_more_files(scan: Path, tmp_path: Path) -> None:
    stamp = Stamp.of([scan])
    assert stamp.why_stale([scan, scan]) == "made from 1 files, but there are 2 now"
    assert stamp.why_stale([tmp_path / "gone"]) is not None
    assert stamp.why_stale([tmp_path]) is not None
    with pytest.raises(MissingFileError, match="no such file"):
        Stamp.of([tmp_path / "gone"])
    with pytest.raises(MissingFileError, match="not a regular file"):
        Stamp.of([tmp_path])


def test_it_is_a_record_and_its_digest_does_not_depend_on_the_place(scan: Path, tmp_path: Path) -> None:
    stamp = Stamp.of([scan], {"options": {"b": 1, "a": (1, 2)}})
    save_record(tmp_path / "stamp.json", stamp)
    assert load_record(tmp_path / "stamp.json", Stamp) == stamp
    copy = Path(shutil.copy(scan, tmp_path / "copy"))
    assert Stamp.of([copy], {"options": {"a": [1, 2], "b": 1}}).digest == stamp.digest
    copy.write_bytes(b"other")
    assert Stamp.of([copy], {"options": {"a": [1, 2], "b": 1}}).digest != stamp.digest


def test_the_hash_is_sha256(tmp_path: Path) -> None:
    content = os.urandom((1 << 20) + 17)
    (tmp_path / "f").write_bytes(content)
    assert content_hash(tmp_path / "f") == hashlib.sha256(content).hexdigest() == FileState.of(tmp_path / "f").sha256


def test_files_that_are_not_read_are_judged_by_their_times_once_these_can_be_trusted(tmp_path: Path) -> None:
    file = tmp_path / "scan"
    file.write_bytes(b"abc")
    young = Stamp.of([file], read=False)
    assert young.files[0].sha256 == content_hash(file)  # another write could have the same times
    assert young.why_stale([file]) is None
    time.sleep(RACY_NS / 1e9 + 0.1)
    settled = Stamp.of([file], read=False)
    assert settled.files[0].sha256 == ""
    assert settled.is_untouched([file])
    assert settled.renewed([file]) == settled
    assert Stamp.of([file]).files[0].sha256 == content_hash(file), "files are read where nothing else is said"
    assert FileState.of(file).sha256 == content_hash(file)
    os.utime(file)
    assert "is not what the result was made from" in str(settled.why_stale([file]))
    assert young.why_stale([file]) is None
    assert not young.is_untouched([file])
    assert Stamp.of([file]).digest == young.digest


def test_equal_files_have_equal_states_whenever_they_are_seen(tmp_path: Path) -> None:
    file = tmp_path / "scan"
    file.write_bytes(b"abc")
    time.sleep(RACY_NS / 1e9 + 0.1)
    first = Stamp.of([file])
    time.sleep(0.05)
    assert first.files[0].seen_ns == Stamp.of([file]).files[0].seen_ns


def test_what_is_gone_longer_or_no_file_is_not_the_file_any_more(scan: Path) -> None:
    state = FileState.of(scan, read=True)
    assert state.is_of(scan)
    scan.write_bytes(scan.read_bytes() + b"!")
    assert not state.is_of(scan)
    scan.unlink()
    assert not state.is_of(scan)
    scan.mkdir()
    assert not state.is_of(scan)


def test_another_folder_under_the_same_name_is_another_place(scan: Path, tmp_path: Path) -> None:
    other, link = tmp_path / "b", tmp_path / "link"
    other.mkdir()
    os.link(scan, other / scan.name)  # equal in all that times and sizes say
    link.symlink_to(scan.parent)
    known = settled(Stamp.of([link / scan.name]))
    assert known.is_untouched([link / scan.name]) and known.is_untouched([scan])
    link.unlink()
    link.symlink_to(other)
    assert not known.is_untouched([link / scan.name])
    (other / "again.nii.gz").symlink_to(scan)
    assert known.is_untouched([other / "again.nii.gz"])
    (other / "again.nii.gz").unlink()
    (other / "again.nii.gz").symlink_to(other / scan.name)
    assert not known.is_untouched([other / "again.nii.gz"])


def test_a_result_of_no_files_has_a_stamp_of_none() -> None:
    assert Stamp().files == Stamp.of([]).files == ()
    assert Stamp().why_stale([]) is None
