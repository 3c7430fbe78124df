"""The report: complete, offline, and safe whatever the names hold."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from satunet.evaluation.benchmark.conclusions.comparison import compare
from satunet.evaluation.benchmark.conclusions.results import BenchmarkTables, Cost
from satunet.evaluation.report.charts import bland_altman
from satunet.evaluation.report.document import report_html, report_markdown, write_report
from satunet.evaluation.report.overlays import PANEL, Overlay, class_index_map, draw_overlay
from satunet.evaluation.report.pictures import ReportCase, draw_cases
from satunet.evaluation.scoring.run import evaluate_cases
from satunet.evaluation.scoring.scores import Evaluation, Row
from satunet.geometry import Grid
from satunet.images.colours import colour_of
from satunet.images.image import Image, write_label_map, write_volume
from satunet.labels.scored import classes_of_dataset

from .conftest import in_datasets, scored

EVIL = "<script>alert(\"x\")</script> | $a_b$ & 'q' {{ 7*7 }}"


def evaluation(values: dict[str, float], failures: dict[str, str] | None = None) -> Evaluation:
    rows = [
        Row(case="c", scan="c", class_name=n, dsc=v, nsd=v, reference_ml=1.0, prediction_ml=1.0)
        for n, v in values.items()
    ]
    return Evaluation(rows=tuple(rows), classes=scored(dict.fromkeys(values, (1,)), lesions=["lesion"]).classes, cases=("c",), failures=failures or {})  # fmt: skip


def tables(name: str = "liver", dataset: str = "Dataset001_X", competitor: str = "nnU-Net") -> BenchmarkTables:
    ours, theirs = evaluation({name: 0.87654, "lesion": 0.5}), evaluation({name: 0.8, "lesion": 0.6}, {"c": name})
    return compare(
        in_datasets(
            {dataset: {"satunet": ours, competitor: theirs}, "Dataset002_Y": {"satunet": evaluation({name: 0.3})}}
        ),
        costs={"satunet": Cost(models=1, parameters=5_000_000), competitor: Cost(models=2)},
        missing={competitor: {"Dataset002_Y": name}},
        notes=[name],
    )


class Page(HTMLParser):
    """Tags, addresses and visible text of a page; fails where tags do not match."""

    VOID = frozenset({"meta", "img", "input", "br"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "action", "data", "poster")]
        self.handlers += [k for k, _ in attrs if k.startswith("on")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text += data


def test_content() -> None:
    page = Page(report_html(tables()))
    for expected in ("87.65", "80.00", "Dataset001_X", "5.0 M", "1 mm", "lesions", "Paired comparison", "2 failures"):
        assert expected in page.text
    assert "nan" not in page.text.lower().split()


def test_nothing_is_loaded_from_anywhere() -> None:
    html = report_html(tables(), overlays=[overlay()])
    page = Page(html)
    assert page.addresses
    assert all(a.startswith(("data:image/", "#")) for a in page.addresses)
    assert not {"link", "iframe", "object", "embed", "base"} & set(page.tags)
    assert not re.search(r"url\(|@import|fetch\(|XMLHttp|https?://(?!www\.w3\.org)", html)


def test_names_cannot_inject_anything() -> None:
    plain = Page(report_html(tables(), overlays=[overlay()]))
    evil = Page(report_html(tables(EVIL, EVIL, EVIL), overlays=[overlay(EVIL, EVIL)], title=EVIL))
    assert evil.tags == plain.tags
    assert evil.handlers == []
    assert evil.text.count(EVIL) > 10
    for address in evil.addresses:
        if address.startswith("data:image/svg"):
            svg = base64.b64decode(address.partition(",")[2]).decode()
            assert "<script" not in svg
    text = report_markdown(tables(EVIL))
    assert "<script" not in text
    for block in text.split("\n\n"):
        if block.startswith("|"):
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def test_what_is_partial_says_so() -> None:
    ours = in_datasets({"Dataset001_X": {"satunet": evaluation({"liver": 0.9})}})
    unfinished = compare(ours, waiting=["satunet/Dataset002_Y/fold_0"])
    page = Page(report_html(unfinished))
    assert "Partial." in page.text
    assert "Still to come: satunet/Dataset002_Y/fold_0" in page.text
    assert "**Partial:**" in report_markdown(unfinished)
    assert "Partial" not in Page(report_html(compare(ours))).text


def test_volumes_are_plotted_and_failures_are_not() -> None:
    rows = [Row(case=f"c{i}", scan=f"c{i}", class_name="liver", dsc=0.5, nsd=0.5, reference_ml=10.0 + i,
                prediction_ml=11.0 + i, error="broken" if i == 3 else "") for i in range(4)]  # fmt: skip
    own = Evaluation(
        rows=tuple(rows), classes=scored({"liver": (1,)}).classes, cases=tuple(r.case for r in rows), failures={}
    )
    results = in_datasets({"D": {"satunet": own}})
    address = bland_altman(results, "satunet", ["satunet"])
    assert address is not None
    svg = base64.b64decode(address.partition(",")[2]).decode()
    bias = np.mean([100 / 10.5, 100 / 11.5, 100 / 12.5])
    assert f"{bias:+.1f} %" in svg
    page = Page(report_html(compare(results), results=results))
    assert "Bland–Altman" in page.text
    assert bland_altman(in_datasets({"D": {"satunet": evaluation({"liver": 0.5})}}), "satunet", ["satunet"]) is None


def test_metrics_that_were_not_computed_have_no_column() -> None:
    assert "HD95" not in Page(report_html(tables())).text
    row = Row(
        case="c", scan="c", class_name="liver", dsc=0.5, nsd=0.5, hd95_mm=3.217, reference_ml=1.0, prediction_ml=2.0
    )
    own = Evaluation(rows=(row,), classes=scored({"liver": (1,)}).classes, cases=("c",), failures={})
    page = Page(report_html(compare(in_datasets({"D": {"satunet": own}}))))
    for expected in ("HD95, mm", "3.22", "+100.0"):
        assert expected in page.text


def test_one_competitor_alone() -> None:
    page = Page(report_html(compare(in_datasets({"Dataset001_X": {"satunet": evaluation({"liver": 0.9})}}))))
    assert "90.00" in page.text
    assert "Paired comparison" not in page.text
    assert "every scan was predicted and scored" in page.text


def test_many_classes_show_the_lowest() -> None:
    many = {f"class {i:03d}": i / 100 for i in range(100)}
    html = report_html(compare(in_datasets({"D": {"x": evaluation(many), "y": evaluation(many)}})))
    assert "the 40 lowest" in Page(html).text
    charts = [base64.b64decode(a.partition(",")[2]).decode() for a in Page(html).addresses if "svg" in a]
    assert any("class 039" in c and "class 040" not in c for c in charts)


def test_files(tmp_path: Path) -> None:
    html = write_report(tmp_path, tables(), overlays=[overlay()])
    assert html == tmp_path / "report.html"
    assert {"report.md", "classes.csv", "benchmark.json"} <= {p.name for p in tmp_path.iterdir()}
    assert "| Dataset001_X | 1 | 2 | 0 / 1 | 68.83 | 70.00 |" in (tmp_path / "report.md").read_text("utf-8")


def overlay(dataset: str = "Dataset001_X", name: str = "liver") -> Overlay:
    image, labels = scan()
    maps = {"reference": labels, name: labels, "third": None}
    return draw_overlay(image, maps, ["box", "spot"], dataset=dataset, case=name, notes={name: "DSC 1"})


def scan() -> tuple[Image, np.ndarray]:
    """A scan in LPS order: class 1 is a box on the patient's right, class 2 a spot at the front, inside it."""
    array = np.random.default_rng(0).normal(size=(40, 30, 10)).astype(np.float32)
    labels = np.zeros(array.shape, dtype=np.uint16)
    labels[4:14, 5:25, 2:8] = 1  # low first index of an L axis: right
    labels[6:10, 6:9, 4:6] = 2  # low second index of a P axis: front
    grid = Grid(shape=(40, 30, 10), affine=np.diag([-1.0, -1.0, 3.0, 1.0]))
    return Image(array=array, grid=grid), labels


