"""``satunet train``: the unified network, or the specialist nnU-Nets it is compared with."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, arg

from satunet.cli.options import Continue, Device, Fold, Verbose, dataset_names, fold_of
from satunet.trainers.config import TrainingChoices


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train the text-prompted network of a unified plan, or the specialist nnU-Nets of single datasets."""

    dataset: Annotated[str, arg(aliases=["-d"], metavar="ID", help="Id or name of the unified dataset.")] = "900"
    fold: Fold = "0"
    specialist: Annotated[
        tuple[str, ...],
        arg(
            aliases=["--specialists"],
            metavar="ID",
            help="Train the nnU-Nets of these datasets with nnunetv2 instead; 'all' continues where an earlier run stopped.",
        ),
    ] = ()
    specialist_planner: Annotated[
        Literal["default", "resenc_m", "resenc_l", "resenc_xl"],
        arg(help="nnU-Net's planner whose plans the specialists are trained with."),
    ] = "default"
    config: Annotated[TrainingChoices, OmitArgPrefixes] = field(default_factory=TrainingChoices)
    continue_: Continue = False
    val: Annotated[
        bool, arg(help="Only validate: segment the held-out scans of the fold with the finished network.")
    ] = False
    pretrained_weights: Annotated[
        Path | None,
        arg(
            aliases=["-pretrained_weights"],
            metavar="PATH",
            help="Weights to start from: a checkpoint, a result or model folder, or only an image encoder.",
        ),
    ] = None
    minutes: Annotated[
        float | None,
        arg(help="Stop at a checkpoint before this many minutes have passed, for queues with a time limit."),
    ] = None
    num_gpus: Annotated[
        int,
        arg(
            aliases=["-num_gpus"],
            help="Number of GPUs of this machine to train on; for several machines, call torchrun.",
        ),
    ] = 1
    cluster: Annotated[
        Literal["slurm", "local"] | None,
        arg(
            help="Submit each specialist as a job of a Slurm array through submitit; 'local' runs them as local processes."
        ),
    ] = None
    cluster_options: Annotated[
        tuple[str, ...],
        arg(
            metavar="KEY=VALUE",
            help="Options of submitit, such as slurm_partition=gpu timeout_min=2880 gpus_per_node=1.",
        ),
    ] = ()
    device: Device = "auto"
    verbose: Verbose = False

    def run(self) -> int:
        """Train; a checkpoint is written completely or not at all, and the same command with ``--c`` continues."""
        from satunet.cli.environment import quick_check
        from satunet.errors import UserError

        quick_check()
        if self.specialist:
            return self._submit() if self.cluster else self._specialists()
        if self.cluster:
            raise UserError("--cluster submits specialists; start the unified network in a job of its own")
        return self._several_processes() if self.num_gpus > 1 else self._unified()

    def _unified(self) -> int:
        import logging

        from satunet.compute import distributed
        from satunet.datasets.paths import dataset_name_of
        from satunet.datasets.unified import UnifiedFolder
        from satunet.jobs.progress import setup_logging
        from satunet.trainers.unified.run import run_training

        name = dataset_name_of(self.dataset)
        fold = UnifiedFolder(name=name).model(fold_of(self.fold))
        setup_logging(fold / distributed.log_name(), verbose=self.verbose)
        if not distributed.first():
            # Only the terminal: the log file of each process keeps everything.
            logging.getLogger("satunet").handlers[0].setLevel(logging.ERROR)
        trainer = run_training(
            name,
            fold=fold_of(self.fold),
            config=self.config,
            device=self.device,
            continue_training=self.continue_,
            pretrained_weights=self.pretrained_weights,
            minutes=self.minutes,
            only_validate=self.val,
        )
        if trainer.failed_scans:
            scans = ", ".join(f"{scan} ({count} times)" for scan, count in sorted(trainer.failed_scans.items()))
            logging.getLogger("satunet").error("scans that could not be read and were replaced by others: %s", scans)
        return 1 if trainer.failed_scans else 0

    def _several_processes(self) -> int:
        """Run the same command once per GPU, through torchrun."""
        import subprocess
        import sys

        arguments = _without_num_gpus(sys.argv[1:])
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={self.num_gpus}"]
        return subprocess.run([*command, "-m", "satunet", *arguments], check=False).returncode

    def _submit(self) -> int:
        from satunet.jobs.progress import setup_logging
        from satunet.trainers.specialist.cluster import submit

        setup_logging(None, verbose=self.verbose)
        command = ["train", "--fold", self.fold, *self.config.arguments(), "--device", self.device, "--c"]
        command += ["--specialist_planner", self.specialist_planner]
        if self.minutes is not None:
            command += ["--minutes", str(self.minutes)]
        options = dict(_key_value(text) for text in self.cluster_options)
        return submit(dataset_names(self.specialist), command, cluster=str(self.cluster), options=options)

    def _specialists(self) -> int:
        from satunet.datasets.paths import results_dir
        from satunet.jobs.progress import JobSummary, setup_logging
        from satunet.trainers.specialist.trainer import train_specialist

        names = dataset_names(self.specialist)
        setup_logging(results_dir() / "specialists.log", verbose=self.verbose)
        summary = JobSummary("specialist nnU-Nets")
        for name in names:
            try:
                train_specialist(
                    name,
                    fold=fold_of(self.fold),
                    config=self.config,
                    minutes=self.minutes,
                    device=self.device,
                    continue_training=self.continue_ or "all" in self.specialist,
                    planner=self.specialist_planner,
                )
                summary.done(name)
            except Exception as error:  # one dataset's failure must not end a whole night of training
                summary.failed(name, error)
        summary.show()
        return summary.exit_code


def _without_num_gpus(arguments: list[str]) -> list[str]:
    names = ("-num_gpus", "--num_gpus", "--num-gpus")
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if skip:
            skip = False
        elif argument in names:
            skip = True
        elif not argument.startswith(tuple(f"{name}=" for name in names)):
            kept.append(argument)
    return kept


def _key_value(text: str) -> tuple[str, int | str]:
    from satunet.errors import UserError

    key, sign, value = text.partition("=")
    if not sign or not key:
        raise UserError(f"--cluster_options {text!r}: must be KEY=VALUE")
    return key, int(value) if value.isdigit() else value
