"""The backbone of SAT-Nano on a CPU: our engines against PyTorch's eager mode, in one run.

For each precision the machine computes natively (float32; bfloat16 with AMX or AVX512-BF16): eager as a plain call of
the modules, bfloat16 as autocast with channels last, and the engines of satunet.network.engines. Sides take turns, so
that a machine that is slow for a while is slow for all. ``--openvino`` adds the same network in OpenVINO, in the same precisions,
``--model FOLDER --scan FILE`` compares the masks of a trained model.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import header
from torch import Tensor

from satunet.compute.devices import cpu_has_bfloat16
from satunet.network import NetworkConfig
from satunet.network.backbone import UNet
from satunet.network.cpu.fused import FusedUNet
from satunet.network.engines import compiled_norm, compiler

Run = Callable[[Tensor], object]


def engines(net: UNet, *, compile_too: bool, openvino: bool, shape: tuple[int, ...]) -> dict[str, Run]:
    runs: dict[str, Run] = {"eager, float32": net}
    fused = FusedUNet(net, torch.float32)
    runs["fused, float32"] = fused
    if compile_too and compiler() is not None:
        runs["compile, float32"] = FusedUNet(net, torch.float32, compiled_norm())
    if cpu_has_bfloat16():
        last = torch.channels_last_3d

        def autocast(x: Tensor) -> object:
            with torch.autocast("cpu", torch.bfloat16):
                return net(x.contiguous(memory_format=last))

        runs["eager, bfloat16 autocast, channels last"] = autocast
        runs["fused, bfloat16"] = FusedUNet(net, torch.bfloat16)
        if compile_too and compiler() is not None:
            runs["compile, bfloat16"] = FusedUNet(net, torch.bfloat16, compiled_norm())
    if openvino:
        runs["OpenVINO, float32"] = in_openvino(net, shape, "f32")
        if cpu_has_bfloat16():
            runs["OpenVINO, bfloat16"] = in_openvino(net, shape, "bf16")
    return runs


def in_openvino(net: UNet, shape: tuple[int, ...], precision: str) -> Run:
    import openvino as ov

    class Maps(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            skips, maps = self.net(x)
            return (*skips, *maps)

    with torch.inference_mode():
        skips = len(net(torch.zeros(1, 3, 64, 64, 64))[0])
    model = ov.convert_model(Maps(), example_input=torch.zeros(1, 3, *shape), input=[[1, 3, *shape]])
    threads = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": precision}
    compiled = ov.compile_model(model, "CPU", threads)

    def run(x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        found = [torch.from_numpy(array) for array in compiled([x.numpy()]).values()]
        return found[:skips], found[skips:]

    return run


def error_of(found: object, expected: object) -> float:
    """Largest difference of the full-resolution map, relative to its standard deviation."""
    a, b = (np.asarray(maps[0].float()) for _, maps in (found, expected))  # type: ignore[misc]
    return float(np.abs(a - b).max() / b.std())


@torch.inference_mode()
def measure(shape: tuple[int, int, int], repeats: int, *, compile_too: bool, openvino: bool) -> None:
    torch.manual_seed(0)
    net = UNet(NetworkConfig.nano()).eval()
    x = torch.randn(1, 1, *shape).expand(-1, 3, -1, -1, -1).contiguous()
    runs = engines(net, compile_too=compile_too, openvino=openvino, shape=shape)
    expected = net(x)
    for name, run in runs.items():
        started = time.perf_counter()
        found = run(x)
        taken = time.perf_counter() - started
        print(f"{name}: first call {taken:.1f} s, largest difference {error_of(found, expected):.1e} std")
    wall: dict[str, list[float]] = {name: [] for name in runs}
    work: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            started, used = time.perf_counter(), time.process_time()
            run(x)
            wall[name].append(time.perf_counter() - started)
            work[name].append(time.process_time() - used)
    eager, eager_work = (statistics.median(t["eager, float32"]) for t in (wall, work))
    for name in runs:
        own, own_work = statistics.median(wall[name]), statistics.median(work[name])
        print(
            f"{name}: {own:.2f} s, {eager / own:.2f} times as fast as eager float32 "
            f"(time on the cores {own_work:.2f} s, {eager_work / own_work:.2f} times)"
        )


def agreement(model: Path, scan: Path, checkpoint: str, dataset: str | None, *, bfloat16: bool) -> None:
    """DSC between the masks of the engines and of eager float32, for every class, or those of a dataset."""
    from satunet.prediction import ModelFolder, Predictor

    loaded = ModelFolder.load(model, checkpoint=checkpoint)
    names = loaded.space.classes_of(dataset) if dataset else loaded.space.class_names
    masks = {}
    sides = [("eager", "float32"), ("fused", "float32")]
    sides += [("eager", "bfloat16"), ("fused", "bfloat16")] * bfloat16
    for engine, precision in sides:
        predictor = Predictor(loaded, device="cpu", engine=engine, precision=precision)  # type: ignore[arg-type]
        masks[engine, precision] = [m.mask for m in predictor.predict(scan, names).masks]
    reference = masks.pop(("eager", "float32"))
    for key, found in masks.items():
        pairs = [(np.count_nonzero(a & b), a.sum(), b.sum()) for a, b in zip(found, reference, strict=True)]
        for least in (1, 100):
            scores = [2 * both / (a + b) for both, a, b in pairs if b >= least]
            print(
                f"{scan.name}, {key[0]} {key[1]} against eager float32: DSC of {len(scores)} masks of at least {least} "
                f"voxels: mean {np.mean(scores or np.nan):.5f}, least {np.min(scores or np.nan):.5f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", type=int, nargs=3, default=(128, 128, 96))
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="the compiled engine, too")
    parser.add_argument("--openvino", action="store_true", help="the same network in OpenVINO, too")
    parser.add_argument("--model", type=Path, help="compare the masks of a trained model instead")
    parser.add_argument("--checkpoint", default="checkpoint_final.pth")
    parser.add_argument("--bfloat16", action="store_true", help="masks in bfloat16 as well, emulated if need be")
    parser.add_argument("--dataset", help="whose classes to ask for; all if not given")
    parser.add_argument("--scan", type=Path, nargs="+")
    arguments = parser.parse_args()
    header("torch")
    if arguments.model:
        for scan in arguments.scan:
            agreement(arguments.model, scan, arguments.checkpoint, arguments.dataset, bfloat16=arguments.bfloat16)
        return
    print(
        f"SAT-Nano's backbone, one patch of {tuple(arguments.shape)}, {torch.get_num_threads()} threads, "
        f"native bfloat16: {'yes' if cpu_has_bfloat16() else 'no'}"
    )
    measure(tuple(arguments.shape), arguments.repeats, compile_too=arguments.compile, openvino=arguments.openvino)


if __name__ == "__main__":
    main()
