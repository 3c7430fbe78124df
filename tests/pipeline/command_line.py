"""The command line in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def satunet(folder: Path, *arguments: str, code: int = 0, raw: Path | None = None) -> str:
    """Run ``satunet`` with nnU-Net's folders in ``folder``; what it printed.

    Args:
        folder: Where to work.
        arguments: Of the command line.
        code: The exit code that is expected.
        raw: ``nnUNet_raw``, if it is not in ``folder``.
    """
    environment = os.environ | {f"nnUNet_{n}": str(folder / n) for n in ("raw", "preprocessed", "results")}
    environment |= {"SATUNET_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    environment |= {"nnUNet_raw": str(raw)} if raw is not None else {}
    done = subprocess.run(
        [sys.executable, "-m", "satunet", *arguments],
        env=environment,
        capture_output=True,
        encoding="utf-8",
        cwd=folder,
        timeout=580,
    )
    assert done.returncode == code, f"satunet {' '.join(arguments)}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr
