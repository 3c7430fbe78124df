from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from satunet.errors import DiskFullError, MissingFileError, ScanError
from satunet.jobs import leftovers, progress
from satunet.jobs.files import (
    atomic_folder,
    atomic_path,
    mask_file_name,
    only_writer,
    read_json,
    write_json,
    write_text,
)
from satunet.jobs.progress import JobSummary, prints_to_log, progress_bar, run_parallel


def test_without_a_terminal_the_log_tells_now_and_then_how_far_a_job_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One night of predictions with its output in a file: some lines, the first soon, not one per scan."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with caplog.at_level(logging.INFO, "satunet"), progress_bar("Predicting", 1000) as advance:
        for number in range(1000):
            now[0] += 20
            advance(0, f"scan {number}: 1/2 windows")
            now[0] += 16
            advance(note=f"scan {number}")
    lines = [r.getMessage() for r in caplog.records]
    assert lines[0] == "Predicting: 2 of 1000 in 72 s, about 10.0 h left (scan 1)"
    assert 36 * 1000 / 900 < len(lines) < 36 * 1000 / 900 + 8
    assert lines[-1] == "Predicting: 1000 of 1000 in 36000.0 s"
    with caplog.at_level(logging.INFO, "satunet"), progress_bar("Reading", None) as advance:
        now[0] += 200
        advance()
    assert caplog.records[-2].getMessage() == "Reading: 1 in 3 min"


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "sub" / "a.txt"
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise RuntimeError
    assert list((tmp_path / "sub").iterdir()) == []
    with atomic_path(target) as temporary:
        assert temporary.name.endswith("a.txt")
        temporary.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole"
    assert [p.name for p in target.parent.iterdir()] == ["a.txt"]


