"""What is written says by its digest whether it is still what was written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from satunet.errors import UserError
from satunet.jobs.files import atomic_folder, parse_json, read_json, write_json


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

    with pytest.raises(UserError, match="made by another job meanwhile"):
        write()
    assert [p.name for p in tmp_path.rglob("*")] == ["a", "theirs"]
