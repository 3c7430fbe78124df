"""``satunet knowledge``, ``text`` and ``pretrain``, in process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from satunet.cli import run
from satunet.text import TextBank, load_text_encoder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SATUNET_CACHE", str(tmp_path / "cache"))


def test_build_show_and_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "mine.csv"
    table.write_text("name,synonyms,part_of\ncaudal stump,tail end,back\nback,,\nspleen,milt,back\n")
    tree = tmp_path / "tree.jsonl.gz"
    build = ["knowledge", "build", "--ontologies", "none", "--tables", str(table), "--licence", "CC0-1.0"]
    assert run([*build, "-o", str(tree)]) == 0
    shown = capsys.readouterr().out
    assert "mine" in shown and "CC0-1.0" in shown
    review = (tmp_path / "tree_links.tsv").read_text().splitlines()
    assert len(review) == 452
    assert "spleen\tspleen\tspleen\tsame_as\tname\t" in review
    assert run(["knowledge", "show", "tail end", "-t", str(tree)]) == 0
    shown = capsys.readouterr().out
    assert "caudal stump" in shown and "back" in shown
    assert run(["knowledge", "show", "caudel stump", "-t", str(tree)]) == 1
    assert "caudal stump (0.9" in capsys.readouterr().out
    for action in ("info", "check"):
        assert run(["knowledge", action, "-t", str(tree)]) == 0
    assert "classes without a link" in capsys.readouterr().out
    # Without -o, the tree is where other commands look for it.
    assert run(build) == 0
    capsys.readouterr()
    assert run(["knowledge", "show", "caudal stump"]) == 0
    assert "tail end" in capsys.readouterr().out


def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.csv").write_text("name,part_of\na,b\nb,a\n")
    call = [
        "knowledge",
        "build",
        "--ontologies",
        "none",
        "--tables",
        str(tmp_path / "mine.csv"),
        "-o",
        str(tmp_path / "t.jsonl"),
    ]
    assert run(call) == 2
    said = "".join(capfd.readouterr().err.split())
    assert "itsownancestor" in said and "line2" in said and "line3" in said
    assert not (tmp_path / "t.jsonl").exists()
    assert run([*call, "--lenient"]) == 0


def test_a_bank_from_a_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prompts.txt").write_text("liver\n\nleft kidney\nliver\n")
    bank = tmp_path / "bank.safetensors"
    assert run(["text", "bank", "--prompt_file", str(tmp_path / "prompts.txt"), "-p", "spleen", "-o", str(bank)]) == 0
    loaded = TextBank.load(bank)
    assert loaded.texts == ("spleen", "liver", "left kidney")
    assert np.allclose(loaded.matrix(["liver"]), load_text_encoder().encode(["liver"]), atol=1e-6)
    assert run(["text", "bank", "-o", str(bank)]) == 2
    (tmp_path / "prompts.txt").write_bytes(b"\xff\xfe\x00")
    assert run(["text", "bank", "--prompt_file", str(tmp_path / "prompts.txt"), "-o", str(bank)]) == 2
    assert "cannot be read as a list of prompts" in " ".join(capfd.readouterr().err.split())
    assert run(["text", "encoders"]) == 0
