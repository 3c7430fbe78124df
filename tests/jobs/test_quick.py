"""Records that are read quickly are those that cattrs gives, and whatever is odd is left to cattrs."""

from __future__ import annotations

import gc
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from satunet.errors import UserError
from satunet.jobs import records
from satunet.jobs.fresh import FileState, Stamp
from satunet.jobs.quick import collection_paused, collection_resumed, quick_reader
from satunet.jobs.records import from_plain, to_plain
from satunet.planners.fingerprint.dataset import CaseFingerprint, DatasetFingerprint


@dataclass(frozen=True, kw_only=True)
class Node:
    """Every kind of field, and itself."""

    real: float
    odd: int
    title: str = "x"
    sure: bool = True
    place: Path | None = None
    triple: tuple[float, int, str] = (1.0, 1, "")
    counts: dict[int, int] = field(default_factory=dict)
    sizes: dict[int, tuple[float, float]] = field(default_factory=dict)
    files: dict[str, tuple[int, str]] = field(default_factory=dict)
    corners: tuple[tuple[int, int], ...] = ()
    side: Literal["left", "right"] = "left"
    known: frozenset[str] = frozenset()
    below: tuple[Node | None, ...] = ()
    named: dict[str, Node] = field(default_factory=dict)
    free: dict[str, Any] = field(default_factory=dict)
    digest: bytes = b""
    follows: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        if self.odd > 1000:
            raise UserError(f"odd must be at most 1000, got {self.odd}")


LEAF = Node(real=0.5, odd=3)
NODE = Node(
    real=1e300, odd=-2, title="é", sure=False, place=Path("a/b"), triple=(2.0, 3, "z"), counts={1: 2, -7: 0},
    sizes={4: (1.0, 2.5)}, files={".b2nd": (9, "f")}, corners=((0, 1), (2, 3)), side="right",
    known=frozenset({"u", "v"}), below=(None, LEAF), named={"n": LEAF}, free={"k": [1, None]}, digest=b"\0x",
)  # fmt: skip
CASE = CaseFingerprint(
    dataset="D", case="c", channels=1, spacing=(3.0, 1.0, 1.0), shape_after_crop=(4, 5, 6), relative_size=1.0,
    spacing_ras=(1.0, 1.0, 3.0), shape_ras=(6, 5, 4), label_voxels={1: 7}, label_extents_mm={1: (1.0, 2.0, 3.0)},
    scans=("ab",), made_of=Stamp(files=(FileState(path="/f", size=1, time_ns=2, change_ns=3, sha256="", seen_ns=4),)),
)  # fmt: skip
FINGERPRINT = DatasetFingerprint(dataset="D", cases=(CASE, CASE), channels=(), channel_names=("CT",))

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.sampled_from(["", "x", "abc", "1", "-1"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["1", "-1", "--1", "01", "²", " 1", "1_0", "+1", "x", "real", "odd"]), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


def quick(cls: type[Any]) -> Any:
    """The quick reader of a class, with what it leaves to cattrs."""
    return quick_reader(cls, lambda value, kind: records._converter().structure(value, kind))


def plain_of(record: Any) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(to_plain(record)))
    del plain["version"]
    return plain


def places_in(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in nested plain values."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, each in inner for place in places_in(each, (*path, key)))]


def changed(value: Any, path: tuple[Any, ...], new: Any, how: str) -> Any:
    """A copy with the value at a place replaced, removed, or given a neighbour."""
    if not path:
        return new
    copy = json.loads(json.dumps(value))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    if how == "replace":
        inner[path[-1]] = new
    elif how == "remove":
        del inner[path[-1]]
    elif isinstance(inner, list):
        inner.insert(path[-1], new)
    else:
        inner[f"{path[-1]}1"] = new
    return copy


def same_or_left_to_cattrs(cls: type[Any], plain: Any) -> bool:
    """Whether the quick reader took the values; fails if cattrs would not have taken them, or made others of them."""
    try:
        found = quick(cls)(plain)
    except Exception:
        return False
    told = records._converter().structure(plain, cls)
    assert found == told
    assert repr(found) == repr(told)  # True is not 1, nor 1 1.0
    return True


@pytest.mark.parametrize("record", [LEAF, NODE, CASE, FINGERPRINT], ids=lambda r: type(r).__name__)
def test_what_was_written_is_read_quickly(record: Any) -> None:
    plain = plain_of(record)
    assert quick(type(record))(plain) == record
    assert same_or_left_to_cattrs(type(record), plain)


@pytest.mark.parametrize("record", [NODE, FINGERPRINT], ids=["node", "fingerprint"])
@given(data=st.data())
def test_whatever_is_taken_is_what_cattrs_makes_of_it(record: Any, data: st.DataObject) -> None:
    plain = plain_of(record)
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from(places_in(plain)))
        plain = changed(plain, path, data.draw(values), data.draw(st.sampled_from(["replace", "remove", "add"])))
    same_or_left_to_cattrs(type(record), plain)


@pytest.mark.parametrize(
    "change",
    [{"odd": True}, {"odd": 1.0}, {"real": "1"}, {"title": 1}, {"sure": 1}, {"triple": [1.0, 1]}, {"triple": "abc"},
     {"sizes": {"1": "ab"}}, {"sizes": {"1": [1.0, True]}}, {"counts": {"1_0": 1}}, {"counts": {"x": 1}}, {"follows": 1},
     {"free": []}, {"corners": {"0": 1}}, {"new": 1}, {"odd": 2000}],
    ids=str,
)  # fmt: skip
def test_what_is_wrong_is_not_taken(change: dict[str, Any]) -> None:
    with pytest.raises(Exception):  # noqa: B017, PT011  # of any kind
        quick(Node)(plain_of(NODE) | change)
    with pytest.raises(UserError, match="f: "):
        from_plain(plain_of(NODE) | change, Node, source="f")


def test_fields_with_defaults_may_be_missing_and_others_not() -> None:
    assert quick(Node)({"real": 1, "odd": 2}) == Node(real=1.0, odd=2)
    with pytest.raises(TypeError):
        quick(Node)({"real": 1})


def test_the_records_of_cases_need_no_cattrs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planner has thousands of them: a field of a type that is not known would cost seconds."""
    plain = json.loads(json.dumps(to_plain(FINGERPRINT)))
    monkeypatch.setattr(records, "_converter", lambda: pytest.fail("asked cattrs"))
    assert from_plain(plain, DatasetFingerprint, source="f") == FINGERPRINT


def test_the_collection_of_garbage_goes_on_afterwards() -> None:
    def fails() -> None:
        with collection_paused():
            with collection_paused():
                assert not gc.isenabled()
            assert not gc.isenabled()
            raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        fails()
    assert gc.isenabled()


def test_the_collection_of_garbage_goes_on_within_a_pause_where_more_than_records_is_made() -> None:
    with collection_paused():
        with collection_resumed():
            assert gc.isenabled()
        assert not gc.isenabled()
    with collection_resumed():
        assert gc.isenabled()
    assert gc.isenabled()
