"""A server under load: what 50 clients lose (nothing may be lost), what it remembers, how fast the next words are.

Three parts, all against ``satunet serve`` as a process of its own, over TCP, with the client that satunet ships:

1. The next words on a scan that is known: seconds from the question to the end of the job.
2. Throughput on scans that are not known, uploads and downloads included, beside ``predict_folder``, which the command line
   runs, on the same files. Rounds alternate, each with scans of its own.
3. Load: clients that bring a scan, ask, save and forget, and among them clients that break off an upload, cancel their job,
   have no token, announce 10 GB, or bring a header that claims 10 GB. Every mask is compared with the one that
   ``predict_folder`` writes; memory of the process is looked at all the time.

Scans are the middle of a brain template, each in noise of its own: masks whose structure seems absent are not written.
"""

from __future__ import annotations

import argparse
import os
import queue
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import nibabel as nib
import numpy as np
from common import header

from satunet.client import Server, ServerError
from satunet.demo.packaged import ICBM152
from satunet.geometry import extent_mm
from satunet.images.image import read_image
from satunet.models.choice import ModelChoice
from satunet.prediction.door.inputs import Scan
from satunet.prediction.folder import predict_folder
from satunet.prediction.options import PredictOptions
from satunet.prediction.predictor import Predictor

ROUNDS = 5
TOKEN = "a-token-of-this-benchmark"
KINDS = {"good": 60, "broken upload": 10, "cancelled": 10, "wrong token": 10, "10 GB announced": 5, "10 GB claimed": 5}


