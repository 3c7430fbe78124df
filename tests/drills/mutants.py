"""Mutants: small changes of the code, one at a time, that tests have to notice.

The changes are mutmut's (``a < b`` to ``a <= b``, ``f(x, y)`` to ``f(x)``, a constant plus one, a string in capitals …),
applied everywhere in a module: in functions, methods, constants and fields. Left alone are annotations and docstrings,
imports, and strings with a space in them, which are sentences for people.

mutmut's own runner wants functions it can wrap and a copy of the tree. Here a process that has imported the heavy
libraries, but nothing of satunet, forks for each mutant; the child sees the changed source through an import hook and
runs the tests that reached the changed line, the quickest first, until one fails. Where a module has more mutants than
asked for, a sample is taken with a seed. Tests that were written for the survivors of one seed are judged by another:
the same sample would flatter them.

    make mutants ARGS="--seed 3 --record"   all rooms; figures go to benchmarks/results/drills.txt
    make mutants ARGS="labels --sample 0"   every mutant of one room

Survivors that were read and change nothing that anybody can see are listed, with why, in ``survivors.txt``; they count
as not killed all the same.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.drills.record import record

REPOSITORY = Path(__file__).resolve().parents[2]
REASONS = Path(__file__).with_name("survivors.txt")
GOAL = 0.85
KILLED = ("killed", "time")
"""Verdicts of a mutant that tests noticed: one failed, or did not end."""

HEAVY = (
    *("numpy", "scipy.ndimage", "scipy.stats", "scipy.special", "torch", "nibabel", "SimpleITK", "pandas", "blosc2"),
    *("cc3d", "fill_voids", "cattrs", "rich.progress", "hypothesis", "pytest", "transformers", "matplotlib.pyplot"),
    *("nnunetv2.training.nnUNetTrainer.nnUNetTrainer", "nnunetv2.experiment_planning.plan_and_preprocess_api"),
    *(
        "beartype",
        "jaxtyping",
        "tyro",
        "monai.metrics",
        "surface_distance",
        "pydicom",
        "highdicom",
        "safetensors.torch",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Room:
    """Modules, and the tests that are theirs."""

    modules: tuple[str, ...]
    tests: tuple[str, ...]


ROOMS = {
    "labels": Room(
        modules=("satunet/labels/*.py",),
        tests=("tests/labels", "tests/prompts/test_reader.py", "tests/planners/test_unified_name.py"),
    ),
    "sampling": Room(
        modules=("trainers/unified/batches/*.py",),
        tests=tuple(
            f"tests/trainers/test_{name}.py" for name in ("sampling", "zoom", "large_ids", "batches", "fitted_patches")
        ),
    ),
    "loss": Room(modules=("trainers/unified/loss.py",), tests=("tests/trainers/test_loss.py",)),
    "windows": Room(modules=("satunet/windows/*.py",), tests=("tests/windows",)),
    "metrics": Room(
        modules=("evaluation/scoring/*.py", "evaluation/scoring/measures/*.py"),
        tests=tuple(
            f"tests/evaluation/test_{name}.py" for name in ("metrics", "surface", "evaluate", "scoring", "panoptic")
        ),
    ),
    "statistics": Room(
        modules=(
            *(
                f"evaluation/benchmark/conclusions/{name}.py"
                for name in ("statistics", "patients", "means", "strata", "differences", "comparison")
            ),
            "evaluation/benchmark/costs.py",
        ),
        tests=tuple(f"tests/evaluation/test_{name}.py" for name in ("statistics", "comparison", "costs", "judging")),
    ),
    "outputs": Room(
        modules=("satunet/prediction/results/*.py",),
        tests=tuple(
            f"tests/prediction/test_{name}.py"
            for name in (
                "outputs",
                "masks",
                "folder",
                "results_are_safe",
                "what_is_shown",
                "geometry",
                "instances",
                "plausibility",
                "measures",
            )
        ),
    ),
    "verification": Room(
        modules=(
            *(f"preprocessing/store/{name}.py" for name in ("verify", "scans", "locations")),
            "satunet/jobs/fresh.py",
        ),
        tests=(
            *(f"tests/preprocessing/test_{name}.py" for name in ("store", "run", "odd_inputs", "verify")),
            "tests/jobs/test_fresh.py",
        ),
    ),
}


# What is changed -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One change of one module.

    Attributes:
        file: The module, from the repository's root.
        line: Line of the change, from 1.
        last_line: Line where what is changed ends.
        source: The whole changed module.
        change: What was there, and what is there instead, on a line.
    """

    file: str
    line: int
    last_line: int
    source: str
    change: str


