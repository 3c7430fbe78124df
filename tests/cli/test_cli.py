from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from satunet.cli import parse, run
from satunet.trainers.config import TrainingConfig

ROOT = Path(__file__).resolve().parents[2]
PLANNING = {
    "--datasets", "-d", "--preset", "--gpu_memory", "--spacing", "--patch_size", "--batch_size", "--base_features",
    "--backbone", "--normalization", "--text_encoder", "-e", "--name", "--modality", "--trust_shape",
    "--verify_dataset_integrity",
    "--specialists", "--processes", "-np", "--memory", "--scheduler", "--verbose",
}  # fmt: skip
OPTIONS = {
    "datasets": {"--datasets", "-d", "--present", "--json", "--verbose"},
    "labels": {"--datasets", "-d", "--json", "--verbose"},
    "convert": {
        "--input", "-i", "--id", "-d", "--name", "--root", "--split", "--sequences", "--labels", "--link",
        "--trust_shape", "--processes", "-np", "--memory", "--scheduler", "--verbose",
    },
    "fingerprint": {
        "--datasets", "-d", "--modality", "--trust_shape", "--verify_dataset_integrity", "--processes", "-np", "--memory", "--scheduler",
        "--verbose",
    },
    "plan": {*PLANNING, "--specialist_planner"},
    "plan_and_preprocess": PLANNING,
    "preprocess": {
        "--dataset", "-d", "--verify", "--modality", "--trust_shape", "--processes", "-np", "--memory", "--scheduler", "--verbose",
    },
    "train": {
        "--dataset", "-d", "--fold", "-f", "--specialist", "--specialists", "--specialist_planner", "--continue", "--c",
        "--pretrained_weights", "-pretrained_weights", "--val", "--minutes", "--num_gpus", "-num_gpus", "--cluster",
        "--cluster_options", "--device", "-device", "--verbose", "--budget", *(
            f"--{'queries' if f.name == 'queries_per_scan' else f.name}" for f in dataclasses.fields(TrainingConfig)
        ),
    },
    "predict": {
        "--input", "-i", "--pairs", "--output", "-o", "--model", "-m", "--prompts", "-p", "--prompt_file", "--all",
        "--dicomweb", "--study", "--series", "--keep_local", "--modality", "--combine", "--probabilities", "--dicom_seg", "--rtstruct", "--binary_seg", "--dicom_sr", "--instances", "--measures", "--preview", "--scheduler", "--statistics", "--largest_component",
        "--fill_holes", "--strict", "--fold", "-f", "--checkpoint", "-chk", "--overlap", "--mirror", "--fast", "--batch",
        "--memory", "--overwrite", "--dry_run", "--engine", "--precision", "--device", "-device", "--verbose",
        "--repair", "--min_confidence", "--max_absent",
    },
    "prompts": {
        "--prompts", "-p", "--prompt_file", "--model", "-m", "--labels", "--encoder", "-e", "--json", "--verbose",
    },
    "serve": {
        "--model", "-m", "--fold", "-f", "--checkpoint", "-chk", "--host", "--port", "--token", "--token_file", "--most_upload_mb", "--queue",
        "--keep_minutes", "--features_gb", "--scans_gb", "--disk_gb", "--verbose",
    },
    "evaluate": {
        "--predictions", "-p", "--references", "-r", "--labels", "--prediction_labels", "--output", "-o", "--tolerance",
        "--tolerances", "--policy", "--no_distances", "--organs", "--trust_shape", "--lesions", "--parquet", "--processes", "-np", "--verbose",
    },
    "benchmark": {
        "--datasets", "-d", "--output", "-o", "--model", "-m", "--fold", "-f", "--specialists", "--competitors",
        "--commands", "--medsam", "--medsam_boxes", "--tolerance", "--tolerances", "--policy", "--no_distances",
        "--organs", "--trust_shape", "--copy_baseline", "--correction", "--device", "-device", "--processes", "-np", "--verbose",
    },
    "models": {"--fetch", "--json", "--verbose"},
    "import": {
        "--checkpoint", "--text_encoder", "--output", "-o", "--text_architecture", "--name", "--licence", "--verbose",
    },
    "export": {
        "--model", "-m", "--output", "-o", "--fold", "-f", "--checkpoint", "-chk", "--name", "--licence", "--verbose",
    },
    "view": {"--output", "-o", "--modality", "--megavoxels", "--open", "--verbose"},
    "try": {"--prompts", "-p", "--output", "-o", "--model", "-m", "--modality", "--open", "--device", "-device", "--verbose"},
    "info": {"--classes", "--verify", "--json", "--verbose"},
    "knowledge build": {
        "--output", "-o", "--ontologies", "--obo", "--umls", "--tables", "--dataset", "-d", "--licence", "--lenient",
        "--verbose",
    },
    "knowledge show": {"--tree", "-t", "--verbose"},
    "text bank": {"--output", "-o", "--prompts", "-p", "--prompt_file", "--classes", "--encoder", "-e", "--verbose"},
    "pretrain text": {
        "--output", "-o", "--tree", "-t", "--encoder", "-e", "--steps", "--batch", "--learning_rate", "--warmup",
        "--weight_decay", "--temperature", "--frozen_layers", "--hard", "--max_tokens", "--held_out", "--no_dropout",
        "--seed", "--checkpoint_every", "--precision", "--continue", "--c", "--device", "-device", "--verbose",
    },
    "demo": {"--output", "-o", "--steps", "--specialists", "--device", "-device", "--processes", "-np", "--verbose"},
}  # fmt: skip


@pytest.mark.parametrize("command", sorted(OPTIONS))
def test_options_do_not_change_by_accident(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse([*command.split(), "--help"])
    assert ended.value.code == 0
    words = {w.strip(",.│[]") for w in capsys.readouterr().out.split()}
    found = {w for w in words if w.startswith("-") and w.strip("-─")}
    assert found - {"-h", "--help"} == OPTIONS[command]


@pytest.mark.parametrize("command", sorted(OPTIONS))
def test_every_option_has_a_description(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse([*command.split(), "--help"])
    described: dict[str, str] = {}
    option = ""
    for line in capsys.readouterr().out.splitlines():
        text = line[1:-1].strip()  # without the frame
        if re.match(r". --?\w", line):  # an option's names, which may be followed by its description
            option, *rest = re.split(r"\s{2,}", text, maxsplit=1)
            described[option] = " ".join(rest)
        elif option:
            described[option] += f" {text}"
    assert described
    assert [name for name, said in described.items() if not said.strip() or said.strip().startswith("(")] == []


def test_help_answers_at_once_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['satunet', '--help']\n"
        "from satunet.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'nibabel', 'SimpleITK', 'nnunetv2', 'matplotlib', 'transformers'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert "plan_and_preprocess" in done.stdout
    assert time.monotonic() - started < 5  # a guard against minutes; the claim of 0.5 s is measured in benchmarks/


_ENDS = """
import atexit, sys, tempfile, threading, time
import torch
import satunet.cli

class Command:
    verbose = False
    def run(self):
        self.folder = tempfile.TemporaryDirectory(dir={folder!r})
        atexit.register(lambda: sys.stdout.write("exit function\\n"))
        threading.Thread(target=lambda: (time.sleep(0.5), sys.stdout.write("thread\\n"))).start()
        sys.stdout.write("printed\\n")
        return 1

satunet.cli.parse = lambda given: Command()
satunet.cli.script()
"""


@pytest.mark.parametrize(
    ("given", "found"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "777"}, "777"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "0")],
)
def test_openmp_waits_as_the_environment_says_or_for_a_short_time(given: dict[str, str], found: str) -> None:
    usual = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    code = "from satunet.cli import share_cores; share_cores(); import torch"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=usual | given | {"OMP_DISPLAY_ENV": "VERBOSE"},
        capture_output=True,
        text=True,
        check=True,
    )
    told = [line.strip() for line in done.stderr.splitlines() if "GOMP_SPINCOUNT" in line]
    if not told:
        pytest.skip("this torch does not use GNU's OpenMP")
    assert any(line.endswith(f"'{found}'") for line in told), told


def test_a_command_ends_as_python_does(tmp_path: Path) -> None:
    """Threads, exit functions, temporary folders, buffered output and the exit code, without Python's own end."""
    code = _ENDS.format(folder=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 1 and not done.stderr, done.stderr
    assert done.stdout.splitlines() == ["printed", "thread", "exit function"]
    assert not list(tmp_path.iterdir())


def test_output_that_nobody_reads_is_no_success(tmp_path: Path) -> None:
    """A full device behind the output is told, as Python tells it (exit code 120)."""
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    code = _ENDS.format(folder=str(tmp_path))
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""},
            stdout=full, stderr=subprocess.PIPE, encoding="utf-8",
        )  # fmt: skip
    assert done.returncode == 120 and "No space left" in done.stderr