def write_scan(file: Path, size: int, seed: int) -> Path:
    """The middle of a brain template that a package ships, at 2 mm, in noise of its own."""
    template = read_image(ICBM152.path)
    start = [max(0, (n - 2 * size) // 2) for n in template.array.shape]
    x, y, z = (slice(s, s + 2 * size, 2) for s in start)
    image = template.array[x, y, z].astype(np.float32)
    image += np.random.default_rng(seed).normal(0, 0.02 * image.max(), image.shape)
    affine = template.grid.affine @ np.diag([2.0, 2.0, 2.0, 1.0])
    file.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(image.astype(np.float32), affine), file)
    return file


class Process:
    """``satunet serve``, watched."""

    def __init__(self, model: str, folder: Path) -> None:
        command = [sys.executable, "-m", "satunet", "serve", "-m", model, "--port", "0", "--token", TOKEN]
        folder.mkdir()
        self.folder = folder
        self.log = folder.parent / "server.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stderr=log, stdout=log, env=os.environ | {"TMPDIR": str(folder)})
        self.address = self._address()
        self.memory: list[tuple[float, float]] = []
        threading.Thread(target=self._watch, daemon=True).start()

    def _address(self) -> str:
        end = time.monotonic() + 300
        while (found := re.search(r"http://127\.0\.0\.1:\d+", self.log.read_text())) is None:
            assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()
            time.sleep(0.1)
        return found[0]

    def _watch(self) -> None:
        page = os.sysconf("SC_PAGE_SIZE")
        while self.process.poll() is None:
            try:
                resident = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * page
            except (OSError, IndexError, ValueError):
                return
            self.memory.append((time.monotonic(), resident / 1e6))
            time.sleep(0.2)

    @property
    def cpu_seconds(self) -> float:
        """CPU time of the process so far: what other jobs on the machine do not stretch."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=60)


class Words:
    """What is asked: structures that are in the scans, if the model knows them.

    Further words on a known scan are classes that are looked for at the same spacing in the same windows as the first
    ones: a class with a spacing of its own is encoded anew when it is first asked for.
    """

    def __init__(self, server: Server, predictor: Predictor, file: Path) -> None:
        self.modality = ICBM152.modality
        known = [c["name"] for c in server.model()["classes"] if self.modality in c["modalities"]]
        wanted = [n for n in ("left lateral ventricle", "right thalamus", "brainstem") if n in known]
        self.three = wanted if len(wanted) == 3 else known[:3]
        plan, grid = predictor.model.plan, read_image(file).grid
        extent = extent_mm(grid, plan.orientation)

        def look(name: str) -> tuple[object, object]:
            spacing = plan.spacing_for(name, self.modality, extent)
            return spacing, plan.window_of(name, self.modality, spacing[0])

        looks = {look(name) for name in self.three}
        self.names = [name for name in known if look(name) in looks]


def next_words(process: Process, words: Words, file: Path, times: int) -> None:
    server = Server(process.address, TOKEN)
    with server.bring(file) as scan:
        started = time.perf_counter()
        scan.ask(*words.three, modality=words.modality)
        first = time.perf_counter() - started
        again, cpu = [], process.cpu_seconds
        for number in range(times):
            name = words.names[number % len(words.names)]
            started = time.perf_counter()
            scan.ask(name, modality=words.modality)
            again.append(time.perf_counter() - started)
        again.sort()
        cpu = (process.cpu_seconds - cpu) / times
        print(
            f"scan of {scan.shape}: first words {first:.2f} s; the next words on it, {times} times: median "
            f"{statistics.median(again):.3f} s, 95 % within {again[int(0.95 * (times - 1))]:.3f} s ({cpu:.3f} s of CPU each)"
        )


def throughput(process: Process, words: Words, predictor: Predictor, folder: Path, size: int, scans: int) -> None:
    server = Server(process.address, TOKEN)
    ratios, cpu_ratios = [], []
    for turn in range(ROUNDS):
        files = [write_scan(folder / f"{turn}" / f"{i}.nii.gz", size, 1000 * turn + i) for i in range(scans)]
        sides: dict[str, Callable[[], None]] = {
            "server": lambda files=files, turn=turn: several(server, words, files, folder / f"server{turn}"),  # type: ignore[misc]
            "folder": lambda files=files, turn=turn: folder_of(predictor, words, files, folder / f"folder{turn}"),  # type: ignore[misc]
        }
        took, cpu = {}, {}
        for name in sorted(sides, reverse=turn % 2 == 0):  # whoever comes second finds a warm machine
            started, used, served = time.perf_counter(), time.process_time(), process.cpu_seconds
            sides[name]()
            took[name] = time.perf_counter() - started
            cpu[name] = process.cpu_seconds - served if name == "server" else time.process_time() - used
        ratios.append(took["folder"] / took["server"])
        cpu_ratios.append(cpu["folder"] / cpu["server"])
        print(
            f"{scans} scans of {size}³: server {took['server']:.1f} s ({cpu['server']:.1f} s of CPU), "
            f"predict_folder {took['folder']:.1f} s ({cpu['folder']:.1f} s of CPU)"
        )
    print(
        f"throughput of the server: {100 * statistics.median(ratios):.0f} % of predict_folder's, by CPU time "
        f"{100 * statistics.median(cpu_ratios):.0f} % (medians of {ROUNDS} rounds)"
    )


def several(server: Server, words: Words, files: list[Path], out: Path) -> None:
    """Two clients, so that one uploads while the other's scan is looked at."""
    left: queue.SimpleQueue[Path] = queue.SimpleQueue()
    for file in files:
        left.put(file)

    def client() -> None:
        while True:
            try:
                file = left.get_nowait()
            except queue.Empty:
                return
            with server.bring(file) as scan:
                scan.ask(*words.three, modality=words.modality).save(out / file.name)

    threads = [threading.Thread(target=client) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def folder_of(predictor: Predictor, words: Words, files: list[Path], out: Path) -> None:
    scans = [Scan(path=f, name=f.name.split(".")[0], modality=words.modality) for f in files]
    summary = predict_folder(scans, out, predictor, words.three)
    assert not summary.failures, summary.failures


class Load:
    """Clients of all kinds, and what became of them."""

    def __init__(self, process: Process, words: Words, files: list[Path], expected: Path) -> None:
        self.process, self.words, self.files, self.expected = process, words, files, expected
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.seconds: list[float] = []
        self._lock = threading.Lock()

    def run(self, clients: int, requests: int) -> None:
        does: dict[str, Callable[[Path], str]] = {
            "good": self._good,
            "broken upload": self._broken_upload,
            "cancelled": self._cancelled,
            "wrong token": self._wrong_token,
            "10 GB announced": self._much_announced,
            "10 GB claimed": self._much_claimed,
        }
        rng = random.Random(0)
        todo: queue.SimpleQueue[tuple[int, str]] = queue.SimpleQueue()
        for number, kind in enumerate(rng.choices(list(KINDS), list(KINDS.values()), k=requests)):
            todo.put((number, kind))

        def client() -> None:
            while True:
                try:
                    number, kind = todo.get_nowait()
                except queue.Empty:
                    return
                try:
                    told = does[kind](self.files[number % len(self.files)])
                except Exception as error:  # a client that meets what it should not
                    with self._lock:
                        self.wrong.append(f"{kind}: {type(error).__name__}: {error}")
                else:
                    with self._lock:
                        self.outcomes[f"{kind}: {told}"] += 1

        threads = [threading.Thread(target=client) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _server(self, token: str = TOKEN) -> Server:
        return Server(self.process.address, token, busy_seconds=3600)

    def _good(self, file: Path) -> str:
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as out, self._server().bring(file) as scan:
            job = scan.ask(*self.words.three, modality=self.words.modality)
            saved = {f.name: f for f in job.save(out) if f.name.endswith(".nii.gz")}
            known = self.expected / file.name.split(".")[0]
            assert saved, "no masks"
            assert set(saved) == {f.name for f in known.glob("*.nii.gz")}, (
                f"{sorted(saved)} of {known.name}: {job.prompts}"
            )
            for name, mask in saved.items():
                got, want = (np.asanyarray(nib.load(f).dataobj) for f in (mask, known / name))
                assert np.array_equal(got, want), f"{name} of {known.name} differs in {(got != want).sum()} voxels"
        with self._lock:
            self.seconds.append(time.perf_counter() - started)
        return "the masks of predict_folder"

    def _cancelled(self, file: Path) -> str:
        with self._server().bring(file) as scan:
            job = scan.begin(*self.words.three, modality=self.words.modality)
            job.cancel()
            try:
                job.wait()
            except ServerError as error:
                return "cancelled" if "cancelled" in str(error) else f"WRONG {error}"
            return "done before that"

    def _wrong_token(self, file: Path) -> str:
        try:
            self._server("another-token-long-enough").bring(file)
        except ServerError as error:
            return str(error.status)
        raise AssertionError("a wrong token was let in")

    def _broken_upload(self, file: Path) -> str:
        content = file.read_bytes()
        self._raw(len(content), content[: len(content) // 2])
        return "closed"

    def _much_announced(self, file: Path) -> str:
        answer = self._raw(10_000_000_000, b"", wait=True)
        assert b" 413 " in answer.splitlines()[0], answer[:200]
        return "413"

    def _much_claimed(self, file: Path) -> str:
        claims = nib.Nifti1Header()
        claims.set_data_shape((1360, 1360, 1360))
        claims.set_data_dtype(np.float32)
        claims["vox_offset"] = 352
        content = claims.binaryblock + bytes(2000)
        answer = self._raw(len(content), content, wait=True, name="x.nii")
        assert b" 422 " in answer.splitlines()[0], answer[:200]
        return "422"

    def _raw(self, length: int, content: bytes, *, wait: bool = False, name: str = "x.nii.gz") -> bytes:
        parts = urlsplit(self.process.address)
        assert parts.hostname and parts.port
        with socket.create_connection((parts.hostname, parts.port), timeout=300) as line:
            head = f"POST /scans?filename={name} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
            line.sendall(f"{head}Content-Length: {length}\r\nConnection: close\r\n\r\n".encode() + content)
            return line.recv(65536) if wait else b""


def load(
    process: Process, words: Words, predictor: Predictor, folder: Path, size: int, clients: int, requests: int
) -> bool:
    files = [write_scan(folder / "load" / f"{i}.nii.gz", size, 50_000 + i) for i in range(8)]
    folder_of(predictor, words, files, folder / "expected")
    made = Load(process, words, files, folder / "expected")
    server = Server(process.address, TOKEN)
    before = counts(server)
    started = time.monotonic()
    made.run(clients, requests)
    ended = time.monotonic()
    print(f"{clients} clients, {requests} requests in {ended - started:.0f} s")
    for what, count in sorted(made.outcomes.items()):
        print(f"  {count:4d} {what}")
    for what, count in Counter(made.wrong).most_common():
        print(f"  {count:4d} WRONG {what}")
    if made.seconds:
        print(
            f"  a good one, all its steps: median {statistics.median(made.seconds):.2f} s, longest {max(made.seconds):.2f} s"
        )
    span = [m for t, m in process.memory if started <= t <= ended]
    parts = [statistics.median(span[len(span) * i // 5 : max(len(span) * (i + 1) // 5, 1)]) for i in range(5)]
    print(f"  memory of the server in fifths of the time: {', '.join(f'{m:,.0f}' for m in parts)} MB")
    after = counts(server)
    print(
        "  counted by the server: "
        + ", ".join(f"{k} {after[k] - before[k]:.0f}" for k in ("scans", "done", "failed", "cancelled", "refused"))
    )
    left = [f for f in process.folder.rglob("*") if f.is_file()]
    log = process.log.read_text()
    if "Traceback" in log:
        print(log[-1500:])
    print(f"  files left on the server: {len(left)}; tracebacks in its log: {log.count('Traceback')}")
    return not made.wrong and not left and "Traceback" not in log and parts[4] < 1.1 * max(parts[1:4])


def counts(server: Server) -> dict[str, float]:
    import urllib.request

    request = urllib.request.Request(f"{server.address}/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(request) as answer:
        text = answer.read().decode()
    return {k: float(v) for k, v in re.findall(r"^satunet_(\w+?)_total (\S+)$", text, re.MULTILINE)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--size", type=int, default=96, help="voxels of 2 mm along the longest axis of the scans")
    parser.add_argument("--scans", type=int, default=6)
    arguments = parser.parse_args()
    header("torch", "fastapi", "uvicorn")
    predictor = Predictor(ModelChoice(model=(arguments.model,)).load(), PredictOptions())
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        process = Process(arguments.model, folder / "server")
        try:
            server = Server(process.address, TOKEN)
            known = write_scan(folder / "known.nii.gz", arguments.size, 1)
            words = Words(server, predictor, known)
            print(f"model {server.model()['model']}, {words.modality}, words: {', '.join(words.three)}")
            next_words(process, words, known, 20)
            if arguments.scans:
                throughput(process, words, predictor, folder, arguments.size, arguments.scans)
            if not arguments.requests:
                return 0
            good = load(process, words, predictor, folder, arguments.size, arguments.clients, arguments.requests)
        finally:
            process.end()
    print("nothing was lost, memory is flat" if good else "NOT as it should be")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
