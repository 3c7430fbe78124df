from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from satunet.errors import KnowledgeError
from satunet.knowledge.build import Imported, assemble
from satunet.knowledge.check import check_tree
from satunet.knowledge.file import load_tree, save_tree
from satunet.knowledge.tree import HIERARCHY, KnowledgeTree, Relation, Source, Term


def imported(terms: dict[str, str], relations: list[tuple[str, str, str]], source: str = "test") -> Imported:
    found = Imported(sources=[Source(name=source, version="1", licence="CC0-1.0")])
    for line, (key, name) in enumerate(terms.items(), start=1):
        found.add(Term(id=key, name=name, source=source), f"terms.csv, line {line}")
    for line, (head, kind, tail) in enumerate(relations, start=1):
        found.relate(head, kind, tail, f"relations.csv, line {line}")
    return found


@pytest.fixture
def body() -> KnowledgeTree:
    """Organ of the abdomen with parts and sides; every answer below is read off this drawing.

    body ← abdomen ← kidney ← cortex of kidney;  left/right kidney → kidney;  organ ← kidney
    """
    terms = {"b": "body", "a": "abdomen", "k": "kidney", "c": "cortex of kidney", "l": "left kidney",
             "r": "right kidney", "o": "organ"}  # fmt: skip
    relations = [("a", "part_of", "b"), ("k", "part_of", "a"), ("c", "part_of", "k"), ("k", "is_a", "o"),
                 ("l", "left_variant_of", "k"), ("r", "right_variant_of", "k"), ("l", "other_side", "r"),
                 ("r", "other_side", "l")]  # fmt: skip
    return assemble([imported(terms, relations)]).tree


def test_queries_give_what_is_drawn(body: KnowledgeTree) -> None:
    assert body.ancestors("l") == {"k": 1, "a": 2, "o": 2, "b": 3}
    assert body.ancestors("l", ["left_variant_of"]) == {"k": 1}
    assert body.parts("b") == {"a": 1, "k": 2, "c": 3}
    assert body.parts("c") == {}
    assert body.siblings("l")[0] == "r"
    assert [t.id for t in body.find("Left_Kidney")] == ["l"]
    assert body.find("spleen") == ()
    assert body.nearest("left kidny", 1)[0][0].id == "l"
    with pytest.raises(KnowledgeError, match="no term 'x' among the 7"):
        body.ancestors("x")


def test_what_is_the_same_counts_as_one(body: KnowledgeTree) -> None:
    other = imported({"U": "renal organ", "D": "trunk"}, [("U", "part_of", "D"), ("k", "same_as", "U")], "other")
    terms = {t.id: t.name for t in body.terms.values()}
    tree = assemble([imported(terms, [(r.head, r.kind, r.tail) for r in body.relations]), other]).tree
    assert tree.ancestors("l")["D"] == 2
    assert set(tree.ancestors("U")) == {"a", "b", "o", "D"}
    assert tree.parts("D") == {"U": 1, "k": 1, "c": 2}
    assert tree.synonyms("U") == ("renal organ", "kidney")


@pytest.mark.parametrize("name", ["tree.jsonl", "tree.jsonl.gz"])
def test_the_file_round_trips_and_is_the_same_bytes(body: KnowledgeTree, tmp_path: Path, name: str) -> None:
    save_tree(body, tmp_path / name)
    loaded = load_tree(tmp_path / name)
    assert loaded.terms == body.terms
    assert set(loaded.relations) == set(body.relations)
    assert loaded.sources == body.sources
    save_tree(loaded, tmp_path / f"again-{name}")
    assert (tmp_path / name).read_bytes() == (tmp_path / f"again-{name}").read_bytes()


@pytest.mark.parametrize(
    ("relations", "message"),
    [
        ([("k", "part_of", "x")], r"relations.csv, line 1: k part_of x: no term 'x'"),
        (
            [("k", "part_of", "a"), ("a", "is_a", "b"), ("b", "part_of", "k")],
            r"its own ancestor: .*line 1.*line 2.*line 3",
        ),
        ([("k", "part_of", "k")], "k is part_of itself"),
    ],
)
def test_contradictions_are_errors_with_lines(relations: list[tuple[str, str, str]], message: str) -> None:
    terms = {"k": "kidney", "a": "abdomen", "b": "body"}
    with pytest.raises(KnowledgeError, match=message):
        assemble([imported(terms, relations)])
    done = assemble([imported(terms, relations)], lenient=True)
    assert len(done.dropped) == 1
    assert len(done.tree.relations) == len(relations) - 1