def test_a_wrong_call_is_code_2(nnunet_env: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(["predict"])
    assert ended.value.code == 2
    assert run(["labels", "-d", "77"]) == 2
    assert "no dataset with id 77" in " ".join(capfd.readouterr().err.split())
    assert run(["predict", "-i", str(nnunet_env), "-o", str(nnunet_env / "out")]) == 2
    assert "say what to segment" in " ".join(capfd.readouterr().err.split())
    assert run(["predict", "-i", str(nnunet_env), "-o", str(nnunet_env / "out"), "-p", "liver"]) == 2
    assert "no images in this folder" in " ".join(capfd.readouterr().err.split())


@pytest.mark.parametrize(("typed", "meant"), [("predct", "predict"), ("plan-and-preproces", "plan_and_preprocess")])
def test_a_mistyped_command_gets_the_nearest(typed: str, meant: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run([typed, "-d", "1"])
    assert ended.value.code == 2
    said = capfd.readouterr().err
    assert f"no command {typed!r}; did you mean {meant!r}?" in said
    assert len(said.splitlines()) == 1


def test_a_mistyped_option_gets_the_nearest(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(["predict", "-i", "x", "-o", "y", "-p", "liver", "--modalty", "ct"])
    assert ended.value.code == 2
    out = capfd.readouterr()
    assert "--modality" in out.err + out.out


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (["try", "a.nii.gz", "liver", "left kidney"], 'liver "left kidney" follow no option; what to look for goes after -p.'),
        (["train", "900"], "satunet train: 900 follows no option; the dataset goes after -d."),
        (["predict", "a.nii.gz", "-o", "x"], "a.nii.gz follows no option; scans go after -i, what to look for goes after -p."),
        (["doctor", "x"], "satunet doctor: x follows no option; satunet doctor --help shows all options"),
    ],
)  # fmt: skip
def test_a_value_without_an_option_is_told_its_place(call, told, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(call)
    assert ended.value.code == 2
    said = capfd.readouterr().err
    assert told in said and len(said.splitlines()) == 1


def test_the_name_alone_shows_the_help(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run([])
    assert ended.value.code == 0
    assert "Look at a scan" in capfd.readouterr().out


def test_a_missing_model_says_what_a_model_is_and_which_are_here(
    tmp_path: Path, nnunet_env: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "a.nii.gz").write_bytes(b"")
    call = ["predict", "-i", str(tmp_path / "scans"), "-p", "hippocampus"]
    assert run([*call, "-o", str(tmp_path / "first")]) == 1  # the scan is empty; the model comes with satunet
    said = capfd.readouterr()
    assert "no model was given (-m): using 'starter'" in said.err + said.out
    call += ["-o", str(tmp_path / "out")]
    for folder in (nnunet_env / "results" / "Dataset900_Unified" / "other", tmp_path / "mine"):
        folder.mkdir(parents=True)
        for name in ("plans.json", "label_space.json"):
            (folder / name).write_text("{}")
    assert run([*call, "-m", str(tmp_path / "none")]) == 2
    missing = capfd.readouterr().err
    assert "a model is a folder with plans.json" in missing
    assert "satunet train" in missing
    assert str(nnunet_env / "results" / "Dataset900_Unified" / "other") in missing
    assert "mine" in missing
    assert not (tmp_path / "out").exists()


def test_logs_in_a_pipe_are_one_line_each(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    long = tmp_path / ("a" * 100) / ("b" * 100)
    assert run(["info", str(long)]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"ERROR    {long}:")


def test_a_missing_variable_is_explained(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("nnUNet_raw", raising=False)
    assert run(["datasets"]) == 2
    assert "nnUNet_raw is not set" in " ".join(capfd.readouterr().err.split())


def test_datasets_and_labels_are_listed(nnunet_env: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from satunet.demo.synthetic import make_synthetic_datasets

    make_synthetic_datasets(nnunet_env / "raw", cases=1)
    assert run(["datasets"]) == 0
    assert "Dataset901_SyntheticCT" in capsys.readouterr().out
    assert run(["labels", "-d", "901", "902", "--json"]) == 0
    assert '"kidney"' in capsys.readouterr().out
    assert run(["datasets", "-d", "902"]) == 0
    out = capsys.readouterr().out
    assert "Dataset902_SyntheticMRI" in out and "Dataset901" not in out and "are not there" not in out
    (nnunet_env / "raw" / "Dataset902_SyntheticMRI" / "dataset.json").write_text("{")
    assert run(["datasets", "--json"]) == 1
    assert run(["datasets", "-d", "901", "--json"]) == 0
    assert run(["datasets", "-d", "903"]) == 2


def test_one_thing_is_in_the_singular() -> None:
    from satunet.jobs.wording import counted

    told = [counted(n, "class", "classes") for n in (0, 1, 2, 1200)]
    assert told == ["0 classes", "1 class", "2 classes", "1,200 classes"] and counted(1, "case") == "1 case"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from satunet import __version__

    assert run(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"satunet {__version__}"