Judged = list[tuple[Mutant, str]]
"""Mutants, and the verdict on each."""


def mutants_of(path: Path, sample: int, seed: int = 0) -> list[Mutant]:
    """Mutants of a module in the order of its lines; all for a ``sample`` of 0.

    A sample depends on the seed and the name of the module alone.
    """
    import libcst as cst
    from libcst.metadata import MetadataWrapper, PositionProvider
    from mutmut.mutation.mutators import mutation_operators

    text = path.read_text("utf-8")
    wrapper = MetadataWrapper(cst.parse_module(text), unsafe_skip_copy=True)
    module, positions = wrapper.module, wrapper.resolve(PositionProvider)
    found = [
        (positions[node], node, other)
        for node in _mutable(module)
        for kind, operator in mutation_operators
        if isinstance(node, kind)
        for other in operator(node)
        if not _drops_strict(node, other)
    ]
    if sample and len(found) > sample:
        found = random.Random(f"{seed} {path.name}").sample(found, sample)
    mutants = []
    for where, node, other in sorted(found, key=lambda f: (f[0].start.line, f[0].start.column)):
        source = module.deep_replace(node, other).code  # type: ignore[arg-type]
        before, after = _differing(text, source)
        mutants.append(
            Mutant(
                file=str(path.relative_to(REPOSITORY)),
                line=where.start.line,
                last_line=where.end.line,
                source=source,
                change=f"{before} → {after}",
            )
        )
    return mutants


def _mutable(module: Any) -> Iterator[Any]:
    """Nodes of a module that may change."""
    import libcst as cst

    todo: list[Any] = [module]
    while todo:
        node = todo.pop()
        if isinstance(node, cst.Annotation | cst.Import | cst.ImportFrom | cst.Decorator):
            continue
        if isinstance(node, cst.If) and isinstance(node.test, cst.Name) and node.test.value == "TYPE_CHECKING":
            continue
        if isinstance(node, cst.Expr) and isinstance(node.value, cst.BaseString):
            continue  # a docstring
        if isinstance(node, cst.Assign) and _is_alias(node):
            continue
        if isinstance(node, cst.Raise) and isinstance(node.exc, cst.Call):
            continue  # what an error says is for people; that it is raised, its condition decides
        if isinstance(node, cst.SimpleString) and " " in node.value:
            continue
        if isinstance(node, cst.Call) and isinstance(node.func, cst.Name) and node.func.value in {"cast", "TypeVar"}:
            continue
        if isinstance(node, cst.Arg) and node.keyword is not None and node.keyword.value == "strict":
            continue  # zip's assertion
        yield node
        todo += reversed(node.children)


def _drops_strict(node: Any, other: Any) -> bool:
    """Whether a change only takes ``strict=True`` from a zip, which is an assertion."""
    import libcst as cst

    if not (isinstance(node, cst.Call) and isinstance(other, cst.Call)):
        return False

    def rest(call: Any) -> list[Any]:
        return [a for a in call.args if a.keyword is None or a.keyword.value != "strict"]

    return len(rest(node)) < len(node.args) and [id(a) for a in rest(node)] == [id(a) for a in rest(other)]


def _is_alias(node: Any) -> bool:
    """Whether an assignment names a type, such as ``Kind = Literal["a", "b"]``."""
    import libcst as cst

    value = node.value
    return isinstance(value, cst.Subscript) and isinstance(value.value, cst.Name) and value.value.value == "Literal"


def _differing(before: str, after: str) -> tuple[str, str]:
    """The part of a line that differs between two texts."""
    start = _in_common(before, after)
    end = _in_common(before[start:][::-1], after[start:][::-1])
    first = before.rfind("\n", 0, start) + 1
    tail = before.find("\n", len(before) - end)
    tail = len(before) if tail < 0 else tail
    return tuple(
        " ".join(text.split())[:160] for text in (before[first:tail], after[first : len(after) - len(before) + tail])
    )  # type: ignore[return-value]


def _in_common(one: str, other: str) -> int:
    """Characters at the start of two texts that are the same."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


# Running tests in a fork ---------------------------------------------------------------------------------------------


class ChangedModule(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Finds one module and gives it another source."""

    def __init__(self, name: str, path: Path, source: str) -> None:
        self.name, self.path, self.source = name, path, source

    def find_spec(self, fullname: str, path: object, target: ModuleType | None = None) -> Any:
        """The changed module, by its name."""
        if fullname != self.name:
            return None
        places = [str(self.path.parent)] if self.path.name == "__init__.py" else None
        return importlib.util.spec_from_file_location(
            fullname, self.path, loader=self, submodule_search_locations=places
        )

    def get_filename(self, fullname: str) -> str:
        """Path of the source, as tracebacks show it."""
        return str(self.path)

    def get_data(self, path: str | bytes) -> bytes:
        """The changed source; there is no compiled file."""
        if str(path).endswith(".pyc"):
            raise OSError(path)
        return self.source.encode()


