"""Parts about whole scans: prompts, SAT's own sliding window, folders."""

from __future__ import annotations

import functools
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from phantom import PROMPTS, PhantomNano, phantom
from torch import Tensor

from gpu.bench import Axes, Bench
from gpu.network import make, sat_of
from gpu.sat import as_sat_runs
from satunet.compute.devices import autocast_for
from satunet.network.backbone import use_channels_last
from satunet.network.engines import accelerate
from satunet.windows.engine import WindowedScan
from satunet.windows.starts import gaussian_weights, window_starts


@functools.cache
def _volume(shape: Axes) -> Tensor:
    return torch.from_numpy(phantom(shape))


def _network(bench: Bench) -> Any:
    """SAT-Nano's cost, in the fastest engine that runs."""
    model = PhantomNano(bench.sizes.nano).eval().to(bench.device)
    image = torch.zeros(1, 1, *bench.sizes.checked_patch, device=bench.device)
    try:
        model.nano = accelerate(model.nano, bench.device, engine="fused")
        with torch.inference_mode(), autocast_for(bench.device, "float16" if bench.cuda else "auto"):
            model.nano.encode_image(image)
        bench.fused = bench.cuda
    except Exception as error:
        bench.say(f"  engine fused failed ({str(error).splitlines()[0][:200]}); continuing with eager")
        model = PhantomNano(bench.sizes.nano).eval().to(bench.device)
    return model


def _scan(bench: Bench, network: Any, volume: Tensor, count: int) -> WindowedScan:
    queries = torch.zeros(count, bench.sizes.nano.text_dim)
    queries[:, 0] = torch.linspace(0, PROMPTS - 1, count).round()
    return WindowedScan(
        network=network,
        volume=volume,
        queries=queries,
        modality=0,
        patch=bench.sizes.patch,
        device=bench.device,
    )


def _run(scan: WindowedScan) -> tuple[int, int]:
    """Structures found, and voxels of them all."""
    found = [p.values for _, p in scan.probabilities() if p.values is not None]
    return len(found), sum(int((v > 0.5).sum()) for v in found)


def prompts(bench: Bench) -> None:
    """Time and memory of a scan by the number of prompts; masks are in the scan's own grid."""
    network, volume = _network(bench), _volume(bench.sizes.scan)
    windows = len(window_starts(bench.sizes.scan, bench.sizes.patch, 0.5))
    bench.say(f"  scan {bench.sizes.scan}, {windows} windows of {bench.sizes.patch}")
    _run(_scan(bench, network, volume, 1))
    times = {}
    for count in bench.sizes.prompts:
        seconds, peak, (structures, voxels) = bench.once(lambda c=count: _run(_scan(bench, network, volume, c)))
        times[count] = seconds
        memory = f", {peak:.1f} GB" if peak else ""
        bench.say(
            f"  {count} prompts: {seconds:.2f} s, {1e3 * seconds / windows:.0f} ms per window{memory}; "
            f"{structures} found, {voxels / 1e6:.1f} M voxels"
        )
    few, many = bench.sizes.prompts[0], bench.sizes.prompts[-1]
    bench.say(f"  {many} prompts against {few}: {times[many] / times[few]:.2f} times the time")


@torch.inference_mode()
def sats_windows(bench: Bench) -> None:
    """Windows as SAT's evaluation handles them: logits of all prompts, to the CPU, added up there."""
    count = sorted(bench.sizes.prompts)[1]
    network = make(bench.sizes.nano, bench.device)
    sat = sat_of(network, bench.device)
    volume, size = _volume(bench.sizes.scan), bench.sizes.patch
    gauss = (10 * torch.from_numpy(gaussian_weights(tuple(size)))).half().to(bench.device)
    prediction, weight = (torch.zeros(count, *bench.sizes.scan) for _ in range(2))
    queries = torch.randn(1, count, network.config.text_dim, device=bench.device)
    starts = window_starts(bench.sizes.scan, size, 0.5)
    taken = []
    for start in [*starts[:2], starts[0]]:
        place = (slice(None), *(slice(s, s + p) for s, p in zip(start, size, strict=True)))
        began = time.perf_counter()
        crop = volume[place[1:]][None, None].to(bench.device).repeat(1, 3, 1, 1, 1)
        with as_sat_runs(bench.device):
            values = torch.sigmoid(sat(crop, queries, 1)[0])[0]
            part = (values * gauss).cpu()
            prediction[place] += part
            weight[place] += gauss.cpu()
        bench.wait()
        taken.append(time.perf_counter() - began)
        bench.say(f"  SAT's way, {count} prompts, a window: {taken[-1]:.2f} s")
    bench.say(f"  {len(starts)} windows of the last kind would take {len(starts) * taken[-1]:.1f} s")


def busy(bench: Bench) -> None:
    """How busy the card is while a scan is predicted."""
    count = sorted(bench.sizes.prompts)[1]
    network, volume = _network(bench), _volume(bench.sizes.scan)
    bench.say(f"  {count} prompts: {bench.busy(lambda: _run(_scan(bench, network, volume, count)))}")


def folder(bench: Bench) -> None:
    """Files to masks on disk: scans a minute, and the share of the time that the network waits."""
    from bench_prediction import chosen, make_model, make_scan

    from satunet.images.image import write_volume
    from satunet.prediction import Predictor
    from satunet.prediction.folder import predict_folder

    model = make_model(bench.sizes.patch, bench.sizes.nano)
    if bench.fused:
        use_channels_last(model.network.nano)
    predictor = Predictor(model, device=str(bench.device), modality="mri")
    count = sorted(bench.sizes.prompts)[1]
    with tempfile.TemporaryDirectory() as place:
        scans, masks = Path(place) / "scans", Path(place) / "masks"
        scans.mkdir()
        image = make_scan(bench.sizes.scan)
        for number in range(bench.sizes.folder_scans):
            write_volume(scans / f"scan{number}.nii.gz", image.array, like=image)
        bytes_in = sum(f.stat().st_size for f in scans.iterdir())
        seconds, peak, summary = bench.once(lambda: predict_folder([scans], masks, predictor, ", ".join(chosen(count))))
        bench.say(
            f"  {bench.sizes.folder_scans} scans of {bench.sizes.scan} ({bytes_in / 1e6:.0f} MB), {count} prompts each: "
            f"{seconds:.1f} s, {60 * bench.sizes.folder_scans / seconds:.1f} scans a minute"
            + (f", {peak:.1f} GB" if peak else "")
        )
        if summary.failures:
            raise RuntimeError(f"{len(summary.failures)} scans failed: {next(iter(summary.failures.values()))}")
        bench.say("  " + "; ".join(f"{name}: {text}" for name, text in summary.notes.items()))
