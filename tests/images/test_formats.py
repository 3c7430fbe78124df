"""Formats, with SimpleITK and nibabel as other readers and writers, and headers that lie."""

from __future__ import annotations

import bz2
import gzip
import itertools
import os
import struct
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from satunet.errors import MissingFileError, NotThreeDimensionalError, ScanError, UnreadableImageError
from satunet.geometry import Grid, same_grid
from satunet.images.formats import read_voxels, sitk_grid, voxel_bytes
from satunet.images.image import header_doubts, read_grid, read_image, write_label_map

ARRAY = np.arange(24, dtype=np.uint8).reshape(4, 3, 2, order="F")  # X, Y, Z
TYPES = [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.uint64, np.int64, np.float32, np.float64]


def metaimage(path: Path, data: bytes = ARRAY.tobytes("F"), **changes: object) -> Path:
    """A header of MetaImage with other values, and keys left out that are given as ``None``."""
    fields: dict[str, object] = {
        "ObjectType": "Image", "NDims": 3, "BinaryData": True, "BinaryDataByteOrderMSB": False,
        "CompressedData": False, "TransformMatrix": "1 0 0 0 1 0 0 0 1", "Offset": "1 2 3",
        "ElementSpacing": "1.5 2 3", "DimSize": "4 3 2", "ElementType": "MET_UCHAR", "ElementDataFile": "LOCAL",
    } | changes  # fmt: skip
    fields["ElementDataFile"] = fields.pop("ElementDataFile")
    text = "".join(f"{key} = {value}\n" for key, value in fields.items() if value is not None)
    path.write_bytes(text.encode() + data)
    return path


def nrrd(path: Path, data: bytes = ARRAY.tobytes("F"), **changes: object) -> Path:
    """A header of NRRD with other values; keys have ``_`` for spaces."""
    fields: dict[str, object] = {
        "space dimension": None, "type": "uchar", "dimension": 3, "sizes": "4 3 2", "encoding": "raw", "endian": "little",
        "space": "left-posterior-superior", "space directions": "(1.5,0,0) (0,2,0) (0,0,3)",
        "space origin": "(1,2,3)",
    } | {key.replace("_", " "): value for key, value in changes.items()}  # fmt: skip
    text = "".join(f"{key}: {value}\n" for key, value in fields.items() if value is not None)
    path.write_bytes(b"NRRD0004\n# comment\n" + text.encode() + b"x:=y\n\n" + data)
    return path


def agree_with_itk(path: Path) -> None:
    image = sitk.ReadImage(str(path))
    array, grid, _ = read_voxels(path)
    theirs = sitk_grid(image, path)
    np.testing.assert_array_equal(array, sitk.GetArrayFromImage(image).transpose().reshape(theirs.shape))
    assert array.dtype == sitk.GetArrayViewFromImage(image).dtype
    np.testing.assert_allclose(grid.affine, theirs.affine, atol=1e-9)
    np.testing.assert_allclose(read_grid(path).affine, theirs.affine, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), dtype=st.sampled_from(TYPES), packed=st.booleans())
def test_what_simpleitk_writes_is_read_as_simpleitk_reads_it(tmp_path_factory, seed, dtype, packed) -> None:
    rng = np.random.default_rng(seed)
    folder = tmp_path_factory.mktemp("a")
    array = rng.integers(0, 100, rng.integers(1, 9, 3)).astype(dtype)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(rng.uniform(0.2, 6, 3).tolist())
    image.SetOrigin(rng.uniform(-300, 300, 3).tolist())
    image.SetDirection(np.linalg.qr(rng.normal(size=(3, 3)))[0].ravel().tolist())
    for ending in (".mha", ".mhd", ".nrrd"):
        sitk.WriteImage(image, str(folder / f"a{ending}"), useCompression=packed)
        agree_with_itk(folder / f"a{ending}")


