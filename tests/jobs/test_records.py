"""Records: what comes back is what was written, and every wrong file is one sentence that names it."""

from __future__ import annotations

import base64
import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from satunet.errors import PlanError, SatunetError, UserError
from satunet.jobs.records import fields_of, from_plain, load_record, save_record, to_plain
from satunet.types import Box, PackedFloats


@dataclass(frozen=True, kw_only=True)
class Inner:
    spacing_mm: tuple[float, float, float]
    name: str = "x"


@dataclass(frozen=True, kw_only=True)
class Example:
    RECORD_VERSION: ClassVar[int] = 2

    count: int
    inner: Inner
    placed: dict[int, Box] = field(default_factory=dict)
    fold: int | str = "all"
    digest: bytes = b""
    parts: tuple[Inner | None, ...] = ()
    side: Literal["left", "right"] | None = None
    ids: dict[str, tuple[int, ...]] = field(default_factory=dict)
    known: frozenset[str] = frozenset()
    folder: Path | None = None
    share: float = 0.5
    strict: bool = True
    lenient: bool | None = None

    def __post_init__(self) -> None:
        if self.count < 0:
            raise UserError(f"count must be at least 0, got {self.count}")

    @classmethod
    def upgrade(cls, content: dict[str, object], version: int) -> dict[str, object]:
        content["count"] = content.pop("number")
        return content


EXAMPLE = Example(count=3, inner=Inner(spacing_mm=(1, 1.5, 2)), side="left", ids={"a": (1, 2)},
                  known=frozenset({"b", "a"}), folder=Path("x/y"))  # fmt: skip

examples = st.builds(
    Example,
    count=st.integers(0, 2**60),
    inner=st.builds(Inner, spacing_mm=st.tuples(*[st.floats(0.01, 1e6)] * 3), name=st.text()),
    side=st.sampled_from([None, "left", "right"]),
    ids=st.dictionaries(st.text(max_size=5), st.lists(st.integers(), max_size=4).map(tuple), max_size=3),
    placed=st.dictionaries(st.integers(), st.tuples(*[st.builds(slice, st.integers(), st.integers())] * 3), max_size=3),
    fold=st.integers() | st.text(),
    digest=st.binary(max_size=9),
    parts=st.lists(st.none() | st.just(Inner(spacing_mm=(1, 2, 3))), max_size=3).map(tuple),
    known=st.frozensets(st.text(max_size=5), max_size=4),
    share=st.floats(allow_nan=False),
)


@given(examples)
def test_what_was_written_comes_back(example: Example) -> None:
    assert from_plain(json.loads(json.dumps(to_plain(example))), Example, source="f") == example


def test_a_file_comes_back_and_tells_its_version(tmp_path: Path) -> None:
    save_record(tmp_path / "r.json", EXAMPLE)
    assert json.loads((tmp_path / "r.json").read_text())["version"] == 2
    assert load_record(tmp_path / "r.json", Example) == EXAMPLE


def test_an_older_version_is_read_and_a_newer_one_refused() -> None:
    old = {"version": 1, "number": 4, "inner": {"spacing_mm": [1, 2, 3]}}
    assert from_plain(old, Example, source="f").count == 4
    with pytest.raises(UserError, match="f: an example of version 9; this satunet reads up to version 2"):
        from_plain({"version": 9}, Example, source="f")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"count": "3"}, r"expected a whole number, got '3' in count"),
        ({"count": 3.0}, r"expected a whole number, got 3.0 in count"),
        ({"count": True}, r"expected a whole number, got True in count"),
        ({"count": -1}, r"count must be at least 0, got -1"),
        ({"inner": {"spacing_mm": [1, 2]}}, r"spacing_mm"),
        ({"inner": {"spacing_mm": [1, 2, None]}}, r"expected a number, got None in inner.spacing_mm"),
        ({"inner": []}, r"inner"),
        ({"inner": {}}, r"'spacing_mm' is missing in inner"),
        ({"side": "up"}, r"side"),
        ({"colour": 1, "taste": 2}, r"colour, taste not known to this version"),
        ({"ids": {"a": 1}}, r"ids"),
        ({"placed": {"a": [[1, 2], [3, 4], [5, 6]]}}, r"expected whole numbers as keys, got 'a' in placed"),
        ({"placed": []}, r"expected a JSON object, got a list in placed"),
        ({"placed": {"1": [[1, 2], [3, 4]]}}, r"placed"),
        ({"fold": 1.5}, r"expected a whole number or a text, got 1.5 in fold"),
        ({"digest": "%"}, r"expected base64, got '%' in digest"),
        ({"version": "2"}, r"its version is '2'"),
        ({"version": 0}, r"its version is 0"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, object], told: str) -> None:
    with pytest.raises(PlanError, match=told) as caught:
        from_plain(to_plain(EXAMPLE) | change, Example, source="folder/file.json", error=PlanError)
    assert str(caught.value).startswith("folder/file.json: ")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"3",
        b'"x"',
        b"\xff\xfe{\x00}\x00",
        b"[" * 100_000,
        b'{"inner":' * 50_000,
        b"\x00" * 9,
    ],
)
def test_a_damaged_or_foreign_file_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "r.json"
    file.write_bytes(content)
    with pytest.raises(PlanError) as caught:
        load_record(file, Example, error=PlanError)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone.json: no such file; expected an example"):
        load_record(tmp_path / "gone.json", Example)
    with pytest.raises(UserError, match="cannot be read"):
        load_record(tmp_path, Example)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
                    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["version", "count", "inner", "ids",
                                                                                     "spacing_mm", "x"]), inner)))  # fmt: skip
def test_no_content_gives_another_error(content: object) -> None:
    try:
        from_plain(content, Example, source="f")
    except SatunetError as error:  # any other class is the failure
        message = str(error)
    else:
        return
    assert message.startswith("f: ")


@dataclass(frozen=True, kw_only=True, eq=False)
class Arrays:
    affine: NDArray[np.float64]
    curve: PackedFloats


def test_arrays_come_back_with_their_type_and_shape() -> None:
    record = Arrays(affine=np.arange(6.0).reshape(2, 3), curve=PackedFloats(np.float32([0.1, np.nan, np.inf])))
    plain = json.loads(json.dumps(to_plain(record)))
    assert plain["affine"] == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert base64.b64decode(plain["curve"]) == struct.pack("<3f", 0.1, float("nan"), float("inf"))
    found = from_plain(plain, Arrays, source="f")
    for name in ("affine", "curve"):
        np.testing.assert_array_equal(getattr(found, name), getattr(record, name))
        assert getattr(found, name).dtype == getattr(record, name).dtype
    for affine in ("x", [[1], [1, 2]], {"a": 1}):
        with pytest.raises(UserError, match=r"f: .*expected numbers in lists of one length.* in affine"):
            from_plain(plain | {"affine": affine}, Arrays, source="f")


def test_a_part_of_a_file_has_no_version_of_its_own() -> None:
    assert "version" not in fields_of(EXAMPLE)
    assert to_plain(EXAMPLE) == {"version": 2} | fields_of(EXAMPLE)
    assert fields_of(EXAMPLE)["inner"]["spacing_mm"] == [1.0, 1.5, 2.0]  # what JSON would make of it


def test_numbers_of_numpy_are_written_as_numbers() -> None:
    inner = Inner(spacing_mm=tuple(np.array([1, 2, 3], np.float32)))  # type: ignore[arg-type]
    assert json.dumps(to_plain(inner)) == '{"version": 1, "spacing_mm": [1.0, 2.0, 3.0], "name": "x"}'
