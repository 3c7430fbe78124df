from __future__ import annotations

from pathlib import Path

import pytest

from satunet.datasets.catalogue import load_catalogue
from satunet.errors import KnowledgeError
from satunet.knowledge.build import assemble
from satunet.knowledge.make import Built, build_tree
from satunet.knowledge.sources.labelspace import import_classes
from satunet.knowledge.sources.obo import import_obo
from satunet.knowledge.sources.ontologies import relation_kind
from satunet.knowledge.sources.table import import_table
from satunet.knowledge.sources.umls import import_umls
from satunet.knowledge.tree import KnowledgeTree, Term

OBO = """format-version: 1.2
ontology: tiny
data-version: 2026-01-01

[Term]
id: X:1
name: kidney
def: "A \\"bean\\" of the abdomen." [ref:1]
synonym: "ren" EXACT LATIN []
xref: FMA:7203
relationship: part_of X:2 ! abdomen

[Term]
id: X:2
name: abdomen

[Term]
id: X:3
name: left kidney
is_a: X:1 {source="x"} ! kidney

[Term]
id: X:4
name: old
is_obsolete: true

[Typedef]
id: part_of
name: part of
"""


def relations(tree: KnowledgeTree) -> set[tuple[str, str, str]]:
    return {(r.head, r.kind, r.tail) for r in tree.relations}


# ---- classes ----------------------------------------------------------------------------------------------------


def test_classes_follow_from_names_and_ids() -> None:
    ids = {
        "A": {"kidney": (1, 2, 3), "left kidney": (1,), "right kidney": (2, 3), "kidney tumor": (3,)},
        "B": {"lumbar vertebrae 1 (l1)": (1,), "lumbar vertebrae 2 (l2)": (2,), "hippocampus": (7,), "brain": (7, 8)},
    }
    done = assemble([import_classes(ids, lesions=["kidney tumor"], regions={"brain": ("brain",)}, version="test")]).tree
    got = {(h.removeprefix("class:"), k, t.removeprefix("class:")) for h, k, t in relations(done)}
    assert got == {
        ("left kidney", "left_variant_of", "kidney"),
        ("right kidney", "right_variant_of", "kidney"),
        ("left kidney", "other_side", "right kidney"),
        ("right kidney", "other_side", "left kidney"),
        ("kidney tumor", "lesion_of", "right kidney"),
        ("lumbar vertebrae 1 (l1)", "above", "lumbar vertebrae 2 (l2)"),
        ("lumbar vertebrae 2 (l2)", "below", "lumbar vertebrae 1 (l1)"),
        ("hippocampus", "part_of", "brain"),
        ("brain", "within", "region:brain"),
    }
    level = done.find("L2 vertebra")[0]
    assert level.name == "lumbar vertebrae 2 (l2)"
    assert level.definition == "The second of 5 lumbar vertebrae, counted from above."
    assert done.term("class:kidney").datasets == ("A",)


def test_two_classes_that_lie_in_each_other_are_no_parts() -> None:
    ids = {"A": {"x": (1,), "y": (1, 2)}, "B": {"x": (1, 2), "y": (1,)}}
    assert not assemble([import_classes(ids, version="test")]).tree.relations


def test_the_catalogue_alone_makes_a_tree() -> None:
    tree = build_tree(ontologies=()).tree
    assert {t.name for t in tree.terms.values() if t.id.startswith("class:")} == set(load_catalogue().class_names)
    assert {"class:hippocampus", "class:brain"} <= tree.ancestors("class:left hippocampus").keys()
    assert tree.tails("class:lumbar vertebrae 5 (l5)", ["above"]) == ("class:sacral vertebrae 1 (s1)",)
    assert all(s.licence == "Apache-2.0" for s in tree.sources)


# ---- UBERON and MONDO -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built() -> Built:
    pytest.importorskip("cellxgene_ontology_guide")
    return build_tree()


def test_the_ontologies_are_as_many_terms_as_sats_tree_and_link_the_classes(built: Built) -> None:
    counts = built.tree.by_source()
    assert counts["UBERON"] >= 6502
    assert built.linked >= 0.9
    assert {s.name: s.licence for s in built.tree.sources}["UBERON"] == "CC-BY-3.0"
    assert all(link.rule for link in built.links if link.term)


@pytest.mark.parametrize(
    ("name", "expected", "rule"),
    [
        ("spleen", "spleen", "name"),
        ("left kidney", "left kidney", "name"),
        ("left femur", "femur", "side"),
        ("head of left femur", "head of femur", "side"),
        ("lumbar vertebrae 3 (l3)", "lumbar vertebra 3", "level"),
        ("right rib 7", "rib 7", "side"),
        ("bronchie", "bronchus", "also called"),
        ("left lung upper lobe", "upper lobe of left lung", "also called"),
        ("lung upper lobe", "upper lobe of lung", "word order"),
        ("brainstem excluding substantia nigra", "brainstem", "rest"),
        ("left insula anterior long gyrus", "insula", "piece"),
        ("lung nodule", "lung", "lesion"),
        ("kidney tumor", "kidney neoplasm", "synonym"),
    ],
)
def test_links_say_what_an_anatomist_would(built: Built, name: str, expected: str, rule: str) -> None:
    link = next(k for k in built.links if k.class_name == name)
    assert (built.tree.terms[link.term or ""].name, link.rule) == (expected, rule)


