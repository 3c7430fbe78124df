"""The catalogue: what it holds against the published files, and what it refuses."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from satunet.datasets.catalogue import SAT_DS, load_catalogue, simple_name
from satunet.errors import CatalogueError


@pytest.fixture
def content() -> dict[str, Any]:
    return json.loads(SAT_DS.read_text())


def test_labels_and_weights_are_the_published_ones(shared_dir: Path) -> None:
    folder = shared_dir / "reference" / "sat_ds"
    weights = json.loads((folder / "sampling_weights.json").read_text())
    records = load_catalogue().records
    assert [r.id for r in records] == list(range(1, 73))
    for record in records:
        published = json.loads((folder / "datasets" / record.folder / "dataset.json").read_text())
        assert {"background": 0, **record.labels} == published["labels"]
        assert list(record.channel_names) == list(published["channel_names"].values())
        assert record.weight == weights[record.name]
        assert record.link.startswith("http")
    assert {r.name: r.orientation for r in records if r.orientation != "RAS"} == {
        "MRSpineSeg": "ASR",
        "VerSe": "ASR",
        "ToothFairy": "IPL",
        "BTCV_Cervix": "LPS",
    }


def test_scans_and_links_are_the_published_ones(shared_dir: Path) -> None:
    lines = (shared_dir / "reference" / "sat_ds" / "datasets.tsv").read_text().splitlines()[1:]
    rows = {row[5]: int(row[4]) for row in (line.split("\t") for line in lines)}
    for record in load_catalogue().records:
        assert record.link in rows
    total = sum(int(line.split("\t")[4]) for line in lines if " *" not in line)
    assert sum(r.scans for r in load_catalogue().records) == total


def test_names_are_found_in_any_spelling() -> None:
    catalogue = load_catalogue()
    for name in ("Dataset003_AMOS22CT", "Dataset555_amos22_ct", "AMOS22_CT"):
        assert catalogue.by_name(name) is catalogue.records[2]
    assert catalogue.by_name("Dataset003_AMOS") is None
    assert simple_name("AMOS22_CT") == "amos22ct"


def _change(index: int, **values: object) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["datasets"][index].update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_change(1, id=1, folder="Dataset001_ACDC"), "id 1 twice"),
        (_change(1, name="AbdomenCT1K"), "name abdomenct1k twice"),
        (_change(0, id=5), "folder 'Dataset001_AbdomenCT1K' does not match the id 5"),
        (_change(0, modality="xray"), "modality 'xray' is not one of ct, mri"),
        (_change(0, scans=0), "scans and weight must be positive, got 0, 1.0"),
        (_change(0, orientation="RAX"), "orientation 'RAX' is not a code such as RAS"),
        (_change(0, labels={"liver": 1, "spleen": 1}), "label ids must be positive, each once"),
        (_change(0, classes={"liver": [1, 77]}), r"class 'liver' has ids \[1, 77\]; unknown are \[77\]"),
        (_change(0, classes={"liver": [1], "spleen": [1]}), "'liver' and 'spleen' have the same label ids"),
        (_change(2, classes={"left kidney": [2, 3], "right kidney": [2]}), "its right side share label ids"),
        (_change(0, colour="red"), "colour"),
        (lambda c: c.update(version=7), "version 7; this satunet reads version 1"),
        (
            lambda c: c["lesions"].append("gold tooth"),
            r"lesions names \['gold tooth'\], which no record has as classes",
        ),
        (lambda c: c["datasets"][0].pop("link"), "link"),
    ],
)
def test_contradictions_are_one_clear_error(
    content: dict[str, Any], tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    bad = copy.deepcopy(content)
    change(bad)
    file = tmp_path / "catalogue.json"
    file.write_text(json.dumps(bad))
    with pytest.raises(CatalogueError, match=message) as error:
        load_catalogue(file)
    assert str(file) in str(error.value)


def test_no_file_and_no_json(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text("{")
    for name in ("none.json", "c.json"):
        with pytest.raises(CatalogueError, match="cannot be read as a catalogue"):
            load_catalogue(tmp_path / name)


def test_a_catalogue_with_an_infinite_id_is_malformed(tmp_path: Path) -> None:
    content = json.loads(SAT_DS.read_text())
    first = content["datasets"][0]["classes"]
    first[next(iter(first))] = [float("inf")]
    file = tmp_path / "catalogue.json"
    file.write_text(json.dumps(content))
    with pytest.raises(CatalogueError, match=r"catalogue\.json: malformed"):
        load_catalogue(file)
