"""``satunet demo``: every stage once, on real data, without a GPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from satunet.cli.options import Device, Processes, Verbose, default_processes


@dataclass(frozen=True, kw_only=True)
class Demo:
    """A first picture, then from three brain datasets to a benchmark report: plan, train, predict by text, compare."""

    output: Annotated[Path, arg(aliases=["-o"], metavar="FOLDER", help="Folder for data, models and the report.")] = (
        Path("demo_output")
    )
    steps: Annotated[int, arg(help="Training steps of every network.")] = 220
    specialists: Annotated[
        bool,
        arg(
            help="Also train and compare an nnU-Net on each dataset, with as many steps; this takes several times as long."
        ),
    ] = False
    device: Device = "auto"
    processes: Processes = field(default_factory=default_processes)
    verbose: Verbose = False

    def run(self) -> int:
        """Run all stages; a second run continues where the first one stopped."""
        from satunet.cli.environment import quick_check

        quick_check()
        from satunet.demo.run import run_demo
        from satunet.jobs.progress import setup_logging

        setup_logging(self.output / "demo.log", verbose=self.verbose)
        return run_demo(
            self.output,
            steps=self.steps,
            specialists=self.specialists,
            device=self.device,
            processes=self.processes,
        )
