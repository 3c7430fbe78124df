"""``satunet view``: a scan and its masks as one page that opens in any browser."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from satunet.cli.options import Verbose
from satunet.jobs.wording import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from satunet.images.image import Image
    from satunet.viewing.structures import Structure

_AIR_HU = -500


@dataclass(frozen=True, kw_only=True)
class View:
    """Write a scan and its masks as one HTML file that opens in a browser, offline."""

    scan: Annotated[Positional[Path], arg(metavar="SCAN", help="The scan (NIfTI, NRRD, MHA, MHD, DICOM folder).")]
    masks: Annotated[
        Positional[tuple[Path, ...]],
        arg(
            metavar="MASKS|OUT",
            help="Label maps, masks, folders of masks, or the output folder of 'satunet predict'; several are compared.",
        ),
    ]
    output: Annotated[
        Path | None, arg(aliases=["-o"], metavar="FILE", help="Page to write; SCAN_view.html here if not given.")
    ] = None
    modality: Annotated[
        Literal["ct", "mri", "us", "pet", "other"] | None,
        arg(help="Modality, which decides the grey values shown; guessed if not given."),
    ] = None
    megavoxels: Annotated[
        float, arg(help="Millions of voxels above which a scan is shown at a fraction of its resolution.")
    ] = 32.0
    open: Annotated[bool, arg(help="Open the page in the browser.")] = False
    verbose: Verbose = False

    def run(self) -> int:
        """Write the page."""
        from satunet.errors import UserError
        from satunet.viewing.page import write_page
        from satunet.viewing.structures import read_structures

        if not self.masks:
            raise UserError(
                "say what to show with the scan: masks, label maps, or an output folder of 'satunet predict'"
            )
        if self.megavoxels <= 0:
            raise UserError(f"--megavoxels must be more than 0, got {self.megavoxels}")
        image, modality, names = _read(self.scan)
        output = self.output or Path(f"{names[0]}_view.html")
        _refuse_to_replace(output, (self.scan, *self.masks))
        structures = read_structures(self.masks, names, image.grid, scan=self.scan)
        write_page(
            output, image, structures, title=names[0], modality=self.modality or modality,
            most_voxels=int(self.megavoxels * 1e6),
        )  # fmt: skip
        _say(output, structures)
        if self.open:
            import webbrowser

            webbrowser.open(output.resolve().as_uri())
        return 0


def _read(scan: Path) -> tuple[Image, str | None, tuple[str, ...]]:
    """The scan, its modality, and the names its results may have."""
    from satunet.errors import MissingFileError, UserError
    from satunet.images.dicom import find_series, read_series
    from satunet.images.hounsfield import hounsfield_offset
    from satunet.images.image import read_image, strip_ending

    if not scan.exists():
        raise MissingFileError(scan, "there is no such scan")
    if not scan.is_dir():
        image = read_image(scan)
        is_ct = float(image.array.min()) <= _AIR_HU or hounsfield_offset(image.array) > 0
        name = strip_ending(scan.name)
        return image, "ct" if is_ct else None, (name.removesuffix("_0000"), name)
    series = find_series(scan)
    if len(series) != 1:
        found = "; ".join(f"{s.folder} ({s.number or s.uid})" for s in series[:5]) or "none"
        raise UserError(f"{scan}: a folder with exactly one DICOM series is needed, but it has {len(series)}: {found}")
    (one,) = series
    ends = [one.folder.name, scan.name, one.patient]
    return read_series(one), one.modality, tuple(n for e in ends if e for n in (f"{e}_{one.number}", e))


def _refuse_to_replace(output: Path, inputs: tuple[Path, ...]) -> None:
    from satunet.errors import UserError

    if output.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"{output}: the page's name has to end in .html")
    if output.is_dir() or any(output.exists() and path.exists() and output.samefile(path) for path in inputs):
        raise UserError(f"{output}: this file exists and is not a page; give another file name (-o)")


def _say(output: Path, structures: Sequence[Structure]) -> None:
    import sys

    empty = [s.name for s in structures if not s.voxels]
    left = f", {len(empty)} of them without a voxel" if empty else ""
    size = output.stat().st_size / 1e6
    sys.stdout.write(f"{output}: {counted(len(structures), 'structure')}{left}, {size:.1f} MB; open it in a browser\n")