def module_name(file: str) -> str:
    """Name by which a file of the source tree is imported."""
    parts = list(Path(file).with_suffix("").parts)
    if parts[0] != "satunet":
        parts.insert(0, "satunet")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@dataclass
class Chosen:
    """A pytest plugin that runs the named tests, the quickest first."""

    seconds: dict[str, float]

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Leave the tests that were asked for."""
        items[:] = sorted((item for item in items if item.nodeid in self.seconds), key=lambda i: self.seconds[i.nodeid])


@dataclass
class Durations:
    """A pytest plugin that notes how long each test took, with what it set up, and which were not passed."""

    seconds: dict[str, float] = field(default_factory=dict)
    passed: set[str] = field(default_factory=set)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Add a phase of a test."""
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        if report.when == "call" and report.passed:
            self.passed.add(report.nodeid)


def _pytest(folder: Path, files: list[str], *plugins: object, options: tuple[str, ...] = ()) -> int:
    import pytest
    from hypothesis import Phase, settings

    # A test that fails is enough; hypothesis need not look for the smallest example.
    phases = (Phase.explicit, Phase.generate)
    settings.register_profile("mutants", derandomize=True, deadline=None, database=None, phases=phases)
    arguments = ["-x", "-q", f"--basetemp={folder / 'pytest'}", "--hypothesis-profile=mutants"]
    arguments += ["-p", "pytest_timeout", "-p", "_hypothesis_pytestplugin"]
    return int(pytest.main([*arguments, *options, *files], plugins=list(plugins)))


def forked(work: Callable[[], Any], *, limit_s: float, log: Path) -> tuple[Any, bool]:
    """The result of ``work`` in a child process, and whether it had to be ended.

    The child leads a group of its own, so that what it started ends with it.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 70
        try:
            os.setsid()
            os.close(reader)
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            resource.setrlimit(resource.RLIMIT_DATA, (12 << 30, 12 << 30))
            result = json.dumps(work())
            with os.fdopen(writer, "w") as pipe:
                pipe.write(result)
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    deadline, ended = time.monotonic() + limit_s, False
    import select

    received = b""
    while True:
        ready, _, _ = select.select([reader], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            ended = True
            break
        part = os.read(reader, 1 << 16)
        if not part:
            break
        received += part
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.close(reader)
    os.waitpid(child, 0)
    return (json.loads(received) if received and not ended else None), ended


def baseline(folder: Path, room: Room, files: list[str]) -> dict[str, Any]:
    """Tests that pass on the code as it is: their seconds, and the lines that each reaches.

    Returns:
        ``seconds`` by test, and ``reached``: by file, by line, the tests.
    """
    import coverage

    sources = [str(REPOSITORY / file) for file in files]
    meter = coverage.Coverage(data_file=None, include=sources, config_file=False)
    meter.set_option("run:dynamic_context", "test_function")
    durations = Durations()

    class Contexts:
        def pytest_runtest_logstart(self, nodeid: str) -> None:
            meter.switch_context(nodeid)

    meter.set_option("run:dynamic_context", "none")
    meter.start()
    code = _pytest(
        folder,
        [t for t in room.tests if (REPOSITORY / t).exists()],
        durations,
        Contexts(),
        options=("--maxfail=1000000",),
    )
    meter.stop()
    if code not in (0, 1):
        raise RuntimeError(f"the tests of {room.tests} did not run: pytest said {code}")
    data, reached = meter.get_data(), {}
    for file in files:
        lines = data.contexts_by_lineno(str(REPOSITORY / file))
        reached[file] = {str(n): sorted(set(tests) & durations.passed) for n, tests in lines.items()}
    return {"seconds": {t: durations.seconds[t] for t in durations.passed}, "reached": reached}


def tests_of(mutant: Mutant, known: dict[str, Any]) -> dict[str, float]:
    """Tests that can notice a mutant: those that reached its lines, or all for lines that run on import.

    A constant inside a statement of several lines has no line of its own for Python: the nearest one above counts.
    """
    reached = known["reached"][mutant.file]
    first = next((n for n in range(mutant.line, 0, -1) if str(n) in reached), mutant.line)
    tests = {t for n in range(first, mutant.last_line + 1) for t in reached.get(str(n), [])}
    if not tests and str(first) in reached:
        tests = set(known["seconds"])
    return {t: known["seconds"][t] for t in tests}


def judge(mutant: Mutant, tests: dict[str, float], folder: Path) -> int:
    """pytest's exit code for the tests on a mutant."""
    name, path = module_name(mutant.file), REPOSITORY / mutant.file
    sys.meta_path.insert(0, ChangedModule(name, path, mutant.source))
    return _pytest(folder, sorted({t.partition("::")[0] for t in tests}), Chosen(tests))


