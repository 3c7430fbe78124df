"""Sound images of every format, small, to be damaged."""

from __future__ import annotations

import bz2
import gzip
from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import nibabel as nib
import numpy as np
import SimpleITK as sitk

from satunet.geometry import Grid
from satunet.images.image import write_label_map
from tests.images.dicom_files import write_enhanced, write_slices

SHAPE = (9, 8, 7)
LABELS = np.random.default_rng(0).integers(0, 5, SHAPE).astype(np.uint8)
AFFINE = np.array([[1.5, 0, 0, -5], [0, 2, 0, 4], [0, 0, 3, 2], [0, 0, 0, 1.0]])


@dataclass(frozen=True, kw_only=True)
class Seed:
    """A sound image.

    Attributes:
        kind: Name in the table of figures.
        path: A file, or the folder of a DICOM series.
        damaged: The file to damage.
        header: Bytes at its beginning that are more interesting than others.
        covered: Whether its voxels have a checksum: a change of them has to be noticed.
        share: How often it is taken, beside others.
        inside: Whether to damage what is inside its gzip stream, whose checksum is then right.
    """

    kind: str
    path: Path
    damaged: Path
    header: int
    covered: bool = False
    share: float = 1.0
    inside: bool = False


def make_seeds(folder: Path) -> list[Seed]:
    """Write one of each kind."""
    folder.mkdir(parents=True, exist_ok=True)
    seeds = []

    def add(kind: str, name: str, **options: object) -> None:
        path = folder / name
        seeds.append(Seed(kind=kind, path=path, damaged=path, header=400, **options))  # type: ignore[arg-type]

    grid = Grid(shape=SHAPE, affine=AFFINE)
    for ending in (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd"):
        write_label_map(folder / f"packed{ending}", LABELS, like=grid, legend={1: "liver"})
    image = sitk.GetImageFromArray(LABELS.transpose())
    image.SetSpacing((1.5, 2, 3))
    for name in ("plain.mha", "plain.mhd", "plain.nrrd"):
        sitk.WriteImage(image, str(folder / name), useCompression=False)
    scaled = nib.Nifti1Image(LABELS.astype(">i2"), AFFINE, nib.Nifti1Header(endianness=">"))
    scaled.header.set_slope_inter(0.5, -3)
    scaled.set_qform(AFFINE, 1)
    nib.save(scaled, folder / "scaled.nii")
    nib.save(nib.Nifti2Image(LABELS, AFFINE), folder / "second.nii")
    (folder / "inside.nii.gz").write_bytes((folder / "packed.nii.gz").read_bytes())
    head = (folder / "plain.nrrd").read_bytes()[: -LABELS.size].replace(b"encoding: raw", b"encoding: bzip2")
    (folder / "blocks.nrrd").write_bytes(head + bz2.compress(LABELS.tobytes("F")))
    text = head.replace(b"encoding: bzip2", b"encoding: ascii")
    (folder / "text.nrrd").write_bytes(text + " ".join(map(str, LABELS.ravel("F"))).encode())
    add("nii", "packed.nii")
    add("nii", "scaled.nii", share=0.5)
    add("nii", "second.nii", share=0.5)
    add("nii.gz", "packed.nii.gz", covered=True)
    add("nii.gz, changed and packed again", "inside.nii.gz", inside=True)
    add("mha, packed", "packed.mha")
    add("mhd, packed", "packed.mhd")
    add("mha", "plain.mha")
    add("mhd", "plain.mhd")
    add("nrrd, packed", "packed.nrrd")
    add("nrrd, bzip2", "blocks.nrrd", share=0.5)
    add("nrrd, text", "text.nrrd", share=0.3)
    add("nrrd", "plain.nrrd")
    return seeds + _dicom(folder)


def _dicom(folder: Path) -> list[Seed]:
    volume = LABELS[:, :, :4].astype(np.uint16)
    seeds = []
    files = write_slices(folder / "ct", volume)
    bare = write_slices(folder / "bare", volume)
    for file in bare:
        file.write_bytes(file.read_bytes()[132:])
    packed = write_slices(folder / "jpegls", volume, syntax="1.2.840.10008.1.2.4.80", pack=imagecodecs.jpegls_encode)
    write_enhanced(folder / "enhanced" / "a.dcm", volume, (2, 0, 3, 1))
    for kind, file, share in (
        ("DICOM", files[3], 2.0),
        ("DICOM", files[1], 1.0),
        ("DICOM without preamble", bare[0], 0.5),
        ("DICOM, enhanced", folder / "enhanced" / "a.dcm", 1.0),
        ("DICOM, JPEG-LS", packed[2], 0.05),
    ):
        size = file.stat().st_size
        seeds.append(Seed(kind=kind, path=file.parent, damaged=file, header=size - 2 * 72, share=share))
    return seeds


def unpacked(seed: Seed, content: bytes) -> bytes:
    """What is damaged of a file."""
    return gzip.decompress(content) if seed.inside else content


def packed_again(seed: Seed, content: bytes) -> bytes:
    """The file, of what was damaged."""
    return gzip.compress(content, 1, mtime=0) if seed.inside else content
