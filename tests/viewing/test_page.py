"""The page: what is in it, read back by nibabel, and what a browser makes of it."""

from __future__ import annotations

import base64
import gzip
import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from satunet.cli import run
from satunet.geometry import Grid
from satunet.images.colours import colour_of
from satunet.images.image import Image, write_label_map, write_volume
from satunet.viewing.page import write_page
from satunet.viewing.structures import Structure
from tests.viewing.chromium import Page, find_chromium

SHAPE = (40, 36, 30)
NASTY = '</script><script>document.title="taken"</script>&amp;"\'\u2028'


def scan(dtype: Any = np.int16, affine: np.ndarray | None = None) -> Image:
    """CT in LPS order: air, a body, and a bright block on the patient's right at the front."""
    array = np.full(SHAPE, -1000, dtype=np.float32)
    array[4:36, 4:32, 2:28] = 0
    array[8:16, 8:14, 8:20] = 200
    grid = Grid(shape=SHAPE, affine=np.diag([-1.0, -1.0, 1.5, 1.0]) if affine is None else affine)
    return Image(array=array.astype(dtype), grid=grid)


def structure(name: str, *box: slice, inside: np.ndarray | None = None) -> Structure:
    if inside is None:
        inside = np.ones([s.stop - s.start for s in box], bool)
    return Structure(name=name, box=box, inside=inside, kind=name)  # type: ignore[arg-type]


def some_structures() -> list[Structure]:
    return [
        structure("liver", slice(8, 16), slice(8, 14), slice(8, 20)),
        structure("spleen", slice(24, 30), slice(10, 20), slice(6, 16)),
        structure("liver tumor", slice(10, 13), slice(9, 12), slice(10, 14)),  # inside the liver
        structure("nothing", slice(0, 0), slice(0, 0), slice(0, 0)),
    ]


def content(page: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text("utf-8"), re.DOTALL)
    assert found is not None
    read: dict[str, Any] = json.loads(found[1])
    return read


def volume(text: str) -> nib.Nifti1Image:
    return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(text)))


def test_scan_and_masks_are_in_the_page_as_they_are(tmp_path: Path) -> None:
    image = scan()
    write_page(tmp_path / "p.html", image, some_structures(), title="a", modality="ct")
    data = content(tmp_path / "p.html")
    read = volume(data["scan"])
    assert np.array_equal(read.get_fdata(), image.array)
    assert np.allclose(read.affine, image.grid.affine)
    layers = [np.asarray(volume(text).dataobj) for text in data["layers"]]
    assert len(layers) == 2  # the tumour lies in the liver; everything else shares a map
    for wanted, shown in zip(some_structures(), data["structures"], strict=True):
        assert shown["name"] == wanted.name
        if wanted.voxels == 0:
            assert (shown["layer"], shown["centre"], shown["ml"]) == (None, None, 0)
            continue
        mask = np.zeros(SHAPE, bool)
        mask[wanted.box] = wanted.inside
        assert np.array_equal(layers[shown["layer"]] == shown["label"], mask)
        assert shown["ml"] == pytest.approx(mask.sum() * 1.5 / 1000)
        assert tuple(shown["colour"]) == colour_of(wanted.name)
        index = np.rint(np.linalg.solve(image.grid.affine, [*shown["centre"], 1])[:3]).astype(int)
        assert mask[tuple(index)]


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.uint8, np.float64])
def test_intensities_of_any_type_come_back(tmp_path: Path, dtype: Any) -> None:
    array = np.random.default_rng(0).gamma(2, 40, SHAPE)
    array = array.clip(0, 255).astype(dtype) if dtype == np.uint8 else (array * 1e4).astype(dtype)
    image = Image(array=array, grid=scan().grid)
    write_page(tmp_path / "p.html", image, [], title="a")
    read = volume(content(tmp_path / "p.html")["scan"]).get_fdata()
    assert np.abs(read - array).max() <= (array.max() - array.min()) / 4095  # a step of grey


def test_a_large_scan_is_shown_coarser_in_the_same_place(tmp_path: Path) -> None:
    image = scan()
    write_page(
        tmp_path / "p.html", image, some_structures(), title="a", modality="ct", most_voxels=SHAPE[0] * 36 * 30 // 5
    )
    data = content(tmp_path / "p.html")
    assert data["steps"] == [2, 2, 2]
    read, layer = volume(data["scan"]), np.asarray(volume(data["layers"][0]).dataobj)
    liver = data["structures"][0]
    assert liver["ml"] == pytest.approx(8 * 6 * 12 * 1.5 / 1000)
    # The corner of the scan, and the middle of the block, are where they were, in millimetres.
    corner = image.grid.affine @ [-0.5, -0.5, -0.5, 1]
    assert np.allclose(read.affine @ [-0.5, -0.5, -0.5, 1], corner)
    middle = (read.affine @ [*np.argwhere(layer == liver["label"]).mean(0), 1])[:3]
    assert np.allclose(middle, (image.grid.affine @ [11.5, 10.5, 13.5, 1])[:3])
    assert np.array_equal(read.get_fdata() == 200, layer == liver["label"])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(*[st.tuples(st.integers(0, 8), st.integers(1, 4)) for _ in range(3)]), max_size=12))