# The whole drill ------------------------------------------------------------------------------------------------------


def serve(connection: Connection, scratch: Path) -> None:
    """A process with the heavy libraries in it: judges mutants until there are none."""
    import importlib

    sys.dont_write_bytecode = False  # each mutant would compile all the other modules again
    for name in HEAVY:
        try:
            importlib.import_module(name)
        except ImportError:  # an extra that is not installed
            print(f"mutants: {name} is not installed", file=sys.stderr)
    gc.collect()
    gc.freeze()  # a child would copy every page for the marks of its first collection
    folder = Path(tempfile.mkdtemp(dir=scratch))
    while (job := connection.recv()) is not None:
        kind, *rest = job
        log = folder / "log.txt"
        started = time.monotonic()
        if kind == "baseline":
            room, files = rest
            answer, _ = forked(lambda r=room, f=files: baseline(folder, r, f), limit_s=3600, log=log)
            answer = answer if answer is not None else log.read_text(errors="replace")[-4000:]
        else:
            mutant, tests = rest
            limit = 20 + 5 * sum(tests.values())
            code, ended = forked(lambda m=mutant, t=tests: judge(m, t, folder), limit_s=limit, log=log)
            answer = "time" if ended else {0: "survived", 5: "no tests"}.get(-1 if code is None else code, "killed")
        connection.send((job, answer, time.monotonic() - started))
        shutil.rmtree(folder / "pytest", ignore_errors=True)


class Pool:
    """Processes that judge, and what they have to do."""

    def __init__(self, count: int, scratch: Path) -> None:
        import multiprocessing

        context = multiprocessing.get_context("spawn")
        self.connections = []
        self.processes = []
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, scratch))
            process.start()
            self.connections.append(ours)
            self.processes.append(process)

    def each(self, jobs: list[Any]) -> Iterator[tuple[Any, Any, float]]:
        """Answers to jobs, as they come."""
        from multiprocessing.connection import wait

        waiting, idle, busy = list(jobs), list(self.connections), 0
        while waiting or busy:
            while waiting and idle:
                idle.pop().send(waiting.pop(0))
                busy += 1
            for connection in wait([c for c in self.connections if c not in idle]):
                yield connection.recv()  # type: ignore[union-attr]
                idle.append(connection)  # type: ignore[arg-type]
                busy -= 1

    def close(self) -> None:
        """End the processes."""
        for connection in self.connections:
            connection.send(None)
        for process in self.processes:
            process.join()


def modules_of(room: Room) -> list[str]:
    """The modules of a room that have code in them."""
    found = sorted({path for pattern in room.modules for path in REPOSITORY.glob(pattern)})
    return [str(p.relative_to(REPOSITORY)) for p in found if p.name != "__init__.py"]


@functools.cache
def reasons() -> dict[tuple[str, str], str]:
    """Why survivors that were read may live, by file and change."""
    known, file, pending = {}, "", ""
    for line in REASONS.read_text("utf-8").splitlines() if REASONS.is_file() else []:
        if line.startswith("# "):
            file = line[2:].strip()
        elif line.startswith("    "):
            known[file, pending] = line.strip()
        elif line.strip():
            pending = line.strip()
    return known


def table(judged: dict[str, Judged]) -> list[str]:
    """A line for each room, and one for all together."""
    lines = [f"{'':13} mutants  killed  equivalent      %  95 % interval"]
    everything = [pair for pairs in judged.values() for pair in pairs]
    for name, pairs in [*judged.items(), ("all", everything)]:
        killed = sum(verdict in KILLED for _, verdict in pairs)
        equivalent = sum(verdict not in KILLED and bool(reason(m)) for m, verdict in pairs)
        low, high = wilson(killed, len(pairs))
        share = 100 * killed / max(1, len(pairs))
        lines.append(
            f"{name:13} {len(pairs):7}  {killed:6}  {equivalent:10}  {share:5.1f}  {100 * low:.1f} to {100 * high:.1f}"
        )
    return lines


