"""What is written says by its digest whether it is still what was written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from satunet.errors import UserError
from satunet.jobs.files import _broken, atomic_folder, parse_json, read_json, write_json


def test_a_sealed_file_is_read_as_it_was_written_and_damage_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_json(file, {1: (2, 3.5), "b": float("nan"), "ä": None}, sealed=True)
    content = json.loads(file.read_text())
    plain = '{"1":[2,3.5],"b":NaN,"\\u00e4":null}'  # as RFC 8785 orders it: by key, without spaces
    assert content["content_sha256"] == hashlib.sha256(plain.encode()).hexdigest()
    assert repr(read_json(file)) == "{'1': [2, 3.5], 'b': nan, 'ä': None}"
    file.write_text(file.read_text().replace("3.5", "3.25"))
    with pytest.raises(ValueError, match=r"a\.json: damaged"):
        read_json(file)
    del content["content_sha256"]  # whoever changes it on purpose
    file.write_text(json.dumps(content))
    assert read_json(file)["1"] == [2, 3.5]


@pytest.mark.parametrize("text", [b"\xff", b"{", b"[" * 100_000, b"9" * 100_000, b""])
def test_text_that_is_no_json_is_one_kind_of_error(text: bytes) -> None:
    with pytest.raises(ValueError, match="here: not JSON"):
        parse_json(text, "here")


def test_a_folder_that_another_job_made_meanwhile_is_left_alone(tmp_path: Path) -> None:
    def write() -> None:
        with atomic_folder(tmp_path / "a") as folder:
            (folder / "own").touch()
            (tmp_path / "a").mkdir()
            (tmp_path / "a" / "theirs").touch()

    with pytest.raises(UserError, match="another job has made it meanwhile"):
        write()
    assert [p.name for p in tmp_path.rglob("*")] == ["a", "theirs"]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=30),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=9), inner),
    )
)
def test_lines_change_nothing_of_the_content(content: object) -> None:
    assert json.loads(_broken(content, json.dumps(content), 0)) == content


@given(st.lists(st.lists(st.integers() | st.floats(allow_nan=False) | st.text(max_size=9), max_size=9), max_size=40))
def test_rows_of_numbers_are_laid_out_as_all_other_lists(rows: list[list[float | str]]) -> None:
    text = _broken(rows, json.dumps(rows), 0)
    assert json.loads(text) == rows
    if len(json.dumps(rows)) > 100:
        one_by_one = [_broken(row, json.dumps(row), 1) for row in rows]
        assert text == "[\n " + ",\n ".join(one_by_one) + "\n]"


def test_rows_that_are_too_long_for_a_line_are_broken() -> None:
    rows = [list(range(100)), [1], []]
    assert _broken(rows, json.dumps(rows), 0).splitlines()[:3] == ["[", " [", "  0,"]


def test_a_large_file_has_a_case_per_line_and_a_small_one_a_value(tmp_path: Path) -> None:
    cases = [
        {"case": f"case_{i}", "spacing": [0.5, 1.0, 2.0], "labels": {str(n): n for n in range(30)}} for i in range(999)
    ]
    write_json(tmp_path / "large.json", {"satunet": {"cases": cases}, "empty": {}}, sealed=True)
    lines = (tmp_path / "large.json").read_text().splitlines()
    assert len([line for line in lines if line.strip().startswith('{"case": "case_')]) == 999
    assert len(lines) < 1010
    assert read_json(tmp_path / "large.json") == {"satunet": {"cases": cases}, "empty": {}}
    write_json(tmp_path / "small.json", {"satunet": {"cases": cases[:1]}})
    assert '   "spacing": [\n' in (tmp_path / "small.json").read_text()