@pytest.mark.parametrize(
    "changes",
    [
        {"TransformMatrix": "0 1 0 1 0 0 0 0 1"},
        {"TransformMatrix": "1 0 0 0 1 0 0 0.3 1"},
        {"TransformMatrix": None, "Orientation": "0 1 0 1 0 0 0 0 1"},
        {"TransformMatrix": None, "Rotation": "0 1 0 1 0 0 0 0 1", "Offset": None, "Position": "4 5 6"},
        {"Offset": None, "Origin": "4 5 6"},
        {"ElementSpacing": None},
        {"ElementSpacing": None, "ElementSize": "1 2 3"},
        {"ElementSize": "9 9 9", "AnatomicalOrientation": "RAI", "Comment": "a: b = c"},
        {"ElementSpacing": "-1 2 3"},
        {"BinaryDataByteOrderMSB": None, "ElementByteOrderMSB": True, "ElementType": "MET_SHORT", "DimSize": "4 3 1"},
        {"NDims": 4, "DimSize": "4 3 2 1", "Offset": "1 2 3 4", "ElementSpacing": "1 2 3 4", "TransformMatrix": None},
    ],
)
def test_metaimages_of_other_writers(tmp_path: Path, changes: dict[str, object]) -> None:
    agree_with_itk(metaimage(tmp_path / "a.mha", **changes))


@pytest.mark.parametrize(
    "changes",
    [
        *({"space": space} for space in ("RAS", "LAS", "LPS", "right-anterior-superior", "left-anterior-superior")),
        {"space": "scanner-xyz"},
        {"space": None, "space_dimension": 3},
        {"space_directions": "(1.5,0.1,0) (0,2,0.3) (0,0.6,3)"},
        {"space_origin": None},
        {"space": None, "space_directions": None, "space_origin": None, "spacings": "1 nan 3"},
        {"space": None, "space_directions": None, "space_origin": None, "spacings": "1 2 3", "axis_mins": "4 5 6"},
        {"space": None, "space_directions": None, "space_origin": None, "spacings": "1 2 3", "axis_mins": "4 5 6",
         "centers": "node node node"},
        {"space": None, "space_directions": None, "space_origin": None},
        {"dimension": 4, "sizes": "1 4 3 2", "kinds": "vector domain domain domain",
         "space_directions": "none (1.5,0,0) (0,2,0) (0,0,3)"},
        {"type": "short int", "endian": "big", "sizes": "4 3 1"},
    ],
)  # fmt: skip
def test_nrrds_of_other_writers(tmp_path: Path, changes: dict[str, object]) -> None:
    agree_with_itk(nrrd(tmp_path / "a.nrrd", **changes))


def test_a_range_along_an_axis_is_a_spacing(tmp_path: Path) -> None:
    without = {"space": None, "space_directions": None, "space_origin": None}
    cells = read_grid(nrrd(tmp_path / "a.nrrd", axis_mins="0 0 0", axis_maxs="8 9 10", **without))
    assert cells.spacing_mm == (2, 3, 5)  # so many cells between the ends
    nodes = read_grid(
        nrrd(tmp_path / "b.nrrd", axis_mins="0 0 0", axis_maxs="9 10 10", centers="node node node", **without)
    )
    assert nodes.spacing_mm == (3, 5, 10)  # one step fewer between the ends


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [("gzip", gzip.compress), ("bz2", bz2.compress), ("hex", lambda d: d.hex().encode()),
     ("ascii", lambda d: b"\n".join(str(v).encode() for v in d))],
)  # fmt: skip
def test_encodings_of_nrrd(tmp_path: Path, encoding: str, pack) -> None:
    for number, cut in enumerate((0, -3, -8)):
        path = nrrd(tmp_path / f"{number}.nrrd", pack(ARRAY.tobytes("F"))[: cut or None], encoding=encoding)
        if not cut:
            np.testing.assert_array_equal(read_image(path).array, ARRAY)
        else:
            with pytest.raises(UnreadableImageError):
                read_image(path)


def test_voxels_in_other_files(tmp_path: Path) -> None:
    data = ARRAY.tobytes("F")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.raw").write_bytes(data)
    (tmp_path / "raw" / "h.raw").write_bytes(b"head" + data)
    for k in range(2):
        (tmp_path / f"s{k}.raw").write_bytes(data[12 * k : 12 * k + 12])
    (tmp_path / "z.raw").write_bytes(zlib.compress(data))
    files = [
        metaimage(tmp_path / "a.mhd", b"", ElementDataFile="raw/a.raw"),
        metaimage(tmp_path / "b.mhd", b"", ElementDataFile="raw/h.raw", HeaderSize=4),
        metaimage(tmp_path / "c.mhd", b"", ElementDataFile="raw/h.raw", HeaderSize=-1),
        metaimage(tmp_path / "d.mhd", b"s0.raw\ns1.raw\n", ElementDataFile="LIST"),
        metaimage(tmp_path / "e.mhd", b"", ElementDataFile="s%d.raw 0 1 1"),
        metaimage(tmp_path / "f.mhd", b"", ElementDataFile="z.raw", CompressedData=True),
        nrrd(tmp_path / "a.nrrd", b"", data_file="raw/a.raw"),
        nrrd(tmp_path / "b.nrrd", b"", data_file="raw/h.raw", byte_skip=4),
        nrrd(tmp_path / "c.nrrd", b"", data_file="raw/h.raw", byte_skip=-1),
    ]
    (tmp_path / "d.nrrd").write_bytes((tmp_path / "a.nrrd").read_bytes().strip().replace(b"raw/a.raw", b"LIST")
                                      .replace(b"x:=y", b"") + b"s0.raw\ns1.raw\n")  # fmt: skip
    for file in [*files, tmp_path / "d.nrrd"]:
        np.testing.assert_array_equal(read_image(file).array, ARRAY, err_msg=file.name)


