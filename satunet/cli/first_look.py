"""``satunet try``: a first look at your own scan, or at one that comes with a Python package."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from satunet.cli.options import Device, Verbose
from satunet.jobs.wording import counted

if TYPE_CHECKING:
    from satunet.demo.look import FirstLook
    from satunet.images.image import Image
    from satunet.models.folder import ModelDescription
    from satunet.prediction.door.inputs import Scan
    from satunet.prediction.door.jobs import Vocabulary
    from satunet.prediction.options import PredictOptions

_ROWS_SHOWN = 60


@dataclass(frozen=True, kw_only=True)
class Try:
    """Look at a scan: its properties, every structure that the model knows there (or only those asked for), a picture,
    and a page for a browser.

    Without a scan, it looks at a brain that comes with the package nilearn.
    """

    scan: Annotated[
        Positional[Path | None], arg(metavar="SCAN", help="A scan (NIfTI, NRRD, MHA, MHD) or a folder of DICOM series.")
    ] = None
    prompts: Annotated[
        tuple[str, ...],
        arg(
            aliases=["-p"],
            metavar="TEXT",
            help='What to look for, such as "left kidney"; everything that the model knows there if not given.',
        ),
    ] = ()
    output: Annotated[Path, arg(aliases=["-o"], metavar="FOLDER", help="Folder for the results.")] = Path("satunet_try")
    model: Annotated[
        tuple[Path, ...],
        arg(aliases=["-m"], metavar="MODEL", help="Model; the one that comes with satunet if not given."),
    ] = (Path("starter"),)
    modality: Annotated[
        Literal["ct", "mri", "us", "pet", "other"] | None,
        arg(help="Modality of the scan; read from the file or guessed if not given."),
    ] = None
    open: Annotated[bool, arg(help="Open the page in the browser.")] = False
    device: Device = "auto"
    verbose: Verbose = False

    def run(self) -> int:
        """Segment and show what was found; returns 1 if a scan cannot be used."""
        from satunet.cli.environment import quick_check

        quick_check()
        from satunet.demo.packaged import ICBM152
        from satunet.jobs.progress import setup_logging
        from satunet.models.choice import ModelChoice
        from satunet.prediction.door.jobs import Vocabulary
        from satunet.prediction.door.limits import require_writable
        from satunet.prediction.options import Outputs, PredictOptions
        from satunet.prediction.results.places import LOG

        scans = self._scans()
        require_writable(self.output)
        setup_logging(self.output / LOG, verbose=self.verbose)
        choice = ModelChoice(model=self.model)
        descriptions = choice.describe()
        vocabulary = Vocabulary.of(descriptions)
        modality = self.modality if self.scan is not None else ICBM152.modality
        options = PredictOptions(modality=modality, outputs=Outputs(preview=True), device=self.device)  # type: ignore[arg-type]
        looks, failed = self._looks(scans, vocabulary, descriptions, options)
        if not looks:
            return 1
        from satunet.demo.look import look
        from satunet.prediction.predictor import Predictor

        summary, pages = look(looks, self.output, Predictor(choice.load(), options))
        self._say(looks, vocabulary, pages)
        if self.open and pages:
            import webbrowser

            webbrowser.open(pages[0].resolve().as_uri())
        return max(summary.exit_code, 1 if failed else 0)

    def _scans(self) -> list[Scan]:
        from satunet.errors import MissingFileError
        from satunet.prediction.door.inputs import Scan, collect_scans

        if self.scan is not None:
            if not self.scan.exists():
                raise MissingFileError(self.scan, "there is no such scan")
            return collect_scans([self.scan])
        from satunet.demo.packaged import ICBM152

        sys.stdout.write(f"{ICBM152.what}\n  {ICBM152.licence}\n")
        return [Scan(path=ICBM152.path, name=ICBM152.name)]

    def _looks(
        self, scans: list[Scan], vocabulary: Vocabulary, models: list[ModelDescription], options: PredictOptions
    ) -> tuple[list[FirstLook], int]:
        """Print and return what to look for in each scan, and how many scans cannot be used."""
        import logging

        from satunet.demo.look import FirstLook
        from satunet.errors import SatunetError
        from satunet.prediction.door.worthwhile import told

        looks, failed = [], 0
        for scan in scans:
            try:
                one = FirstLook.of(scan, _read(scan, models), vocabulary, options, self.prompts or None)
            except SatunetError as error:
                logging.getLogger(__name__).error("%s", error)
                failed += 1
                continue
            for key, value in one.facts.items():
                sys.stdout.write(f"{key:9} {value}\n")
            asked = f"{counted(len(one.job.matches or ()), 'class', 'classes')} that {self.model[0]} knows in {one.job.modality}"
            sys.stdout.write(f"{'asked for':9} {', '.join(self.prompts) or asked}\n")
            if one.job.not_looked_for:
                sys.stdout.write(f"{'left out':9} {told(one.job.not_looked_for)}\n")
            sys.stdout.flush()
            looks.append(one)
        return looks, failed

    def _say(self, looks: list[FirstLook], vocabulary: Vocabulary, pages: list[Path]) -> None:
        from satunet.cli.printing import print_rows
        from satunet.demo.look import regions_found
        from satunet.prediction.results.manifests import result_rows

        done = {page.stem for page in pages}
        for one in looks:
            name = one.job.name
            if name not in done:
                continue
            rows = result_rows(self.output, [name], False)
            print_rows(rows[:_ROWS_SHOWN], f"What was found in {name}")
            region = regions_found(self.output, name, vocabulary.space)
            sys.stdout.write(f"region    {region or 'none that the model knows'}, judging by what was drawn\n")
            sys.stdout.write(f"picture   {self.output / name / 'preview.png'}\n")
        for page in pages:
            sys.stdout.write(f"page      {page} (open it in a browser)\n")
        sys.stdout.write(
            "A model may draw a structure even where it is absent: check before you trust it. For research only.\n"
        )


def _read(scan: Scan, models: list[ModelDescription]) -> Image:
    from satunet.prediction.door.limits import require_memory

    require_memory(scan, [model.plan for model in models])
    return scan.read()