def test_no_layer_loses_a_voxel(tmp_path_factory: pytest.TempPathFactory, boxes: list[Any]) -> None:
    path = tmp_path_factory.mktemp("page") / "p.html"
    image = Image(array=np.zeros((12, 12, 12), np.int16), grid=Grid(shape=(12, 12, 12), affine=np.eye(4)))
    structures = [structure(f"s{k}", *(slice(a, a + n) for a, n in box)) for k, box in enumerate(boxes)]
    write_page(path, image, structures, title="a")
    data = content(path)
    layers = [np.asarray(volume(text).dataobj) for text in data["layers"]]
    for wanted, shown in zip(structures, data["structures"], strict=True):
        assert np.count_nonzero(layers[shown["layer"]] == shown["label"]) == wanted.voxels
        assert (layers[shown["layer"]][wanted.box] == shown["label"]).all()


class Links(HTMLParser):
    """Whatever makes a browser ask for something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.scripts = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        self.found += [v for k, v in attrs if k in ("src", "href", "action", "data") and v]


def test_the_page_asks_for_nothing_and_names_are_text(tmp_path: Path) -> None:
    named = [structure(NASTY, slice(1, 3), slice(1, 3), slice(1, 3))]
    write_page(tmp_path / "p.html", scan(), named, title=NASTY)
    links = Links((tmp_path / "p.html").read_text("utf-8"))
    assert links.found == ["data:,"]
    assert links.scripts == 3
    assert content(tmp_path / "p.html")["structures"][0]["name"] == NASTY
    text = (tmp_path / "p.html").read_text("utf-8")
    assert "BSD 2-Clause License" in text and "Copyright (c) 2021, Niivue" in text


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    image = scan()
    write_volume(tmp_path / "a_0000.nii.gz", image.array, like=image)
    labels = np.zeros(SHAPE, np.uint8)
    labels[8:16, 8:14, 8:20] = 1
    write_label_map(tmp_path / "m.nii.gz", labels, like=image, legend={1: "liver"})
    assert run(["view", "a_0000.nii.gz", "m.nii.gz"]) == 0
    assert "a_view.html: 1 structure," in capsys.readouterr().out
    data = content(tmp_path / "a_view.html")
    assert (data["title"], data["ct"], data["structures"][0]["name"]) == ("a", True, "liver")
    assert run(["view", "a_0000.nii.gz", ".", "-o", "folder.html"]) == 0
    assert [s["name"] for s in content(tmp_path / "folder.html")["structures"]] == ["m"]
    (tmp_path / "empty").mkdir()
    for wrong, reason in (
        (["view", "b.nii.gz", "m.nii.gz"], "no such scan"),
        (["view", "a_0000.nii.gz", "m.nii.gz", "-o", "m.nii.gz"], "has to end in .html"),
        (["view", "a_0000.nii.gz", "empty", "-o", "x.html"], "neither masks nor results of 'a'"),
        (["view", "a_0000.nii.gz", "m.nii.gz", "--megavoxels", "0"], "must be more than 0"),
    ):
        assert run(wrong) in (1, 2)
        assert reason in capsys.readouterr().err.replace("\n", " ")


# ---- in a browser ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The page of some structures, open in Chromium."""
    if find_chromium() is None:
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")
    folder = tmp_path_factory.mktemp("browser")
    write_page(folder / "p.html", scan(), [*some_structures(), structure(NASTY, slice(1, 3), slice(1, 3), slice(1, 3))], title="a <b>", modality="ct")  # fmt: skip
    with Page(folder / "profile") as opened:
        opened.open(folder / "p.html")
        yield opened


def coloured(picture: np.ndarray, name: str, given: list[int] | None = None) -> np.ndarray:
    """Pixels of the canvas that have a structure's hue, at the page's opacity over grey."""
    colour = np.array(given or colour_of(name), float)
    canvas = picture[:, 321:].astype(float)
    base = colour - colour.mean()
    own = canvas - canvas.mean(axis=2, keepdims=True)
    length = np.linalg.norm(own, axis=2)
    return np.asarray((own @ base / (np.linalg.norm(base) * np.maximum(length, 1e-9)) > 0.98) & (length > 25))


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero(mask)
    return int(rows.min()), int(rows.max()), int(columns.min()), int(columns.max())


def axial(page: Page) -> None:
    """The slice through the middle of the liver block, without crosshair."""
    page.click('[data-view="axial"]')
    page.run("satunet.nv.setCrosshairWidth(0); satunet.go({centre: [-11, -10, 18]})")