@pytest.mark.parametrize("ending", [".mhd", ".mha", ".nrrd"])
def test_a_header_reads_no_file_outside_of_its_folder(tmp_path: Path, ending: str) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(ARRAY.tobytes("F"))
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "link").symlink_to(secret)
    os.mkfifo(folder / "pipe")
    for name in (str(secret), "../secret", "x/../../secret", "link", "pipe", "/dev/zero", ".", "\0", "n" * 5000, ""):
        changes = {"data_file": name} if ending == ".nrrd" else {"ElementDataFile": name}
        path = (nrrd if ending == ".nrrd" else metaimage)(folder / f"a{ending}", b"", **changes)
        for read in (read_image, read_grid):
            with pytest.raises(ScanError, match=f"a{ending}") as caught:
                read(path)
        assert isinstance(caught.value, (UnreadableImageError, MissingFileError)), name
    # A link to a header may have its voxels beside the link or beside the header.
    metaimage(tmp_path / "real.mhd", b"", ElementDataFile="secret")
    (folder / "b.mhd").symlink_to(tmp_path / "real.mhd")
    (folder / "secret").symlink_to(secret)
    np.testing.assert_array_equal(read_image(folder / "b.mhd").array, ARRAY)


def test_pipes_and_devices_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.nii.gz")
    (tmp_path / "b.nii").symlink_to("/dev/zero")
    for name in ("a.nii.gz", "b.nii"):
        with pytest.raises(MissingFileError, match="allowed is a file"):
            read_image(tmp_path / name)


@pytest.mark.parametrize(
    "changes",
    [
        {"NDims": -1}, {"NDims": 0}, {"NDims": 10**9}, {"NDims": "x"}, {"NDims": None}, {"NDims": 2**70},
        {"TransformMatrix": "1 0 0 0 1 0 1e308 0 1"}, {"TransformMatrix": "1e20 0 0 0 1 0 0 0 1"},
        {"TransformMatrix": "nan 0 0 0 1 0 0 0 1"}, {"TransformMatrix": "0 0 0 0 1 0 0 0 1"},
        {"TransformMatrix": "1 0 0"}, {"Offset": "1e300 0 0"}, {"Offset": "inf 0 0"},
        {"ElementSpacing": "0 1 1"}, {"ElementSpacing": "1e300 1 1"}, {"ElementSpacing": "1e-30 1 1"},
        {"DimSize": "-4 3 2"}, {"DimSize": "30000 30000 30000"}, {"DimSize": "0 3 2"}, {"DimSize": f"{2**70} 3 2"},
        {"DimSize": "4 3 1"}, {"DimSize": "4 3 3"}, {"DimSize": "4 3"}, {"DimSize": "9" * 5000 + " 3 2"},
        {"ElementNumberOfChannels": 1000000}, {"ElementType": "MET_STRING"}, {"ElementType": "MET_FLOAT"},
        {"CompressedData": True}, {"CompressedData": "perhaps"}, {"HeaderSize": -7}, {"BinaryData": False},
        {"ElementDataFile": "%s 1 2 1"}, {"ElementDataFile": "%99999999d 1 2 1"}, {"ElementDataFile": "LIST"},
        {"ObjectType": "Mesh"}, {"Position": "7 7 7"},
    ],
)  # fmt: skip
def test_metaimages_that_lie_are_one_files_error(tmp_path: Path, changes: dict[str, object]) -> None:
    path = metaimage(tmp_path / "a.mha", **changes)
    with pytest.raises(ScanError, match=r"a\.mha: "):
        read_image(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"dimension": -1}, {"dimension": 10**9}, {"sizes": "-4 3 2"}, {"sizes": "30000 30000 30000"},
        {"sizes": "4 3 3"}, {"sizes": "4 3 1"}, {"type": "block"}, {"type": "void"}, {"encoding": "zip"},
        {"encoding": "gzip"}, {"encoding": "bz2"}, {"encoding": "text"}, {"endian": "middle"},
        {"space": "somewhere"}, {"space_directions": "(1e308,0,0) (0,2,0) (0,0,3)"},
        {"space_directions": "(0,0,0) (0,2,0) (0,0,3)"}, {"space_directions": "(1,0,0) (0,2,0)"},
        {"space_directions": "none (0,2,0) (0,0,3)"}, {"space_directions": "(" * 5000},
        {"space_origin": "(nan,0,0)"}, {"space_origin": "()"}, {"space_origin": ""}, {"space_directions": None},
        {"kinds": "domain domain"}, {"kinds": "list domain domain"}, {"line_skip": -1}, {"byte_skip": -2},
        {"byte_skip": 10**12}, {"data_file": "LIST"}, {"data_file": "a%d.raw 1 2 1"},
    ],
)  # fmt: skip
def test_nrrds_that_lie_are_one_files_error(tmp_path: Path, changes: dict[str, object]) -> None:
    path = nrrd(tmp_path / "a.nrrd", **changes)
    with pytest.raises(ScanError, match=r"a\.nrrd: "):
        read_image(path)