def test_a_double_id_names_both_places() -> None:
    with pytest.raises(KnowledgeError, match=r"terms.csv, line 1: duplicate id 'k', first in terms.csv, line 1"):
        assemble([imported({"k": "kidney"}, []), imported({"k": "Kidney"}, [])])


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=30))
def test_lenient_trees_have_no_circle(pairs: list[tuple[int, int]]) -> None:
    """Whatever is put in, going up ends; and only what closes a circle is left out."""
    terms = {str(i): f"term {i}" for i in range(8)}
    done = assemble([imported(terms, [(str(a), "part_of", str(b)) for a, b in pairs])], lenient=True)
    left: dict[str, set[str]] = {i: set() for i in terms}
    for relation in done.tree.relations:
        left[relation.head].add(relation.tail)
    while leaves := [i for i, tails in left.items() if not tails]:
        for leaf in leaves:
            del left[leaf]
        for tails in left.values():
            tails.difference_update(leaves)
    assert not left
    if all(a < b for a, b in pairs):
        assert len(done.tree.relations) == len(set(pairs))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "empty"),
        (['{"satunet_knowledge": 9, "sources": []}'], "line 1: knowledge tree version 9"),
        (["{"], "line 1: not JSON"),
        (['{"satunet_knowledge": 1, "sources": [{"nam": 1}]}'], "line 1: not the header"),
        ([None, '{"id": "k"}'], "line 2: not a term"),
        ([None, '{"id": "", "name": "x", "source": "s"}'], "line 2: a term needs an id and a name"),
        (
            [None, '{"id": "k", "name": "x", "source": "s"}', '{"id": "k", "name": "y", "source": "s"}'],
            "line 3: duplicate",
        ),
        ([None, '{"id": "k", "name": "x", "source": "s", "relations": {"is_a": ["y"]}}'], "line 2: k is_a y"),
        ([None, '{"id": "k", "name": "x", "source": "other"}'], "sources that the tree does not list"),
    ],
)
def test_a_damaged_file_is_refused_with_its_line(tmp_path: Path, lines: list[str | None], message: str) -> None:
    header = json.dumps({"satunet_knowledge": 1, "sources": [{"name": "s", "version": "1", "licence": "CC0-1.0"}]})
    (tmp_path / "t.jsonl").write_text("".join(f"{header if line is None else line}\n" for line in lines))
    with pytest.raises(KnowledgeError, match=message):
        load_tree(tmp_path / "t.jsonl")


def test_wrong_encodings_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(b'{"satunet_knowledge": 1, "sources": []}\n{"id": "M\xfcller"}\n')
    with pytest.raises(KnowledgeError, match="line 2: not JSON: its text is not in UTF-8"):
        load_tree(tmp_path / "t.jsonl")
    (tmp_path / "t.jsonl.gz").write_bytes(b"no gzip")
    for name in ("t.jsonl.gz", "none.jsonl"):
        with pytest.raises(KnowledgeError, match="cannot be read"):
            load_tree(tmp_path / name)


def test_the_check_finds_what_to_look_at(body: KnowledgeTree) -> None:
    terms = {"k": "kidney", "K": "Kidney", "l": "left kidney", "r": "right kidney", "x": "lonely"}
    relations = [("l", "other_side", "r"), ("k", "like", "K")]
    found = {f.what: f for f in check_tree(assemble([imported(terms, relations)]).tree)}
    assert found["preferred names shared by several terms of a source"].examples == ("k and K (test: kidney)",)
    assert found["terms without any relation"].examples == ("x lonely",)
    assert found["sides whose other side does not lead back"].examples == ("l → r",)
    assert found["kinds of relations that queries ignore"].examples == ("like",)
    assert {f.what for f in check_tree(body)} == {"terms without a definition"}


def test_relations_lead_upwards_only() -> None:
    assert not {"other_side", "next_to", "same_as", "above"} & set(HIERARCHY)
    assert Relation(head="a", kind="is_a", tail="b") == Relation(head="a", kind="is_a", tail="b")
