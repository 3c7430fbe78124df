"""How long a step of training and a pass of prediction take alone and beside a busy neighbour, by settings of OpenMP.

    python benchmarks/bench_contention.py [--rounds 5] [--seconds 4]

torch's operators split their work among OpenMP's threads and wait for the slowest. Threads that wait by spinning take
the processor from whoever they wait for, once there are more threads than free cores. Settings are measured in turn, in
every round, each in a process of its own, first alone and then beside as many busy processes as are asked for.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

from common import header

SETTINGS: dict[str, dict[str, str]] = {
    "default": {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "spin 3000": {"GOMP_SPINCOUNT": "3000"},
    "spin 10000": {"GOMP_SPINCOUNT": "10000"},  # satunet's commands
    "spin 30000": {"GOMP_SPINCOUNT": "30000"},
}
_BUSY = "while True: pass"


def _child(seconds: float) -> None:
    import torch

    from satunet.network.config import NetworkConfig
    from satunet.network.engines import accelerate
    from satunet.network.model import PromptedUNet

    torch.manual_seed(0)
    config = NetworkConfig.auto(
        features_per_stage=(16, 32, 64, 128), strides=((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
        kernel_sizes=((3, 3, 3),) * 4, text_dim=32,
    )  # fmt: skip
    network = PromptedUNet(config)
    image, texts = torch.randn(1, 1, 48, 48, 48), torch.randn(1, 4, 32)
    modality = torch.zeros(1, dtype=torch.long)

    def masks(model: torch.nn.Module) -> torch.Tensor:
        out = model(image, texts, modality)
        return out[0] if isinstance(out, (list, tuple)) else out

    def train() -> None:
        network.zero_grad()
        masks(network).square().mean().backward()

    network.train()
    told = {"train": _median(train, seconds)}
    network.eval()
    fast = accelerate(network, torch.device("cpu"))
    with torch.inference_mode():
        told["predict"] = _median(lambda: masks(fast), seconds)
    print(json.dumps(told))


def _median(work: object, seconds: float) -> float:
    work()  # type: ignore[operator]
    times = []
    begin = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        work()  # type: ignore[operator]
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    """Measure, and print medians over rounds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--neighbours", type=int, default=1)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        _child(options.seconds)
        return
    unset = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "KMP_", "MKL_"))}
    found: dict[tuple[str, int, str], list[float]] = {}
    for _ in range(options.rounds):
        for busy in (0, options.neighbours):
            for name, setting in SETTINGS.items():
                others = [subprocess.Popen([sys.executable, "-c", _BUSY]) for _ in range(busy)]
                try:
                    command = [
                        sys.executable,
                        __file__,
                        "--child",
                        "--seconds",
                        str(options.seconds),
                    ]
                    done = subprocess.run(command, env=unset | setting, capture_output=True, text=True, check=True)
                finally:
                    for other in others:
                        other.kill()
                        other.wait()
                for what, seconds in json.loads(done.stdout).items():
                    found.setdefault((name, busy, what), []).append(seconds)
    header("torch")
    print(f"load {os.getloadavg()[0]:.1f} at the end; medians of {options.rounds} rounds, in turn, ms per step")
    print(f"{'':12}{'train alone':>14}{'beside':>10}{'predict alone':>16}{'beside':>10}")
    for name in SETTINGS:
        cells = [1000 * statistics.median(found[name, busy, what])
                 for what in ("train", "predict") for busy in (0, options.neighbours)]  # fmt: skip
        print(f"{name:12}{cells[0]:14.0f}{cells[1]:10.0f}{cells[2]:16.0f}{cells[3]:10.0f}")


if __name__ == "__main__":
    main()