def test_no_link_crosses_sides(built: Built) -> None:
    for link in built.links:
        words = set(built.tree.terms[link.term].name.lower().split()) if link.term else set()
        other = {"left": "right", "right": "left"}.get(
            next((w for w in link.class_name.split() if w in ("left", "right")), "")
        )
        assert other is None or other not in words, link


def test_known_facts_of_anatomy(built: Built) -> None:
    tree = built.tree
    up = {tree.terms[i].name for i in tree.ancestors("class:left kidney")}
    assert {"kidney", "abdomen"} <= up
    hand = tree.find("hand")[0]
    assert tree.find("foot")[0].id not in tree.ancestors(hand.id)


@pytest.mark.parametrize(
    ("name", "definition", "parent", "kind"),
    [
        ("left kidney", "A kidney that is part of a left side of organism.", "kidney", "is_a"),
        ("renal cortex", "Zone that is part of a kidney.", "kidney", "part_of"),
        ("cortex of kidney", "", "kidney", "part_of"),
        ("kidney cortex", "", "kidney", "part_of"),
        ("nipple", "Projection of skin.", "breast", "within"),
    ],
)
def test_what_names_and_definitions_tell_of_a_parent(name: str, definition: str, parent: str, kind: str) -> None:
    assert relation_kind(Term(id="x", name=name, source="s", definition=definition), [parent]) == kind


# ---- OBO --------------------------------------------------------------------------------------------------------