def test_an_endless_bzip2_is_no_endless_reading(tmp_path: Path) -> None:
    bomb = bz2.compress(bytes(50_000_000))
    assert len(bomb) < 1000
    with pytest.raises(UnreadableImageError, match="more voxels in the file"):
        read_image(nrrd(tmp_path / "a.nrrd", bomb, encoding="bz2"))


@pytest.mark.parametrize("ending", [".nii.gz", ".mha", ".nrrd"])
def test_a_flipped_bit_of_packed_voxels_is_noticed(tmp_path: Path, ending: str) -> None:
    labels = np.random.default_rng(0).integers(0, 4, (9, 8, 7)).astype(np.uint8)
    path = tmp_path / f"a{ending}"
    write_label_map(path, labels, like=Grid(shape=labels.shape, affine=np.diag([1.5, 2, 3, 1])))
    good = path.read_bytes()
    first = 12 if ending == ".nii.gz" else len(good) - 200  # behind gzip's flags and names; behind the text
    for place, bit in itertools.product(range(first, len(good), 3), (0, 5)):
        bad = bytearray(good)
        bad[place] ^= 1 << bit
        path.write_bytes(bad)
        try:
            array = read_image(path).array
        except ScanError:
            continue
        assert np.array_equal(array, labels), (place, bit)


def test_nifti_headers_that_promise_other_sizes(tmp_path: Path) -> None:
    for ending in (".nii", ".nii.gz"):
        nib.save(nib.Nifti1Image(ARRAY, np.eye(4)), tmp_path / f"a{ending}")
    good = (tmp_path / "a.nii").read_bytes()
    for dims in ((3, 4, 3, 1), (3, 4, 3, 3), (3, -4, 3, 2), (3, 30000, 30000, 30000), (7, 0, 0, 0), (0, 4, 3, 2)):
        bad = good[:40] + struct.pack(f"<{len(dims)}h", *dims) + good[40 + 2 * len(dims) :]
        (tmp_path / "a.nii").write_bytes(bad)
        (tmp_path / "a.nii.gz").write_bytes(gzip.compress(bad))
        for name in ("a.nii", "a.nii.gz"):
            with pytest.raises(ScanError, match=r"a\.nii"):
                read_image(tmp_path / name)


@pytest.mark.parametrize("dtype", [np.complex64, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])])
def test_colours_and_complex_numbers_are_refused(tmp_path: Path, dtype) -> None:
    nib.save(nib.Nifti1Image(np.zeros((4, 3, 2), dtype), np.eye(4)), tmp_path / "a.nii.gz")
    with pytest.raises(NotThreeDimensionalError, match="one real number per voxel"):
        read_image(tmp_path / "a.nii.gz")


