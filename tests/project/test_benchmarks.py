"""Benchmarks are run by hand and seldom: what they import is there, and ``make bench`` knows each of them."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((REPOSITORY / "benchmarks").rglob("*.py"))


def names_of_satunet(source: str) -> list[tuple[str, str]]:
    """Module and name of everything that is imported from satunet; an empty name is the module itself."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "satunet":
            found += [(node.module, alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names if alias.name.split(".")[0] == "satunet"]
    return found


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_what_a_benchmark_imports_is_there(script: Path) -> None:
    missing = []
    for module, name in names_of_satunet(script.read_text("utf-8")):
        try:
            if name and not hasattr(importlib.import_module(module), name):
                importlib.import_module(f"{module}.{name}")
        except ModuleNotFoundError:
            missing.append(f"{module}: {name}")
    assert missing == []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_what_a_benchmark_calls_takes_its_keywords(script: Path) -> None:
    """Names of arguments change; calls of what is imported from satunet by name are looked at."""
    tree = ast.parse(script.read_text("utf-8"))
    imported = {
        alias.asname or alias.name: getattr(importlib.import_module(node.module), alias.name, None)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "satunet"
        for alias in node.names
    }
    wrong = []
    for call in [n for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]:
        called = imported.get(call.func.id)  # type: ignore[attr-defined]
        if callable(called):
            takes = inspect.signature(called).parameters
            if not any(p.kind is p.VAR_KEYWORD for p in takes.values()):
                wrong += [f"line {call.lineno}: {k.arg}" for k in call.keywords if k.arg and k.arg not in takes]
    assert wrong == []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_a_benchmark_is_run_as_a_file(script: Path) -> None:
    """``python benchmarks/x.py`` has the folder ``benchmarks`` in its path, and not the one around it."""
    assert not re.search(r"^from benchmarks[. ]|^import benchmarks", script.read_text("utf-8"), re.MULTILINE)


def lists(name: str) -> set[str]:
    """Benchmarks in a list of ``scripts/bench``."""
    found = re.search(
        rf"^{name}=\((.*?)\)", (REPOSITORY / "scripts" / "bench").read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    assert found is not None
    return set(found[1].split())


def test_make_bench_knows_every_benchmark() -> None:
    alone, given = lists("alone"), lists("given")
    assert not alone & given
    assert alone | given == {p.stem.removeprefix("bench_") for p in (REPOSITORY / "benchmarks").glob("bench_*.py")}


def test_a_benchmark_that_fails_does_not_keep_the_others_from_running(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    script = tmp_path / "scripts" / "bench"
    script.write_text((REPOSITORY / "scripts" / "bench").read_text("utf-8"))
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text('#!/bin/sh\ncase $1 in *metrics*) exit 3;; esac\necho "ran $@"\n')
    python.chmod(0o755)
    done = subprocess.run(["bash", str(script), "metrics", "help"], capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 1
    assert "ran benchmarks/bench_help.py\n" in done.stdout
    assert "failed: metrics" in done.stderr
    one = subprocess.run(
        ["bash", str(script), "help", "--", "--x", "1 2"], capture_output=True, encoding="utf-8", check=False
    )
    assert (one.returncode, one.stderr) == (0, "")
    assert "ran benchmarks/bench_help.py --x 1 2\n" in one.stdout
    wrong = subprocess.run(["bash", str(script), "nonsense"], capture_output=True, encoding="utf-8", check=False)
    assert wrong.returncode == 2
    assert "nonsense" in wrong.stderr and "metrics" in wrong.stderr


@pytest.mark.parametrize("asked", ["--help", "-h"])
def test_help_lists_every_benchmark(asked: str) -> None:
    script = REPOSITORY / "scripts" / "bench"
    done = subprocess.run(["bash", str(script), asked], capture_output=True, encoding="utf-8", check=True)
    assert "scripts/bench metrics prompts" in done.stdout and not done.stderr
    assert lists("alone") | lists("given") <= set(done.stdout.split())


def test_every_file_of_results_says_what_made_it() -> None:
    """In ``benchmarks/README.md``, by scripts that are there; and every benchmark is named there or needs no file."""
    page = REPOSITORY / "benchmarks" / "README.md"
    rows = re.findall(r"^\| \[([\w.]+)\]\(results/\1\) \| (.*?) \|", page.read_text("utf-8"), re.MULTILINE)
    results = {p.name for p in (REPOSITORY / "benchmarks" / "results").iterdir()}
    assert sorted(name for name, _ in rows) == sorted(results)
    named = [call.split()[0] for _, makers in rows for call in re.findall(r"`(.*?)`", makers)]
    files = {name for name in named if name != "make"}
    assert [n for n in files if not any((REPOSITORY / d / n).is_file() for d in ("", "benchmarks"))] == []
    alone = {p.name for p in (REPOSITORY / "benchmarks").glob("*.py")} - {"common.py", "phantom.py"}
    assert alone - files == {"bench_contention.py"}
