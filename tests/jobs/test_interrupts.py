"""Ends that a job does not choose: SIGTERM, folders that refuse, workers that give up, a power cut."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from satunet.cli import run
from satunet.demo.synthetic import make_synthetic_datasets
from satunet.jobs.files import flush_to_disk, write_json
from satunet.jobs.workers import Workers, outcomes

ROOT = Path(__file__).resolve().parents[2]


def leave(number: int) -> int:
    if number == 1:
        os._exit(0)
    if number == 2:
        sys.exit(3)
    return number


@pytest.mark.parametrize("processes", [1, 2])
def test_code_that_ends_its_process_ends_its_item_alone(processes: int) -> None:
    items = [0, 1, 2, 3] if processes > 1 else [0, 2, 3]  # in this process, os._exit ends everything
    found = {o.item: o for o in outcomes(leave, items, Workers(processes=processes))}
    assert {i for i, o in found.items() if o.error is None} == {0, 3}
    assert "ended its process (exit code 3)" in str(found[2].error)
    if processes > 1:
        assert "the worker process died" in str(found[1].error)


def test_sigterm_is_treated_as_ctrl_c_is(tmp_path: Path) -> None:
    """A real process, ended while it fingerprints: one sentence, 143, nothing temporary; the same command continues."""
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
    make_synthetic_datasets(tmp_path / "raw")
    folders = {f"nnUNet_{name}": str(tmp_path / name) for name in ("raw", "preprocessed", "results")}
    environment = os.environ | folders | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "satunet", "fingerprint", "-d", "901", "902", "-np", "0"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "preprocessed").rglob("*.json")) and time.monotonic() < deadline:
        assert process.poll() in (None, 0)
        if process.poll() == 0:
            break
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    told, _ = process.communicate(timeout=60)
    assert process.returncode in (143, 0), told  # 0 where it was done before the signal came
    assert "Traceback" not in told
    if process.returncode == 143:
        assert "ended by SIGTERM; finished work is kept" in told
    assert not list(tmp_path.rglob(".tmp-*"))
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stdout + again.stderr


def test_a_file_in_the_place_of_a_folder_is_one_sentence(nnunet_env: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_synthetic_datasets(nnunet_env / "raw")
    (nnunet_env / "preprocessed" / "Dataset901_SyntheticCT").write_text("in the way")
    code = run(["fingerprint", "-d", "901", "-np", "0"])
    told = "".join(capsys.readouterr())
    assert code in (1, 2) and "Traceback" not in told
    assert "Dataset901_SyntheticCT" in told


def test_files_are_on_the_disk_before_what_promises_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that forgets all that was not flushed: whenever the promise is on it, so is the file and its name."""
    kept: set[str] = set()
    flush = os.fsync

    def fsync(handle: int) -> None:
        flush(handle)
        place = Path(os.readlink(f"/proc/self/fd/{handle}"))
        if place.is_dir():
            kept.update(f"name {child}" for child in place.iterdir())
        else:
            kept.add(f"content {place}")
            if place.name.startswith(".tmp-") and "promise" in place.name:
                assert {f"content {mask}", f"name {mask}"} <= kept

    monkeypatch.setattr(os, "fsync", fsync)
    mask = tmp_path / "masks" / "liver.nii.gz"
    mask.parent.mkdir()
    mask.write_bytes(b"voxels")
    flush_to_disk([mask])
    write_json(tmp_path / "promise.json", ["liver.nii.gz"])
    assert f"name {tmp_path / 'promise.json'}" in kept


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    command = f"{sys.executable} -m satunet datasets | head -n 1"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], env=environment, capture_output=True, text=True)
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr


def test_workers_of_a_forked_pool_end_at_once() -> None:
    """nnunetv2's pools fork and end their workers by SIGTERM; one that handled it was waited for for ever."""
    script = (
        "import multiprocessing, signal\n"
        "from satunet.cli import handle_sigterm\n"
        "handle_sigterm()\n"
        "for _ in range(30):\n"
        "    with multiprocessing.get_context('fork').Pool(4) as pool:\n"
        "        assert pool.apply(signal.getsignal, (signal.SIGTERM,)) == signal.SIG_DFL\n"
        "assert signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, signal.SIG_IGN)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
