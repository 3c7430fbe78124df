"""What satunet does on a GPU, beside SAT's own graph, in one command that needs little of a card's time.

    scripts/bench_gpu [--seconds 600] [--output benchmarks/results/gpu.txt] [--only patch step]
    scripts/bench_gpu --small --device cpu        the same code in a minute of a CPU, before a card is asked for

Parts come in the order of their worth; each has a time limit of its own, and what fails is said while the others go on.
Weights are random and the same on both sides.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from gpu import network, prediction
from gpu.bench import Bench, Sizes

Part = tuple[str, Callable[[Bench], None], float]


def parts(sizes: Sizes) -> list[Part]:
    """Name, function and most seconds of each."""
    return [
        ("ceilings", network.ceilings, 15),
        ("patch of Nano", partial(network.patch, config=sizes.nano, name="Nano"), 40),
        ("step of Nano", partial(network.step, config=sizes.nano, label="Nano", size=sizes.training_batch), 40),
        ("correctness", network.correctness, 25),
        ("prompts", prediction.prompts, 30),
        ("SAT's windows", prediction.sats_windows, 20),
        ("busy network", network.idle, 20),
        ("layers", network.layers, 20),
        ("loss", network.loss, 15),
        ("patch of Pro", partial(network.patch, config=sizes.pro, name="Pro"), 25),
        ("folder", prediction.folder, 40),
        ("busy scan", prediction.busy, 20),
        ("step of Pro", partial(network.step, config=sizes.pro, label="Pro", size=1), 30),
        ("compiled patch", partial(network.patch, config=sizes.nano, name="Nano", slow=True), 120),
        ("compiled, correctness", partial(network.correctness, slow=True), 60),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seconds", type=float, default=600, help="of the whole run; parts that do not fit are left out"
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="small sizes, to rehearse")
    parser.add_argument("--only", nargs="+", help="parts whose names contain one of these")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/gpu.txt"))
    given = parser.parse_args()
    deadline = time.monotonic() + given.seconds
    sizes = Sizes.small() if given.small else Sizes.full()
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text("", encoding="utf-8")
    bench = Bench(torch.device(given.device), sizes, given.output, deadline)
    bench.header()
    for name, function, limit in parts(sizes):
        if not given.only or any(word in name for word in given.only):
            bench.part(name, function, limit)
    bench.say(f"failed: {', '.join(bench.failed) or 'nothing'}")
    return bool(bench.failed)


if __name__ == "__main__":
    raise SystemExit(main())
