from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from satunet.jobs.file_names import name_key, safe_name, table_cell, text_of_cell, unique_names

LONG = "heterogeneously enhancing mass in the left hepatic lobe, " * 6
TEXTS = st.text(min_size=0, max_size=400)
# What Windows, macOS, eCryptfs and shells refuse or understand otherwise; written down from their documentation.
FORBIDDEN = set('<>:"/\\|?*') | {chr(i) for i in range(32)} | {"\x7f"}
DEVICES = {"con", "prn", "aux", "nul", *(f"{d}{n}" for d in ("com", "lpt") for n in range(10))}


@given(TEXTS)
@example("..")
@example("CON")
@example("nul.nii")
@example("com¹")
@example("-rf")
@example("a\\b")
@example("б" * 120)
@example(LONG)
@example("\ud800")
def test_a_name_is_safe_everywhere(text: str) -> None:
    name = safe_name(text)
    assert name
    assert not FORBIDDEN & set(name)
    assert not name.startswith((".", "-", " "))
    assert not name.endswith((".", " "))
    assert unicodedata.normalize("NFKC", name.split(".")[0]).lower() not in DEVICES
    assert len(f".tmp-12345678-{name}_probability.nii.gz".encode()) <= 143
    assert Path(f"/out/{name}").resolve().parent == Path("/out")
    assert safe_name(name) == name


@given(st.lists(TEXTS, max_size=12))
@example(["a/b", "a:b", "a_b"])
@example(["Bright", "BRIGHT", "bright "])
@example(["é", "e\u0301"])
@example(["bright", "bright probability"])
@example(["bright probability", "bright"])
@example([LONG + "a", LONG + "b"])
@example(["x", "x", "x"])
@settings(max_examples=200)
def test_no_two_names_are_one(texts: list[str]) -> None:
    names = unique_names(texts, taken=("manifest",), suffixes=("", "_probability"))
    assert len(names) == len(texts)
    files = [f"{name}{suffix}" for name in names for suffix in ("", "_probability")]
    assert len({unicodedata.normalize("NFD", f).upper() for f in files}) == len(files)
    assert len({name_key(f) for f in [*files, "manifest"]}) == len(files) + 1


@pytest.mark.parametrize("text", ["left kidney", "L5 (vertebra)", "Ü 1.5+"])
def test_usual_names_stay_readable(text: str) -> None:
    assert safe_name(text) == text.replace(" ", "_").replace("(", "_").replace(")", "_")


def test_a_name_does_not_depend_on_how_many_there_are() -> None:
    few, many = unique_names(["a/b", "a:b"]), unique_names(["a/b", "a|b", "a:b"])
    assert few[1] == many[2]


def test_the_file_system_here_takes_them(tmp_path: Path) -> None:
    texts = ["CON", "a\\b", "б" * 200, LONG, "=1+1", "bright;rm -rf", "🙂", "\x00", "a\nb", "..", "."]
    for name in unique_names(texts):
        (tmp_path / f"{name}_probability.nii.gz").write_text("")
    assert len(os.listdir(tmp_path)) == len(texts)


@given(st.text(alphabet="=+-@'\t\rab", max_size=6))
@example("=SUM(A1)")
@example("'=x")
@example("'a")
def test_a_cell_is_no_formula_and_tells_its_text(text: str) -> None:
    cell = table_cell(text)
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
    assert text_of_cell(cell) == text