@pytest.mark.slow
def test_the_picture_of_a_mask_is_where_it_should_be(page: Page) -> None:
    axial(page)
    page.run("satunet.show([2, 4], false)")
    with_masks = page.picture()
    page.click("#none")
    without = page.picture()
    bright = without[:, 321:].min(axis=2) > 165  # the block in the scan itself, as the browser drew it
    liver = coloured(with_masks, "liver")
    assert bright.sum() > 1000
    assert np.abs(np.subtract(box_of(bright), box_of(liver))).max() <= 3
    assert np.logical_and(bright, liver).sum() > 0.95 * np.logical_or(bright, liver).sum()
    # The patient's right is on the left, the front on top; the body is in the middle.
    body = without[:, 321:].min(axis=2) > 60
    top, bottom, left, right = box_of(body)
    assert np.nonzero(liver)[1].mean() < (left + right) / 2
    assert np.nonzero(liver)[0].mean() < (top + bottom) / 2
    spleen = coloured(with_masks, "spleen")
    assert np.nonzero(spleen)[1].mean() > (left + right) / 2
    page.click("#all")
    assert page.problems == []


@pytest.mark.slow
def test_a_click_toggles_a_structure(page: Page) -> None:
    axial(page)
    page.click("#all")
    page.click("#structure-2 input")
    before = {name: coloured(page.picture(), name).sum() for name in ("liver", "spleen")}
    page.click("#structure-0 input")
    off = {name: coloured(page.picture(), name).sum() for name in ("liver", "spleen")}
    page.click("#structure-0 input")
    again = {name: coloured(page.picture(), name).sum() for name in ("liver", "spleen")}
    assert before["liver"] > 1000
    assert off == {"liver": 0, "spleen": before["spleen"]}
    assert again == before
    page.click("#structure-2 input")
    assert coloured(page.picture(), "liver tumor").sum() > 50  # over the liver
    page.run(
        "document.getElementById('opacity').value = 0; document.getElementById('opacity').dispatchEvent(new Event('input'))"
    )
    assert coloured(page.picture(), "spleen").sum() == 0
    page.run(
        "document.getElementById('opacity').value = 50; document.getElementById('opacity').dispatchEvent(new Event('input'))"
    )
    assert coloured(page.picture(), "spleen").sum() == before["spleen"]
    assert page.problems == []


@pytest.mark.slow
def test_hundreds_of_structures_have_their_own_colours(tmp_path: Path) -> None:
    """Background stays black, and the largest and the smallest structure are as coloured as the table says."""
    if find_chromium() is None:
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")
    boxes = [
        (slice(6 + 2 * (k % 14), 8 + 2 * (k % 14)), slice(20, 30), slice(2 + k // 14, 3 + k // 14)) for k in range(196)
    ]
    many = [structure(f"structure {k}", *box) for k, box in enumerate(boxes)]
    image = Image(array=np.zeros(SHAPE, np.int16), grid=scan().grid)
    write_page(tmp_path / "p.html", image, [structure("liver", slice(8, 20), slice(4, 16), slice(2, 28)), *many], title="many")  # fmt: skip
    with Page(tmp_path / "profile", size=(900, 600)) as opened:
        opened.open(tmp_path / "p.html")
        opened.click('[data-view="axial"]')
        opened.run("satunet.nv.setCrosshairWidth(0); satunet.go({centre: [-14, -10, 4.5]})")
        picture = opened.picture()
        assert coloured(picture, "liver").sum() > 1000
        shown = content(tmp_path / "p.html")["structures"]
        for k in (k for k, box in enumerate(boxes) if box[2].start == 3):
            assert coloured(picture, "", shown[k + 1]["colour"]).sum() > 100, k
        background = picture[45:85, 330:880]  # in front of the liver, inside the scan
        assert background.max() < 10
        opened.click("#none")
        assert np.ptp(opened.picture()[:, 321:], axis=2).max() < 40  # nothing but grey and letters
        assert opened.problems == []


@pytest.mark.slow
def test_names_lead_to_structures_and_are_only_text(page: Page) -> None:
    assert page.run("document.title") == "a <b>"
    page.click("#structure-1 .name")
    said = page.run("document.getElementById('place').textContent")
    assert "spleen" in said and "0 HU" in said
    assert "L 27" in said or "L 26" in said
    names = page.run("[...document.querySelectorAll('#structures .name')].map(n => n.textContent)")
    assert names == [*(s.name for s in some_structures()), NASTY]
    volumes = page.run("[...document.querySelectorAll('#structures .ml')].map(n => n.textContent)")
    assert volumes[:4] == ["0.86 ml", "0.90 ml", "0.05 ml", "not found"]
    page.run("const f = document.getElementById('filter'); f.value = 'SPL'; f.dispatchEvent(new Event('input'))")
    seen = page.run("[...document.querySelectorAll('#structures li')].map(n => !n.hidden)")
    assert seen == [False, True, False, False, False]
    page.run("const g = document.getElementById('filter'); g.value = ''; g.dispatchEvent(new Event('input'))")


@pytest.mark.slow
def test_every_view_draws(page: Page) -> None:
    pictures = {}
    for view in ("multi", "coronal", "sagittal", "render", "axial"):
        page.click(f'[data-view="{view}"]')
        time.sleep(0.2)
        pictures[view] = page.picture()[:, 321:]
        assert pictures[view].std() > 5, view
    for a, b in (("axial", "coronal"), ("coronal", "sagittal"), ("render", "multi")):
        assert np.abs(pictures[a] - pictures[b]).mean() > 1
    assert page.problems == []
