"""Options that several commands share, written once, with nnU-Net's short flags where they mean the same."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

logger = logging.getLogger(__name__)

DatasetIds = Annotated[
    tuple[str, ...],
    arg(name="datasets", aliases=["-d"], metavar="ID", help="Dataset ids or names; 'all' for every one in nnUNet_raw."),
]
Processes = Annotated[int, arg(aliases=["-np"], help="Number of worker processes; 0 runs everything in this process.")]
Memory = Annotated[
    float | None, arg(help="Memory in GB that the processes may use together; most of the free memory if not given.")
]
Scheduler = Annotated[
    str | None,
    arg(metavar="ADDRESS", help="Dask scheduler (tcp://host:8786) whose workers to use instead of local processes."),
]
Modalities = Annotated[
    tuple[str, ...],
    arg(
        metavar="DATASET[:CHANNEL]=MODALITY",
        help="Modality of channels (ct, mri, pet, us, other) where dataset.json does not say; saved for later commands.",
    ),
]
VerifyIntegrity = Annotated[
    bool, arg(help="First read every file of the datasets, report all faults at once, and stop if there is one.")
]
TrustShape = Annotated[
    bool,
    arg(
        help="Treat files of a case that have the same shape as being on the same grid, whatever position their headers give; saved for later "
        "commands, in trust_shape.json beside the fingerprint."
    ),
]
Fold = Annotated[str, arg(aliases=["-f"], help="Fold of the split, or 'all' to train on every scan.")]
Continue = Annotated[bool, arg(name="continue", aliases=["--c"], help="Continue from the last checkpoint.")]
Device = Annotated[
    Literal["auto", "cuda", "mps", "cpu"], arg(aliases=["-device"], help="Device to compute on; 'auto' takes the best.")
]
Engine = Annotated[
    Literal["auto", "eager", "fused", "compile"],
    arg(
        help="Engine that runs the network: 'fused' is faster on an otherwise idle CPU; results agree within rounding."
    ),
]
Output = Annotated[Path, arg(aliases=["-o"], metavar="FOLDER", help="Folder for the results.")]
Verbose = Annotated[bool, arg(help="Show details of the log on the terminal; a log file always has them.")]
Encoder = Annotated[
    str,
    arg(
        aliases=["-e"],
        metavar="NAME",
        help="Text encoder: 'minilm', 'anatomy', a folder or a hub name, with options after '?' (pooling=last).",
    ),
]


def default_processes() -> int:
    """Default number of worker processes: one per core, at most eight, as in nnU-Net."""
    import os

    return max(1, min(8, os.cpu_count() or 1))


def fold_of(text: str) -> int | str:
    """A fold's number, or ``"all"``.

    Raises:
        UserError: It is neither.
    """
    from satunet.errors import UserError

    if text == "all":
        return "all"
    if not text.isdigit():
        raise UserError(f"fold must be a number or 'all', got {text!r}")
    return int(text)


def dataset_names(datasets: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the datasets that are given by id, by name or as ``all``, each once.

    Raises:
        DatasetNotFoundError: One is unknown, or ``nnUNet_raw`` has none at all.
    """
    from satunet.datasets.paths import all_dataset_names, dataset_name_of, other_folders, raw_dir
    from satunet.errors import DatasetNotFoundError

    if "all" not in datasets:
        return tuple(dict.fromkeys(dataset_name_of(d) for d in datasets))
    names = all_dataset_names()
    if not names:
        raise DatasetNotFoundError(f"{raw_dir()}: there is no dataset here; datasets are folders named DatasetNNN_Name")
    if others := other_folders():
        logger.warning(
            "%s: these folders are left out, because datasets are named DatasetNNN_Name: %s. 'satunet convert' converts TaskNNN_Name",
            raw_dir(),
            ", ".join(others),
        )
    return names