def test_obo(tmp_path: Path) -> None:
    pytest.importorskip("obonet")
    (tmp_path / "t.obo").write_text(OBO)
    tree = assemble([import_obo(tmp_path / "t.obo", licence="CC0-1.0")]).tree
    assert set(tree.terms) == {"X:1", "X:2", "X:3"}
    assert tree.term("X:1") == Term(id="X:1", name="kidney", source="tiny", synonyms=("ren",),
                                    definition='A "bean" of the abdomen.', ids=("FMA:7203",))  # fmt: skip
    assert relations(tree) == {("X:1", "part_of", "X:2"), ("X:3", "is_a", "X:1")}
    assert (tree.sources[0].version, tree.sources[0].licence) == ("2026-01-01", "CC0-1.0")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("id: X:2", "id: X:1"), r"t\.obo, line 14: duplicate id 'X:1', first in line 6"),
        (("is_a: X:1", "is_a: X:9"), r"t\.obo, line 20: X:3 is_a X:9: no term 'X:9'"),
        (("name: abdomen", "comment: nothing"), r"line 14: term X:2 has no name"),
        (("[Term]", "[Trem]"), "no \\[Term\\]|not an OBO"),
    ],
)
def test_bad_obo(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    pytest.importorskip("obonet")
    (tmp_path / "t.obo").write_text(OBO.replace(*change))
    with pytest.raises(KnowledgeError, match=message):
        assemble([import_obo(tmp_path / "t.obo")])


def test_obo_in_another_encoding(tmp_path: Path) -> None:
    pytest.importorskip("obonet")
    (tmp_path / "t.obo").write_bytes(OBO.replace("ren", "rén").encode("latin-1"))
    with pytest.raises(KnowledgeError, match=r"t\.obo, line 9: not UTF-8"):
        import_obo(tmp_path / "t.obo")


# ---- UMLS -------------------------------------------------------------------------------------------------------


def rrf(folder: Path, **files: list[str]) -> Path:
    for name, rows in files.items():
        (folder / f"{name}.RRF").write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    return folder


def name_row(
    cui: str, name: str, *, lat: str = "ENG", ts: str = "P", stt: str = "PF", pref: str = "Y", sab: str = "FMA"
) -> str:
    return f"{cui}|{lat}|{ts}|L1|{stt}|S1|{pref}|A1||||{sab}|PT|1|{name}|0|N||"


CONSO = [
    name_row("C1", "Renal organ", ts="S"), name_row("C1", "Kidney", sab="MSH"), name_row("C1", "Niere", lat="GER"),
    name_row("C2", "Abdomen"), name_row("C3", "Aspirin"),
]  # fmt: skip
STY = ["C1|T023|A1|Body Part|AT1||", "C2|T029|A1|Body Location|AT2||", "C3|T121|A1|Drug|AT3||"]
REL = ["C2|A1|AUI|RO|C1|A2|AUI|part_of|R1||FMA|FMA|||N||", "C1|A2|AUI|RO|C3|A1|AUI|isa|R2||X|X|||N||"]
DEF = ["C1|A1|AT1||MSH|Body organ that filters blood.|N||"]


def test_umls(tmp_path: Path) -> None:
    done = import_umls(rrf(tmp_path, MRCONSO=CONSO, MRSTY=STY, MRREL=REL, MRDEF=DEF))
    tree = assemble([done]).tree
    assert set(tree.terms) == {"UMLS:C1", "UMLS:C2"}
    assert tree.term("UMLS:C1") == Term(
        id="UMLS:C1", name="Kidney", source="UMLS/FMA+MSH", synonyms=("Renal organ",),
        definition="Body organ that filters blood.", ids=("C1",),
    )  # fmt: skip
    # MRREL: the second concept stands in the relation to the first.
    assert relations(tree) == {("UMLS:C1", "part_of", "UMLS:C2")}
    assert tree.sources[0].licence == "UMLS Metathesaurus License"
    assert done.notes == ["UMLS: 1 relations to concepts of other types or languages left out"]
    german = import_umls(tmp_path, languages=("GER",), types=None)
    assert [t.name for t, _ in german.terms] == ["Niere"]


def test_bad_umls(tmp_path: Path) -> None:
    with pytest.raises(KnowledgeError, match=r"no MRCONSO\.RRF here"):
        import_umls(tmp_path)
    rrf(tmp_path, MRCONSO=[CONSO[0], "C9|ENG|P|too short|"])
    with pytest.raises(KnowledgeError, match=r"MRCONSO\.RRF, line 2: 4 columns; MRCONSO\.RRF has 18"):
        import_umls(tmp_path)
    rrf(tmp_path, MRCONSO=CONSO, MRDEF=["C1|A1|AT1|"])
    with pytest.raises(KnowledgeError, match=r"MRDEF\.RRF, line 1: 3 columns"):
        import_umls(tmp_path)
    (tmp_path / "MRCONSO.RRF").write_bytes(name_row("C1", "Nière").encode("latin-1"))
    with pytest.raises(KnowledgeError, match=r"MRCONSO\.RRF, line 1 or later: not UTF-8"):
        import_umls(tmp_path)


# ---- tables -----------------------------------------------------------------------------------------------------

TABLES = {
    "t.csv": 'id,name,synonyms,definition,part_of\n1,kidney,ren|renal organ,"Bean, of the abdomen",abdomen\n2,abdomen,,,\n',
    "t.tsv": "id\tname\tsynonyms\tdefinition\tpart_of\n1\tkidney\tren|renal organ\tBean, of the abdomen\t2\n2\tabdomen\t\t\t\n",
    "t.json": '[{"id": 1, "name": "kidney", "synonyms": ["ren", "renal organ"], "definition": "Bean, of the abdomen",'
    ' "part_of": ["2"]}, {"id": "2", "name": "abdomen"}]',
    "t.jsonl": '{"id": "1", "name": "kidney", "synonyms": ["ren", "renal organ"], "definition": "Bean, of the abdomen"}\n\n'
    '{"id": "2", "name": "abdomen"}\n{"head": "kidney", "relation": "part_of", "tail": "abdomen"}\n',
}


@pytest.mark.parametrize("name", sorted(TABLES))
def test_tables_of_every_kind_give_the_same(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(TABLES[name])
    tree = assemble([import_table(tmp_path / name, name="mine", licence="CC0-1.0")]).tree
    assert tree.term("1") == Term(id="1", name="kidney", source="mine", synonyms=("ren", "renal organ"),
                                  definition="Bean, of the abdomen")  # fmt: skip
    assert relations(tree) == {("1", "part_of", "2")}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "term,part_of\nkidney,abdomen\n", "line 1: needs the column 'name'"),
        ("t.csv", "name,part_of\nkidney\n", "line 2: the row does not have the 2 columns"),
        ("t.csv", "name\nkidney,x\n", "line 2: the row does not have the 1 columns"),
        ("t.csv", "head,relation,tail\nkidney,,abdomen\n", "line 2: a triple needs head, relation and tail"),
        ("t.csv", "name,part_of\nkidney,abdomen\n", "line 2: kidney part_of abdomen: no term 'abdomen'"),
        ("t.csv", "name\nkidney\nkidney\n", "line 3: duplicate id 'kidney'"),
        ("t.json", "{}", "expected a list of objects, got a dict"),
        ("t.json", "[1]", "entry 1: expected an object"),
        ("t.jsonl", '{"name": "x"}\n{', "line 2: not JSON"),
        ("t.xlsx", "", "a table must be .csv, .tsv, .json or .jsonl"),
    ],
)
def test_bad_tables(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(KnowledgeError, match=message):
        assemble([import_table(tmp_path / name)])


def test_a_table_in_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes("name\nkidney\nMüller cell\n".encode("latin-1"))
    with pytest.raises(KnowledgeError, match=r"line 3: not UTF-8 .*save the file as UTF-8"):
        import_table(tmp_path / "t.csv")
