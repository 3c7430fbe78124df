"""``satunet predict``: masks of prompts for files and folders of scans."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from satunet.cli.options import Device, Output, Verbose


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Segment scans by text prompts: a mask a prompt, in each scan's own grid, affine and format."""

    input: Annotated[
        tuple[Path, ...],
        arg(aliases=["-i"], metavar="PATH", help="Scans, or folders of scans (NIfTI, NRRD, MHA, MHD)."),
    ]
    output: Output
    model: Annotated[
        Path | None, arg(aliases=["-m"], metavar="FOLDER", help="Model folder; that of dataset 900 if not given.")
    ] = None
    prompts: Annotated[
        tuple[str, ...], arg(aliases=["-p"], metavar="TEXT", help='What to segment: "liver" "left kidney".')
    ] = ()
    prompt_file: Annotated[Path | None, arg(metavar="FILE", help="Text file with a prompt a line.")] = None
    all: Annotated[bool, arg(help="Every class the model knows for the scan's modality.")] = False
    modality: Annotated[
        Literal["ct", "mri", "us", "pet", "other"] | None, arg(help="Modality of the scans; guessed if not given.")
    ] = None
    combine: Annotated[bool, arg(help="One label map a scan; where masks overlap, the later prompt wins.")] = False
    fold: Annotated[str | None, arg(aliases=["-f"], help="Fold whose weights to take; the only one if not given.")] = (
        None
    )
    checkpoint: Annotated[str, arg(aliases=["-chk"], help="Checkpoint file in the fold's folder.")] = (
        "checkpoint_final.pth"
    )
    overlap: Annotated[float, arg(help="Share of a window that its neighbour covers too.")] = 0.5
    overwrite: Annotated[bool, arg(help="Predict scans again that are done already.")] = False
    device: Device = "auto"
    verbose: Verbose = False

    def run(self) -> int:
        """Predict; a scan that cannot be used is counted, the others go on."""
        from satunet.environment import quick_check
        from satunet.errors import PromptError

        quick_check()
        if sum((bool(self.prompts), self.prompt_file is not None, self.all)) != 1:
            raise PromptError('say what to segment with one of: -p "liver" …, --prompt_file FILE, --all')
        from satunet.prediction.folder import collect_scans, predict_folder, read_prompts
        from satunet.prediction.model_folder import ModelFolder
        from satunet.prediction.predictor import Predictor
        from satunet.progress import setup_logging
        from satunet.trainers.run import model_folder

        collect_scans(self.input)  # a wrong call should fail before the model is loaded
        prompts = None if self.all else self.prompts or read_prompts(self.prompt_file or Path())
        setup_logging(self.output / "predict.log", verbose=self.verbose)
        folder = self.model or model_folder("Dataset900_Unified")
        model = ModelFolder.load(folder, fold=self.fold, checkpoint=self.checkpoint)
        summary = predict_folder(
            self.input,
            self.output,
            Predictor(model, device=self.device, overlap=self.overlap),
            prompts,
            modality=self.modality,
            combine=self.combine,
            overwrite=self.overwrite,
        )
        summary.show()
        return summary.exit_code
