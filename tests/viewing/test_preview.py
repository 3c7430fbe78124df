"""Previews: where a structure is in the picture is worked out by hand from where it is in the patient."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

from satunet.geometry import Grid
from satunet.images.colours import colour_of
from satunet.images.image import Image
from satunet.viewing.preview import PLANE, Found, write_preview

SHAPE = (40, 40, 40)
LEFT, TOP, GAP = 8, 30, 8  # of the first plane; between planes


@dataclass
class Mask:
    box: tuple[slice, slice, slice]
    inside: np.ndarray

    @classmethod
    def block(cls, *box: slice) -> Mask:
        return cls(box=box, inside=np.ones([s.stop - s.start for s in box], bool))  # type: ignore[arg-type]


def scan(orientation: str = "RAS") -> Image:
    array = np.random.default_rng(0).normal(0, 30, SHAPE).astype(np.float32)
    signs = [1 if letter in "RAS" else -1 for letter in orientation]
    return Image(array=array, grid=Grid(shape=SHAPE, affine=np.diag([*signs, 1.0])))


def planes(path: Path) -> list[np.ndarray]:
    """Axial, coronal, sagittal plane."""
    sheet = np.asarray(Picture.open(path).convert("RGB")).astype(int)
    return [sheet[TOP : TOP + PLANE, LEFT + k * (PLANE + GAP) : LEFT + k * (PLANE + GAP) + PLANE] for k in range(3)]


def centre(plane: np.ndarray, name: str) -> tuple[float, float]:
    """(row, column) of a structure's outline, as shares of the plane."""
    rows, columns = np.nonzero(np.linalg.norm(plane - np.array(colour_of(name)), axis=2) < 30)
    assert len(rows) > 20, name
    return (rows.min() + rows.max()) / 2 / PLANE, (columns.min() + columns.max()) / 2 / PLANE


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "LAI"])
def test_the_picture_is_mirrored_as_radiologists_read(tmp_path: Path, orientation: str) -> None:
    def place(letters: str) -> Mask:
        """A block of a quarter of each axis, at the ends of the patient that the letters name."""
        pairs = [("R", "L"), ("A", "P"), ("S", "I")]
        box = []
        for letter, (high, low) in zip(orientation, pairs, strict=True):
            end = next((e for e in letters if e in (high, low)), None)
            first = 15 if end is None else 26 if end == letter else 4
            box.append(slice(first, first + 10))
        return Mask.block(*box)

    found = [Found(name="liver", mask=place("RAS")), Found(name="spleen", mask=place("LPI"))]
    write_preview(tmp_path / "p.png", scan(orientation), found, title="x")
    axial, coronal, sagittal = planes(tmp_path / "p.png")
    # Each plane shows the slice of most, which cuts one of the two; ask the picture for the one it shows.
    for plane, (row, column) in ((axial, ("A", "R")), (coronal, ("S", "R")), (sagittal, ("S", "A"))):
        for name, letters in (("liver", "RAS"), ("spleen", "LPI")):
            near = np.linalg.norm(plane - np.array(colour_of(name)), axis=2) < 30
            if near.sum() > 20:
                y, x = centre(plane, name)
                assert (y < 0.5) == (row in letters), (name, row)
                assert (x < 0.5) == (column in letters), (name, column)


def test_the_scan_is_turned_with_its_masks(tmp_path: Path) -> None:
    """What shines in the scan is under the mask that was drawn around it, in every plane."""
    image = scan("LPS")
    box = (slice(5, 15), slice(20, 34), slice(8, 30))
    image.array[box] = 400
    found = [Found(name="liver", mask=Mask.block(*box))]
    write_preview(tmp_path / "p.png", image, found, title="x")
    for plane in planes(tmp_path / "p.png"):
        outline = np.linalg.norm(plane - np.array(colour_of("liver")), axis=2) < 30
        rows, columns = np.nonzero(outline)
        inside = plane[rows.min() + 6 : rows.max() - 5, columns.min() + 6 : columns.max() - 5]
        around = np.concatenate((plane[: rows.min() - 6].reshape(-1, 3), plane[rows.max() + 6 :].reshape(-1, 3)))
        assert inside.sum(axis=2).mean() > around.sum(axis=1).mean() + 100
        assert inside.std(axis=(0, 1)).max() < 10  # the bright block and nothing else


def test_the_smaller_mask_lies_on_top(tmp_path: Path) -> None:
    large, small = Mask.block(*(slice(5, 35),) * 3), Mask.block(*(slice(15, 25),) * 3)
    for order in ((large, small), (small, large)):
        found = [Found(name="liver" if m is large else "spleen", mask=m) for m in order]
        write_preview(tmp_path / "p.png", scan(), found, title="x")
        for plane in planes(tmp_path / "p.png"):
            y, x = centre(plane, "spleen")
            assert abs(y - 0.5) < 0.03
            assert abs(x - 0.5) < 0.03


def test_colours_are_of_what_a_prompt_means(tmp_path: Path) -> None:
    found = [Found(name="Leber", kind="liver", mask=Mask.block(*(slice(10, 30),) * 3))]
    write_preview(tmp_path / "p.png", scan(), found, title="x")
    assert centre(planes(tmp_path / "p.png")[0], "liver")


def test_nothing_found_and_many_names_are_pictures_too(tmp_path: Path) -> None:
    write_preview(tmp_path / "none.png", scan(), [Found(name="liver", mask=None, note="unknown")], title="")
    write_preview(tmp_path / "empty.png", scan(), [], title="肝臓 " * 200)
    found = [Found(name=f"structure {k} " * 9, mask=Mask.block(*(slice(k % 30, k % 30 + 4),) * 3)) for k in range(120)]
    write_preview(tmp_path / "many.png", scan(), found, title="x")
    sizes = {Picture.open(file).size for file in tmp_path.glob("*.png")}
    assert len(sizes) == 1
    assert not list(tmp_path.glob(".tmp*"))


def test_pixels_are_square_in_millimetres(tmp_path: Path) -> None:
    array = np.zeros((40, 40, 10), np.float32)
    image = Image(array=array, grid=Grid(shape=array.shape, affine=np.diag([1.0, 1.0, 4.0, 1.0])))
    found = [Found(name="liver", mask=Mask.block(slice(10, 30), slice(10, 30), slice(2, 7)))]  # 20 mm a side
    write_preview(tmp_path / "p.png", image, found, title="x")
    for plane in planes(tmp_path / "p.png"):
        rows, columns = np.nonzero(np.linalg.norm(plane - np.array(colour_of("liver")), axis=2) < 30)
        assert np.ptp(rows) == pytest.approx(np.ptp(columns), rel=0.06)
