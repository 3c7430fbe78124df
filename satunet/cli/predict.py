"""``satunet predict``: masks of prompts for files and folders of scans."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import arg

from satunet.cli.options import Device, Engine, Output, Scheduler, Verbose

if TYPE_CHECKING:
    from collections.abc import Sequence

    from satunet.prediction import Predictor
    from satunet.prediction.inputs import ScanJob


logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Segment scans by text prompts: a mask a prompt, in each scan's own grid, affine and format."""

    input: Annotated[
        tuple[Path, ...],
        arg(aliases=["-i"], metavar="PATH", help="Scans, or folders of scans (NIfTI, NRRD, MHA, MHD) or DICOM series."),
    ] = ()
    pairs: Annotated[
        Path | None,
        arg(metavar="FILE", help='JSON list or JSON lines of {"image": …, "prompts": […]}, instead of -i and -p.'),
    ] = None
    output: Output
    model: Annotated[
        Path | None, arg(aliases=["-m"], metavar="MODEL", help="Model folder, or 'starter', which comes with satunet; if not given, your own of dataset 900, else 'starter'.")
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
    probabilities: Annotated[bool, arg(help="Write probabilities beside the masks.")] = False
    dicom_seg: Annotated[bool, arg(help="Write a DICOM Segmentation for DICOM series (extra: dicom).")] = False
    rtstruct: Annotated[
        bool, arg(help="Write contours as a DICOM RT Structure Set for DICOM series (extra: dicom).")
    ] = False
    binary_seg: Annotated[
        bool, arg(help="Segments of the DICOM Segmentation as binary frames, for readers without label maps.")
    ] = False
    statistics: Annotated[bool, arg(help="Write statistics.csv: voxels, volume and intensity of every mask.")] = False
    largest_component: Annotated[bool, arg(help="Keep the largest connected component of each mask.")] = False
    fill_holes: Annotated[bool, arg(help="Fill the closed cavities of each mask.")] = False
    strict: Annotated[bool, arg(help="End before the first scan if a prompt names no class of the model.")] = False
    fold: Annotated[str | None, arg(aliases=["-f"], help="Fold whose weights to take; the only one if not given.")] = (
        None
    )
    checkpoint: Annotated[str, arg(aliases=["-chk"], help="Checkpoint file in the fold's folder.")] = (
        "checkpoint_final.pth"
    )
    overlap: Annotated[float | None, arg(help="Share of a window that its neighbour covers too; 0.5 if not given.")] = (
        None
    )
    mirror: Annotated[
        bool, arg(help="Average over mirrored windows, never across left and right; for models trained with mirroring.")
    ] = False
    fast: Annotated[bool, arg(help="Fewer windows (overlap 0.2): up to three times as fast, a little less exact.")] = (
        False
    )
    batch: Annotated[int, arg(help="Windows that go through the network at once.")] = 1
    memory: Annotated[float, arg(help="GB for the probabilities of prompts; less costs time, never a voxel.")] = 2.0
    overwrite: Annotated[bool, arg(help="Predict scans again that are done already.")] = False
    dry_run: Annotated[bool, arg(help="Show scans, modalities, prompts and windows, and write nothing.")] = False
    scheduler: Scheduler = None
    device: Device = "auto"
    engine: Engine = "auto"
    verbose: Verbose = False

    def run(self) -> int:
        """Predict; a scan that cannot be used is counted, the others go on."""
        from satunet.cli.environment import quick_check
        from satunet.errors import PromptError, UserError

        quick_check()
        if bool(self.input) == (self.pairs is not None):
            raise UserError("say which scans with one of: -i PATH …, --pairs FILE")
        given = sum((bool(self.prompts), self.prompt_file is not None, self.all, self.pairs is not None))
        if given != 1:
            raise PromptError('say what to segment with one of: -p "liver" …, --prompt_file FILE, --all, --pairs FILE')
        from satunet.jobs.progress import setup_logging
        from satunet.models.shipped import default_model, resolve_model
        from satunet.prediction.cluster import Recipe, predict_on_cluster
        from satunet.prediction.folder import predict_folder
        from satunet.prediction.inputs import collect_scans, read_pairs, read_prompts
        from satunet.prediction.outputs import Outputs, write_statistics
        from satunet.prediction.postprocess import Postprocessing

        # A wrong call should fail before the model is loaded.
        jobs = read_pairs(self.pairs) if self.pairs is not None else collect_scans(self.input)
        outputs = Outputs(
            combine=self.combine,
            probabilities=self.probabilities,
            dicom_seg=self.dicom_seg,
            rtstruct=self.rtstruct,
            binary_seg=self.binary_seg,
        )
        prompts = None if self.all or self.pairs else self.prompts or read_prompts(self.prompt_file or Path())
        setup_logging(None if self.dry_run else self.output / "predict.log", verbose=self.verbose)
        folder, said = (resolve_model(self.model), "") if self.model is not None else default_model()
        if said:
            logger.info("%s", said)
        recipe = Recipe(
            model=folder,
            fold=self.fold,
            checkpoint=self.checkpoint,
            options={
                "device": _own_device(self.device),
                "engine": self.engine,
                "overlap": self.overlap if self.overlap is not None else 0.2 if self.fast else 0.5,
                "memory_gb": self.memory,
                "mirror": self.mirror,
                "batch": self.batch,
                "postprocessing": Postprocessing(largest_component=self.largest_component, fill_holes=self.fill_holes),
            },
        )
        predictor = recipe.make() if self.strict or self.dry_run or self.scheduler is None else None
        if predictor is not None and self.strict:
            _all_known(predictor, jobs, prompts)
        if predictor is not None and self.dry_run:
            return _show(predictor, jobs, prompts, self.modality)
        options: dict[str, Any] = {"modality": self.modality, "outputs": outputs, "overwrite": self.overwrite}
        if self.scheduler is not None:
            summary = predict_on_cluster(jobs, self.output, recipe, prompts, scheduler=self.scheduler, **options)
        else:
            assert predictor is not None
            summary = predict_folder(jobs, self.output, predictor, prompts, **options)
        if self.statistics:
            summary.note("statistics", str(write_statistics(self.output, [job.name for job in jobs], self.combine)))
        summary.show()
        return summary.exit_code


def _own_device(device: str) -> str:
    """Of the processes that torchrun starts on a machine, each takes a GPU of its own."""
    import os

    import torch

    rank = os.environ.get("LOCAL_RANK")
    if rank is None or device not in ("auto", "cuda") or not torch.cuda.is_available():
        return device
    return f"cuda:{int(rank) % torch.cuda.device_count()}"


def _all_known(predictor: Predictor, jobs: Sequence[ScanJob], prompts: Sequence[str] | None) -> None:
    from satunet.errors import PromptError

    wanted = dict.fromkeys(p for own in (prompts, *(job.prompts for job in jobs)) for p in own or ())
    unknown = [m for m in (predictor.match(list(wanted)) if wanted else []) if m.status != "known"]
    if unknown:
        near = "; ".join(
            m.note or f"{m.prompt!r} (nearest: {', '.join(n for n, _ in m.nearest) or 'none'})" for m in unknown
        )
        raise PromptError(f"--strict: these prompts name no class of the model: {near}")


def _show(predictor: Predictor, jobs: Sequence[ScanJob], prompts: Sequence[str] | None, modality: str | None) -> int:
    """What would be done; 1 if a scan cannot be used."""
    from satunet.cli.data import print_rows
    from satunet.windows.starts import window_starts

    patch = predictor.model.plan.patch_size
    rows: list[dict[str, object]] = []
    wrong = False
    for job in jobs:
        row: dict[str, object] = {"scan": job.name}
        try:
            scan = predictor.prepare(job.read(), modality or (job.modality if job.modality != "other" else None))
            shape = [max(n, p) for n, p in zip(scan.volume.shape, patch, strict=True)]
            wanted = job.prompts or prompts
            known = [c.name for c in predictor.model.space.classes if scan.modality in c.modalities]
            row |= {
                "modality": f"{scan.modality} ({scan.modality_from})",
                "shape": scan.image.grid.shape,
                "spacing": [round(v, 2) for v in scan.image.grid.spacing_mm],
                "windows": len(window_starts(shape, patch, predictor.overlap)),
                "prompts": len(known if wanted is None else wanted),
            }
        except Exception as error:
            row["problem"] = str(error)
            wrong = True
        rows.append(row)
    print_rows(rows, f"{len(rows)} scans, windows of {patch}")
    every = dict.fromkeys(p for own in (prompts, *(job.prompts for job in jobs)) for p in own or ())
    if every:
        matches = predictor.match(list(every))
        print_rows(
            [
                {
                    "prompt": m.expanded_from or m.prompt,
                    "class": m.class_name or "",
                    "status": m.status,
                    "nearest": [n for n, _ in m.nearest],
                    "note": m.note,
                }
                for m in matches
            ],
            "Prompts",
        )
    return 1 if wrong else 0