def test_an_old_file_survives_a_failed_write(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    write_json(target, {"x": 1})
    with pytest.raises(TypeError):
        write_json(target, {"x": object()})
    assert read_json(target) == {"x": 1}


def test_new_files_have_the_rights_of_new_files(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", 1)
    (tmp_path / "b").write_text("")
    usual = (tmp_path / "b").stat().st_mode
    assert (tmp_path / "a.json").stat().st_mode == usual
    with atomic_path(tmp_path / "c.safetensors") as temporary:  # whose library makes it private
        save_file({"a": np.zeros(3)}, temporary)
    with atomic_folder(tmp_path / "folder") as folder:
        (folder / "in").mkdir()
        save_file({"a": np.zeros(3)}, folder / "in" / "d.safetensors")
    assert (tmp_path / "c.safetensors").stat().st_mode == usual
    assert (tmp_path / "folder" / "in" / "d.safetensors").stat().st_mode == usual
    assert (tmp_path / "folder" / "in").stat().st_mode & 0o111


def test_json_understands_numpy_and_says_which_file_is_none(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": np.float32(0.5), "b": np.arange(3), "c": (1, 2), "d": Path("x"), "e": {2, 1}})
    assert read_json(tmp_path / "a.json") == {"a": 0.5, "b": [0, 1, 2], "c": [1, 2], "d": "x", "e": [1, 2]}
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(ValueError, match=r"b\.json"):
        read_json(tmp_path / "b.json")


@pytest.mark.parametrize("name", ["left kidney", "../../etc/passwd", "a/b", "L5 (vertebra)", "Ü", "..", "C:\\x"])
def test_mask_names_stay_in_their_folder(name: str) -> None:
    safe = mask_file_name(name)
    assert safe
    assert "/" not in safe
    assert "\\" not in safe
    assert Path(f"/out/{safe}.nii.gz").resolve().parent == Path("/out")


def work(item: int) -> int:
    if item == 1:
        raise MissingFileError(Path("scan.nii.gz"), "no such file")
    if item == 2:
        os._exit(9)  # as if killed for memory
    return item * 10


def test_a_dead_worker_and_an_error_end_only_their_items() -> None:
    outcomes = {o.item: o for o in run_parallel(work, range(5), description="test", processes=2)}
    assert {i: o.result for i, o in outcomes.items() if o.error is None} == {0: 0, 3: 30, 4: 40}
    assert isinstance(outcomes[1].error, MissingFileError)
    assert outcomes[1].error.path == Path("scan.nii.gz")
    assert "exit code 9" in str(outcomes[2].error)


def test_one_process_reports_errors_the_same_way() -> None:
    outcomes = list(run_parallel(work, [0, 1], description="test", processes=1))
    assert outcomes[0].result == 0
    assert isinstance(outcomes[1].error, ScanError)


def test_what_a_library_prints_is_in_the_log_also_when_it_fails(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    def library() -> None:
        print("one \n\n two")
        raise OSError("gone")

    caplog.set_level(logging.DEBUG)
    with pytest.raises(OSError, match="gone"), prints_to_log(logging.getLogger("here"), "library"):
        library()
    assert caplog.messages == ["library: one", "library:  two"]
    assert capsys.readouterr().out == ""


def test_the_summary_counts_and_sets_the_exit_code(tmp_path: Path) -> None:
    summary = JobSummary("job")
    summary.done("a")
    summary.skipped("b")
    assert summary.exit_code == 0
    summary.failed("c", MissingFileError(Path("c.nii"), "no such file"))
    assert summary.exit_code == 1
    summary.show()
    summary.save(tmp_path / "s.json")
    content = read_json(tmp_path / "s.json")
    assert content["done"] == ["a"]
    assert content["failed"] == {"c": "c.nii: no such file"}


def test_what_killed_writers_left_is_removed_and_what_others_write_is_not(tmp_path: Path) -> None:
    """A process that is killed while it writes, one that still runs, and a name that tells nothing."""
    script = (
        "import os, sys, time\nfrom pathlib import Path\nfrom satunet.jobs.files import atomic_folder, atomic_path\n"
        "folder = Path(sys.argv[1])\n"
        "with atomic_path(folder / 'a.json') as file, atomic_folder(folder / 'b') as inside:\n"
        "    file.write_text('half')\n    (inside / 'c').write_text('half')\n    print('there', flush=True)\n"
        "    time.sleep(600)\n"
    )
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", script, str(tmp_path)]
    writing = [subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root) for _ in range(2)]
    for process in writing:
        assert process.stdout is not None and process.stdout.readline() == b"there\n"
    (tmp_path / ".tmp-of_somebody").write_text("")
    assert len(list(tmp_path.glob(".tmp-*"))) == 5
    writing[0].kill()
    writing[0].wait()
    with atomic_path(tmp_path / "d.json") as file:
        file.write_text("{}")
    left = {path.name for path in tmp_path.glob(".tmp-*")}
    assert len(left) == 3 and ".tmp-of_somebody" in left  # of the one that runs: a file and a folder
    assert all(f"-{leftovers._digits(writing[1].pid)}-" in name for name in left - {".tmp-of_somebody"})
    writing[1].kill()
    writing[1].wait()


def test_what_a_disk_says_is_told_of_the_file_that_people_know(tmp_path: Path) -> None:
    def write(error: BaseException) -> None:
        with atomic_path(tmp_path / "a.json"):
            raise error

    with pytest.raises(OSError, match=r"Input/output error: '.*/a\.json'"):
        write(OSError(errno.EIO, "Input/output error"))
    with pytest.raises(DiskFullError, match=r"a\.json"):
        write(RuntimeError("I/O error: No space left on device (os error 28)"))
    torch_like = RuntimeError("unexpected pos 9021952 vs 9021840")
    torch_like.__context__ = OSError(errno.EROFS, "Read-only file system")
    with pytest.raises(OSError, match=r"Read-only file system: '.*/a\.json'"):
        write(torch_like)
    unrelated = ValueError("a bug")
    unrelated.__context__ = FileNotFoundError(errno.ENOENT, "no", "x")
    with pytest.raises(ValueError, match="a bug"):
        write(unrelated)


def test_a_disk_that_cannot_flush_is_an_error_and_one_that_never_does_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(number: int) -> None:
        def fsync(handle: int) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "fsync", fsync)

    refuse(errno.EINVAL)
    write_text(tmp_path / "a", "text")
    refuse(errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        write_text(tmp_path / "b", "text")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_summary_without_items_shows_no_counts(capfd: pytest.CaptureFixture[str]) -> None:
    """A plan is not "0 done"."""
    plan = JobSummary("plan")
    plan.note("spacing", "1 mm")
    plan.show()
    said = capfd.readouterr().err
    assert "spacing" in said and "done" not in said
    plan.failed("a", ScanError(Path("a"), "bad"))
    plan.show()
    assert "already done" in capfd.readouterr().err
    JobSummary("prediction").show()
    assert "done" in capfd.readouterr().err


@pytest.mark.parametrize("reason", [errno.EIO, errno.EROFS])
def test_a_lock_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: int) -> None:
    """Errors of a descriptor carry no file; without one, the command line would print a traceback."""

    def failing(*_: object) -> None:
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(os, "fchmod", failing)
    with pytest.raises(OSError, match=os.strerror(reason)) as raised, only_writer(tmp_path):
        pass
    assert raised.value.filename == str(tmp_path / ".lock")