def pixels(address: str) -> np.ndarray:
    from PIL import Image as Picture

    return np.asarray(Picture.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGB")).astype(int)


def test_axial_planes_have_the_right_on_the_left_and_the_front_on_top() -> None:
    picture = overlay().panels[0].picture
    assert picture is not None
    axial = pixels(picture)[:PANEL]

    def drawn(name: str) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns of a structure's outline."""
        return np.nonzero(np.linalg.norm(axial - np.array(colour_of(name)), axis=2) < 80)

    rows, columns = drawn("box")
    assert len(rows) > 100
    assert columns.mean() < PANEL * 0.5
    assert np.mean(drawn("spot")[0]) < rows.mean() - 20


def test_a_map_that_is_missing_is_an_empty_panel() -> None:
    shown = overlay()
    assert [p.picture is None for p in shown.panels] == [False, False, True]
    assert "no prediction" in Page(report_html(tables(), overlays=[shown])).text
    image, _ = scan()
    with pytest.raises(ValueError, match="no label map"):
        draw_overlay(image, {"reference": None}, ["box"], dataset="D", case="c")


def test_an_empty_reference_can_be_drawn() -> None:
    image, labels = scan()
    shown = draw_overlay(image, {"reference": np.zeros_like(labels)}, ["box"], dataset="D", case="c")
    assert shown.legend == ()
    assert shown.panels[0].picture


def test_small_masks_lie_on_top_of_large_ones() -> None:
    large, small = np.zeros((4, 4, 4), dtype=bool), np.zeros((4, 4, 4), dtype=bool)
    large[:], small[1, 1, 1] = True, True
    labels = class_index_map({"small": small, "large": large}, ["small", "large"], (4, 4, 4))
    assert labels[1, 1, 1] == 1
    assert np.count_nonzero(labels == 2) == 63


def test_cases_from_files(tmp_path: Path) -> None:
    image, labels = scan()
    classes = scored({"box": (1, 2), "spot": (2,)})
    write_volume(tmp_path / "i.nii.gz", image.array, like=image.grid)
    write_label_map(tmp_path / "r" / "c.nii.gz", labels, like=image.grid)
    write_label_map(tmp_path / "p" / "c.nii.gz", labels, like=image.grid)
    write_label_map(tmp_path / "m" / "c" / "box.nii.gz", labels > 0, like=image.grid)
    case = ReportCase(dataset="D", case="c", image=tmp_path / "i.nii.gz", reference=tmp_path / "r" / "c.nii.gz",
                      classes=classes, predictions={n: tmp_path / n for n in ("p", "m", "nothing")})  # fmt: skip
    gone = ReportCase(dataset="E", case="c", image=tmp_path / "none.nii.gz", reference=case.reference, classes=classes,
                      predictions={})  # fmt: skip
    [shown] = draw_cases([case, gone])
    reference, same, box_only, nothing = shown.panels
    assert reference.picture == same.picture
    assert box_only.picture not in (None, reference.picture)
    assert nothing.picture is None


def test_a_case_opens_in_a_page_to_look_around_in(tmp_path: Path) -> None:
    image, labels = scan()
    write_volume(tmp_path / "i.nii.gz", image.array, like=image.grid)
    write_label_map(tmp_path / "r" / "a#b.nii.gz", labels, like=image.grid)
    write_label_map(tmp_path / "p" / "a#b.nii.gz", np.roll(labels, 1, axis=0) * (labels != 2), like=image.grid)
    case = ReportCase(dataset="D", case="a#b", image=tmp_path / "i.nii.gz", reference=tmp_path / "r" / "a#b.nii.gz",
                      classes=scored({"box": (1, 2), "spot": (2,)}), predictions={"p": tmp_path / "p", "q": tmp_path / "q"},
                      rank="worst")  # fmt: skip
    [shown] = draw_cases([case], tmp_path / "bench" / "pages")
    page = tmp_path / "bench" / unquote(shown.page)
    found = re.search(r'id="data">(.*?)</script>', page.read_text("utf-8"), re.DOTALL)
    assert found is not None
    content = json.loads(found[1])
    assert content["title"] == "D, a#b (worst)"
    volumes = {(s["group"], s["name"]): s["ml"] for s in content["structures"]}
    voxel = image.grid.voxel_ml
    assert volumes["reference", "spot"] == pytest.approx(np.count_nonzero(labels == 2) * voxel)
    assert volumes["reference", "box"] == pytest.approx(np.count_nonzero(labels == 1) * voxel)
    assert {group for group, _ in volumes} == {"reference", "p"}  # nobody predicted "q"
    [without] = draw_cases([case])
    assert (without.page, without.panels) == ("", shown.panels)


def test_real_data(real_raw: Path, tmp_path: Path) -> None:
    """148 classes of a real brain against a copy moved by one voxel, as numbers and as a page."""
    from satunet.datasets.raw import read_dataset
    from satunet.images.image import read_label_map

    dataset = read_dataset(real_raw / "Dataset302_BrainRegions_MR")
    classes = classes_of_dataset(dataset)
    case = dataset.training_cases()[0]
    assert case.label is not None
    labels = read_label_map(case.label)
    write_label_map(tmp_path / "moved" / case.label.name, np.roll(labels.array, 1, axis=0), like=labels)
    found, summary = evaluate_cases({case.identifier: case.label}, tmp_path / "moved", classes)
    assert summary.exit_code == 0
    assert 0.3 < found.mean("dsc") < 0.9
    assert found.mean("nsd") < 1  # one voxel is 2 mm
    drawn = draw_cases([
        ReportCase(dataset=dataset.name, case=case.identifier, image=case.images[0], reference=case.label,
                   classes=classes, predictions={"moved": tmp_path / "moved"}, modality="mri")
    ])  # fmt: skip
    html = write_report(tmp_path / "report", compare(in_datasets({dataset.name: {"moved": found}})), overlays=drawn)
    assert html.stat().st_size < 1_000_000
    assert drawn[0].panels[0].picture != drawn[0].panels[1].picture