@pytest.mark.parametrize(("unit", "mm"), [("meter", 1000.0), ("mm", 1.0), ("micron", 0.001), ("unknown", 1.0)])
@pytest.mark.parametrize("codes", [(1, 0), (0, 2), (1, 1)])
def test_units_of_nifti(tmp_path: Path, unit: str, mm: float, codes: tuple[int, int]) -> None:
    """A landmark lies where it lies, whatever the unit; results are in the scan's unit."""
    affine_mm = np.array([[-1.5, 0, 0, 10], [0, 1.5, 0.2 * (codes == (0, 2)), -20], [0, 0, 2, 30], [0, 0, 0, 1]])
    affine = affine_mm.copy()
    affine[:3] /= mm
    image = nib.Nifti1Image(ARRAY, affine)
    image.header.set_xyzt_units(unit, "sec")
    image.set_qform(affine, codes[0])
    image.set_sform(affine, codes[1])
    nib.save(image, tmp_path / "a.nii.gz")
    scan = read_image(tmp_path / "a.nii.gz")
    np.testing.assert_allclose((scan.grid.affine @ (3, 2, 1, 1))[:3], (5.5, -17 + affine_mm[1, 2], 32), atol=1e-4)
    if codes != (0, 2):
        theirs = sitk_grid(sitk.ReadImage(str(tmp_path / "a.nii.gz")), tmp_path)
        np.testing.assert_allclose(theirs.affine, scan.grid.affine, atol=1e-4)
    write_label_map(tmp_path / "b.nii.gz", ARRAY, like=scan)
    assert same_grid(read_grid(tmp_path / "b.nii.gz"), scan.grid, tolerance=1e-4)
    assert nib.load(tmp_path / "b.nii.gz").header.get_xyzt_units() == (unit, "sec")
    np.testing.assert_allclose(nib.load(tmp_path / "b.nii.gz").affine, affine, rtol=1e-5, atol=1e-9 / mm)


def test_what_a_header_leaves_open_is_said(tmp_path: Path) -> None:
    file = tmp_path / "a.nii.gz"

    def doubts(image: nib.Nifti1Image) -> tuple[str, ...]:
        nib.save(image, file)
        return tuple(doubt.text for doubt in header_doubts(file))

    def plain() -> nib.Nifti1Image:
        return nib.Nifti1Image(ARRAY, np.diag([1.37, 1.37, 10, 1]))

    assert doubts(plain()) == ()
    unit = plain()
    unit.set_qform(np.diag([1.37, 1.37, 10, 1]), 1)
    unit.set_sform(np.eye(4), 2)
    unit.header["pixdim"][1:4] = (1.37, 1.37, 10)
    assert doubts(unit) == (
        "its sform gives voxels of (1.0, 1.0, 1.0) mm and its pixdim (1.37, 1.37, 10.0) mm; the sform is used",
    )
    neither = plain()
    neither.header["sform_code"] = neither.header["qform_code"] = 0
    nib.save(neither, file)
    content = bytearray(gzip.decompress(file.read_bytes()))
    content[252:256] = bytes(4)
    file.write_bytes(gzip.compress(bytes(content)))
    assert "neither sform nor qform" in header_doubts(file)[0].text
    metres = plain()
    metres.header.set_xyzt_units("meter")
    assert doubts(metres) == ("its voxels are (1370.0, 1370.0, 10000.0) mm, as its unit is the metre",)
    bare = {"space": None, "space_directions": None, "space_origin": None}
    for sound in (
        metaimage(tmp_path / "a.mha"),
        nrrd(tmp_path / "a.nrrd"),
        nrrd(tmp_path / "b.nrrd", spacings="1 2 3", **bare),
    ):
        assert header_doubts(sound) == ()
    for open_ in (metaimage(tmp_path / "c.mha", ElementSpacing=None), nrrd(tmp_path / "c.nrrd", **bare)):
        assert "no spacing" in header_doubts(open_)[0].text
    assert "(300.0, 2.0, 3.0) mm" in header_doubts(metaimage(tmp_path / "d.mha", ElementSpacing="300 2 3"))[0].text


def test_memory_of_a_voxel(tmp_path: Path) -> None:
    assert voxel_bytes(metaimage(tmp_path / "a.mha")) == 1
    assert voxel_bytes(nrrd(tmp_path / "a.nrrd", bytes(48), type="short")) == 2


def test_real_scans_are_what_nibabel_reads(real_raw: Path) -> None:
    files = [
        file for folder in sorted(real_raw.iterdir()) for file in sorted((folder / "imagesTr").glob("*.nii.gz"))[:1]
    ]
    assert len(files) > 20
    for file in files:
        theirs = nib.load(file)
        array, grid, _ = read_voxels(file)
        np.testing.assert_array_equal(array, np.asanyarray(theirs.dataobj).reshape(grid.shape), err_msg=file.name)
        np.testing.assert_array_equal(grid.affine, theirs.affine, err_msg=file.name)
        assert header_doubts(file) == (), file.name
