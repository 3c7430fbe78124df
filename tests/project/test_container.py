"""The Dockerfile installs what a checkout installs, by the same script; and the shell completes commands."""

from __future__ import annotations

import os
import pty
import re
import select
import shlex
import subprocess
import sys
import time
from fnmatch import fnmatch
from pathlib import Path

import pytest

from satunet.cli import parse
from satunet.cli.serve import Serve

REPOSITORY = Path(__file__).resolve().parents[2]
DOCKERFILE = REPOSITORY / "Dockerfile"


def copied() -> list[str]:
    lines = re.findall(r"^COPY (.+)$", DOCKERFILE.read_text("utf-8"), re.MULTILINE)
    return [source for line in lines for source in line.split()[:-1]]


def test_what_is_copied_is_there_and_nothing_is_missing() -> None:
    sources = copied()
    assert all((REPOSITORY / source).exists() for source in sources)
    setup = (REPOSITORY / "setup.py").read_text("utf-8")
    stages = re.search(r"^STAGES = \((.+)\)$", setup, re.MULTILINE)
    assert stages is not None
    needed = {"satunet", *re.findall(r'"(\w+)"', stages[1])}
    needed |= {"setup.py", "pyproject.toml", "README.md", "LICENSE", "scripts/setup"}
    assert needed <= set(sources)
    ignored = (REPOSITORY / ".dockerignore").read_text("utf-8").split()
    assert not [s for s in sources if any(fnmatch(s, pattern) for pattern in ignored)]


def test_it_is_the_set_up_of_a_checkout_with_declared_extras() -> None:
    text = DOCKERFILE.read_text("utf-8")
    assert "bash scripts/setup" in text
    extras = re.search(r"^ARG EXTRAS=(\S+)$", text, re.MULTILINE)
    assert extras is not None
    declared = re.findall(r'^        "(\w+)": ', (REPOSITORY / "setup.py").read_text("utf-8"), re.MULTILINE)
    assert set(extras[1].split(",")) <= set(declared)


def calls(verb: str) -> list[list[str]]:
    """Words of all ``docker build`` or ``docker run`` calls that the Dockerfile's header and the docs tell to make."""
    header = re.sub(r"^# ?", "", DOCKERFILE.read_text("utf-8").split("\nARG ")[0], flags=re.MULTILINE)
    texts = [header, *(page.read_text("utf-8") for page in (REPOSITORY / "docs").glob("*.md"))]
    joined = [re.sub(r"\\\n\s*", " ", text) for text in texts]
    lines = [line for text in joined for line in re.findall(rf"^ *docker {verb} (.*)$", text, re.MULTILINE)]
    return [shlex.split(line, comments=True) for line in lines]


def test_builds_are_given_what_the_dockerfile_takes() -> None:
    declared = re.findall(r"^ARG (\w+)", DOCKERFILE.read_text("utf-8"), re.MULTILINE)
    built = calls("build")
    assert len(built) >= 3
    for words in built:
        given = [words[i + 1].partition("=")[0] for i, word in enumerate(words) if word == "--build-arg"]
        assert set(given) <= set(declared) and words[-1] == "."


@pytest.mark.parametrize("words", calls("run"), ids=" ".join)
def test_a_container_is_run_as_docs_say(words: list[str]) -> None:
    """The image is one that is built, its folder is the working folder, satunet takes the words behind it, and a port
    that is published is the one that is listened on.
    """
    images = [build[build.index("-t") + 1] for build in calls("build")]
    named = [i for i, word in enumerate(words) if word in images and words[i - 1] != "--name"]
    assert named, f"none of {images} is run"
    options, command = words[: named[0]], words[named[0] + 1 :]
    folders = re.findall(r"^WORKDIR (\S+)$", DOCKERFILE.read_text("utf-8"), re.MULTILINE)
    assert options[options.index("-v") + 1] == f"$PWD:{folders[-1]}"
    parsed = parse(command)
    if isinstance(parsed, Serve):
        assert options[options.index("-p") + 1].endswith(f":{parsed.serving.port}")
        assert parsed.serving.host == "0.0.0.0"  # 127.0.0.1 would be the container's own


def test_set_up_heeds_the_extras(tmp_path: Path) -> None:
    """With a pip that only tells what it was asked for."""
    folder = tmp_path / "checkout"
    (folder / "scripts").mkdir(parents=True)
    (folder / "scripts" / "setup").write_bytes((REPOSITORY / "scripts" / "setup").read_bytes())
    python = tmp_path / "python"
    python.write_text(
        "#!/usr/bin/env bash\n"
        'case "$*" in\n'
        f'  "-m venv"*) mkdir -p .venv/bin; cp {python} .venv/bin/python;;\n'
        f'  "-m pip install"*) echo "$*" > {tmp_path}/asked;;\n'
        "esac\n"
    )
    python.chmod(0o755)
    for extras, expected in ((None, ".[demo,test,dev]"), ("demo,server", ".[demo,server]")):
        environment = {k: v for k, v in os.environ.items() if k not in ("EXTRAS", "TORCH")} | {"PYTHON": str(python)}
        environment |= {} if extras is None else {"EXTRAS": extras}
        subprocess.run(["bash", str(folder / "scripts" / "setup")], env=environment, check=True, capture_output=True)
        assert (tmp_path / "asked").read_text().split()[-1] == expected


@pytest.fixture(scope="module")
def completion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that README tells to make."""
    readme = (REPOSITORY / "README.md").read_text("utf-8")
    command = re.search(
        r"`satunet (--tyro-print-completion bash) > ~/\.local/share/bash-completion/completions/satunet`", readme
    )
    assert command is not None
    done = subprocess.run(
        [sys.executable, "-m", "satunet", *command[1].split()], capture_output=True, encoding="utf-8",
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    file = tmp_path_factory.mktemp("completion") / "satunet"
    file.write_text(done.stdout, "utf-8")
    return file


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("satunet plan_and\t", "satunet plan_and_preprocess"),
        ("satunet predict --comb\t", "satunet predict --combine"),
        ("satunet serve --most_u\t", "satunet serve --most_upload_mb"),
        ("satunet predict -o a_fold\t", "satunet predict -o a_folder_of_scans"),
    ],
)
def test_bash_completes_what_is_typed(completion: Path, tmp_path: Path, typed: str, line: str) -> None:
    """In an interactive bash at a terminal, with the Tab key."""
    (tmp_path / "a_folder_of_scans").mkdir()
    master, terminal = pty.openpty()
    shell = subprocess.Popen(
        ["bash", "--norc", "--noprofile", "-i"], stdin=terminal, stdout=terminal, stderr=terminal, cwd=tmp_path,
        env={"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "TERM": "dumb", "PS1": "> "},
        start_new_session=True,
    )  # fmt: skip
    os.close(terminal)
    try:
        os.write(master, f"bind 'set bell-style none'; source {completion}; echo rea''dy\n".encode())
        _read_until(master, "\nready")
        os.write(master, typed.encode())
        _read_until(master, line)
    finally:
        shell.kill()
        shell.wait(timeout=30)
        os.close(master)


def _read_until(terminal: int, wanted: str) -> None:
    seen, end = "", time.monotonic() + 120
    while wanted not in seen:
        assert select.select([terminal], [], [], max(0.0, end - time.monotonic()))[0], f"not {wanted!r} but {seen!r}"
        seen += os.read(terminal, 65536).decode(errors="replace").replace("\r", "")