def wilson(hits: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    if not count:
        return 0.0, 1.0
    z, share = 1.96, hits / count
    middle = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return (middle - half) / (1 + z * z / count), (middle + half) / (1 + z * z / count)


def survivors(judged: dict[str, Judged]) -> list[str]:
    """What no test noticed, room by room."""
    lines = []
    for name, pairs in judged.items():
        lines += ["", f"survivors of {name}:"]
        for mutant, verdict in pairs:
            if verdict in KILLED:
                continue
            note = f"   [{reason(mutant)}]" if reason(mutant) else ""
            reached = "" if verdict == "survived" else "   (no test reaches it)"
            lines.append(f"  {mutant.file}:{mutant.line}  {mutant.change}{reached}{note}")
    return lines


def reason(mutant: Mutant) -> str:
    """Why a survivor that was read is no other program; empty if it was not read, or is one."""
    return reasons().get((mutant.file, mutant.change), "")


def versions() -> str:
    """Versions of what decides the figures."""
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("mutmut", "pytest", "torch", "numpy"))


def processor() -> str:
    """Name of the processor, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def options() -> argparse.Namespace:
    """What was asked for on the command line."""
    parser = argparse.ArgumentParser(description="Small changes of the code that tests have to notice.")
    parser.add_argument("rooms", nargs="*", choices=[*ROOMS, []], help="rooms; all without")
    parser.add_argument("--sample", type=int, default=40, help="mutants of a module at most; 0: all")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample")
    parser.add_argument("--files", default="", help="only modules whose path matches this expression")
    parser.add_argument("--processes", type=int, default=2, help="processes")
    parser.add_argument("--record", action="store_true", help="put the figures into benchmarks/results/drills.txt")
    return parser.parse_args()


def quietly() -> None:
    """Few threads, low priority, no network, this checkout's code: for this process and those that it starts."""
    os.chdir(REPOSITORY)
    os.nice(10)
    os.environ |= {"PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "", "MPLBACKEND": "Agg"}
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    os.environ |= {"BLOSC_NTHREADS": "1", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


def judge_room(pool: Pool, files: list[str], known: dict[str, Any], sample: int, seed: int) -> Judged:
    """Mutants of a room's modules, each with what its tests made of it."""
    mutants = [m for f in files for m in mutants_of(REPOSITORY / f, sample, seed)]
    jobs = [(tests_of(m, known), m) for m in mutants]
    verdicts = {(m.file, m.source): "no tests" for _, m in jobs}
    for (_, m, _), verdict, seconds in pool.each([("mutant", m, t) for t, m in jobs if t]):
        verdicts[m.file, m.source] = verdict
        print(f"{verdict:9} {seconds:5.1f} s  {m.file}:{m.line}  {m.change}", flush=True)
    return [(m, verdicts[m.file, m.source]) for m in mutants]


def main() -> int:
    """Judge mutants; 0 if at least the goal is killed in all rooms together."""
    arguments = options()
    quietly()
    names = arguments.rooms or list(ROOMS)
    files = {n: [f for f in modules_of(ROOMS[n]) if re.search(arguments.files, f)] for n in names}
    judged: dict[str, Judged] = {}
    started = time.monotonic()
    scratch = Path(tempfile.mkdtemp(prefix="mutants"))
    pool = Pool(arguments.processes, scratch)
    try:
        known = {}
        for (_, room, _), answer, seconds in pool.each([("baseline", ROOMS[n], files[n]) for n in names]):
            name = next(n for n in names if ROOMS[n] == room)
            if isinstance(answer, str):
                raise SystemExit(answer)
            known[name] = answer
            print(f"mutants: {len(answer['seconds'])} tests of {name} pass, {seconds:.0f} s", flush=True)
        for name in names:
            judged[name] = judge_room(pool, files[name], known[name], arguments.sample, arguments.seed)
            print("\n".join(table(judged)), flush=True)
    finally:
        pool.close()
        shutil.rmtree(scratch, ignore_errors=True)
    print("\n".join(survivors(judged)))
    if arguments.record:
        what = f"at most {arguments.sample} of a module" if arguments.sample else "all"
        seconds = time.monotonic() - started
        said = (
            f"{what}, seed {arguments.seed}; {arguments.processes} processes of {os.cpu_count()} cores, {seconds:.0f} s"
        )
        record("Mutants", [f"{processor()}; {versions()}", said, *table(judged)])
    everything = [verdict for pairs in judged.values() for _, verdict in pairs]
    return int(sum(v in KILLED for v in everything) < GOAL * len(everything))


if __name__ == "__main__":
    sys.exit(main())
