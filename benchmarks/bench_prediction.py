"""Time and memory of 5, 117 and 497 prompts on one scan, beside the plain method and nnunetv2's predictor.

The network costs what SAT-Nano costs: its U-Net (and, for each prompt, its query decoder) runs in full. Untrained, it
would find noise, so what it computed is then left aside, and the masks' features come from a phantom of 120
ellipsoids that fill about a third of the scan, with soft borders: each structure has a code of 64 numbers, a voxel's
features are its structure's code, and a prompt's mask embedding is the code of a structure (120 prompts), the sum of
two codes (30: structures that contain others), or a code of its own, which is nowhere in the scan. Features, prompts
and everything behind them are the engine's usual work, and the phantom's own cost is the same for any number of
prompts.

The plain method keeps the logits of all prompts, restores each, and cuts at one half. nnunetv2's predictor has one
output channel a prompt; only its sliding window is measured here (bench_export.py measures its export). Each
measurement is a process of its own. SAT's own patch: ``--scan 300 300 200 --patch 288 288 96``.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import header, nnunet_case
from phantom import PROMPTS, PhantomNano, phantom
from torch import Tensor, nn

from satunet.datasets.raw import Dataset
from satunet.geometry import Grid
from satunet.images.image import Image
from satunet.labels import build_label_space
from satunet.network.config import NetworkConfig
from satunet.network.model import mask_logits
from satunet.plan import Normalization, UnifiedPlan
from satunet.prediction import ModelFolder, Predictor
from satunet.preprocessing.transform import preprocess_image, restore
from satunet.text import TextBank
from satunet.windows.starts import gaussian_weights, window_starts


def make_model(patch: Sequence[int], config: NetworkConfig | None = None) -> ModelFolder:
    labels = {f"structure {k}": (k + 1,) for k in range(PROMPTS)}
    dataset = Dataset(
        id=1, name="Dataset001_A", folder=Path(), channel_names=("0",), modalities=("mri",), labels=labels
    )  # fmt: skip
    space = build_label_space([dataset])
    vectors = np.zeros((PROMPTS, 768), np.float32)
    vectors[:, 0] = [int(name.split()[-1]) for name in space.class_names]
    bank = TextBank(encoder_name="minilm", encoder_fingerprint="x", texts=space.class_names, vectors=vectors)
    x, y, z = patch
    plan = UnifiedPlan(
        spacing_mm=(1.5, 1.5, 1.5),
        patch_size=(x, y, z),
        network=config or NetworkConfig.nano(),
        datasets=("Dataset001_A",),
        normalization={"mri": Normalization(mean=0.0, std=1.0), "other": Normalization()},
    )
    network: Any = PhantomNano(config).eval()
    return ModelFolder(
        path=Path("phantom"), plan=plan, space=space, bank=bank, network=network, weights_hash="0", fold="all"
    )


def make_scan(shape: Sequence[int]) -> Image:
    # Turned and of the plan's spacing: the scan is resampled nowhere, since its values are codes.
    x, y, z = shape
    affine = np.diag([-1.5, 1.5, 1.5, 1.0])
    return Image(array=np.ascontiguousarray(phantom(shape)[::-1]), grid=Grid(shape=(x, y, z), affine=affine))


def chosen(count: int) -> list[str]:
    """Every count-th prompt, so that the share of those that are there is the same for any count."""
    return [f"structure {k}" for k in np.linspace(0, PROMPTS - 1, count).round().astype(int)]


def ours(arguments: argparse.Namespace, count: int) -> dict[str, Any]:
    predictor = Predictor(make_model(arguments.patch), device=arguments.device, overlap=arguments.overlap)
    image = make_scan(arguments.scan)
    started, cpu = time.perf_counter(), time.process_time()
    prediction = predictor.predict(image, chosen(count), modality="mri")
    found = {
        "seconds": time.perf_counter() - started,
        "cpu": time.process_time() - cpu,
        "present": sum(mask.boxed is not None and mask.boxed.voxels > 0 for mask in prediction.masks),
        "voxels": sum(mask.boxed.voxels for mask in prediction.masks if mask.boxed is not None),
        "windows": len(window_starts(arguments.scan, arguments.patch, arguments.overlap)),
    }
    if arguments.keep is not None:
        np.savez(arguments.keep, *(np.packbits(mask.mask) for mask in prediction.masks if mask.mask is not None))
    return found


def plain(arguments: argparse.Namespace, count: int) -> dict[str, Any]:
    """All logits in one array, weighted, divided, restored, cut at one half."""
    model = make_model(arguments.patch)
    image = make_scan(arguments.scan)
    started, cpu = time.perf_counter(), time.process_time()
    done = preprocess_image(image, modality="mri", plan=model.plan)
    volume = torch.from_numpy(done.array[0])
    queries = torch.from_numpy(model.bank.matrix(chosen(count)))
    sums = torch.zeros(count, *volume.shape)
    weight = torch.zeros(volume.shape)
    gauss = torch.from_numpy(gaussian_weights(tuple(arguments.patch)))
    with torch.inference_mode():
        for start in window_starts(volume.shape, arguments.patch, arguments.overlap):
            place = tuple(slice(s, s + p) for s, p in zip(start, arguments.patch, strict=True))
            features = model.network.encode_image(volume[place][None, None])
            embeddings = model.network.decode(features, queries[None])[0]
            probabilities = mask_logits(features.maps[0], embeddings)[0].sigmoid_()
            sums[(slice(None), *place)] += probabilities.mul_(gauss)
            weight[place] += gauss
            del features, probabilities
    sums /= weight
    masks = [np.packbits(restore(values.numpy(), done.geometry) > 0.5) for values in sums]
    found = {"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu}
    if arguments.keep is not None and Path(arguments.keep).exists():
        kept = np.load(arguments.keep)
        both = [(np.unpackbits(a), np.unpackbits(kept[f"arr_{k}"])) for k, a in enumerate(masks)]
        found["dsc"] = min(
            2.0 * (a & b).sum() / max(1, a.sum() + b.sum()) if a.any() or b.any() else 1.0 for a, b in both
        )
    return found


def nnunet(arguments: argparse.Namespace, count: int) -> dict[str, Any]:
    """nnunetv2's sliding window with one channel a prompt."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    model = make_model(arguments.patch)

    class Channels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = model.network
            self.queries = torch.from_numpy(model.bank.matrix(chosen(count)))[None]

        def forward(self, image: Tensor) -> Tensor:
            features = self.network.encode_image(image)
            logits = mask_logits(features.maps[0], self.network.decode(features, self.queries.to(image.device))[0])
            return torch.cat((torch.zeros_like(logits[:, :1]), logits), dim=1)

    plans, dataset = nnunet_case([1.5] * 3, arguments.patch, count)
    predictor = nnUNetPredictor(
        tile_step_size=1 - arguments.overlap, use_mirroring=False, device=torch.device(arguments.device),
        perform_everything_on_device=arguments.device != "cpu", allow_tqdm=False,
    )  # fmt: skip
    predictor.manual_initialization(Channels(), plans, plans.get_configuration("3d_fullres"), None, dataset, "x", None)
    image = make_scan(arguments.scan)
    started, cpu = time.perf_counter(), time.process_time()
    done = preprocess_image(image, modality="mri", plan=model.plan)
    with torch.inference_mode():
        predictor.predict_sliding_window_return_logits(torch.from_numpy(done.array))
    return {"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu}


WAYS = {"satunet": ours, "plain": plain, "nnunetv2": nnunet}


def apart(arguments: argparse.Namespace, way: str, count: int, *more: str) -> dict[str, Any] | None:
    """Measure in a process of its own; ``None`` if it did not survive."""
    sizes = [str(n) for n in (*arguments.scan, "--patch", *arguments.patch)]
    command = [
        sys.executable, __file__, "--one", way, str(count), "--scan", *sizes, "--overlap", str(arguments.overlap),
        "--device", arguments.device, *more,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(f"{way}, {count} prompts: failed ({done.stderr.strip().splitlines()[-1:] or done.returncode})")
        return None
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    text = f"{way}, {count} prompts: {found['seconds']:.1f} s ({found['cpu']:.1f} s of CPU), {found['peak_gb']:.2f} GB"
    text += f", {found['gpu_gb']:.2f} GB on the GPU" if "gpu_gb" in found else ""
    text += f"; {found['present']} found, {found['voxels'] / 1e6:.1f} M voxels" if "present" in found else ""
    print(text, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--scan", type=int, nargs=3, default=(100, 100, 72))
    parser.add_argument("--patch", type=int, nargs=3, default=(64, 64, 64))
    parser.add_argument("--overlap", type=float, default=0.5)
    parser.add_argument("--prompts", type=int, nargs="+", default=(5, 117, 497))
    parser.add_argument("--peers", type=int, nargs="*", default=(117,), help="prompts of the peers")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--keep", help=argparse.SUPPRESS)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        found = WAYS[arguments.one[0]](arguments, int(arguments.one[1]))
        found["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        if arguments.device != "cpu":
            found["gpu_gb"] = torch.cuda.max_memory_allocated() / 2**30
        print(json.dumps(found))
        return
    header("torch", "nnunetv2")
    windows = len(window_starts(arguments.scan, arguments.patch, arguments.overlap))
    print(
        f"SAT-Nano's cost, scan {tuple(arguments.scan)}, {windows} windows of {tuple(arguments.patch)}, "
        f"{torch.get_num_threads()} threads, {arguments.device}"
    )
    with tempfile.TemporaryDirectory() as folder:
        results = {
            count: apart(arguments, "satunet", count, "--keep", f"{folder}/{count}.npz") for count in arguments.prompts
        }
        few, many = (results[arguments.prompts[i]] for i in (0, -1))
        if few and many:
            key = "gpu_gb" if "gpu_gb" in few else "peak_gb"
            print(
                f"{arguments.prompts[-1]} prompts against {arguments.prompts[0]}: "
                f"{many['seconds'] / few['seconds']:.2f} times the time ({many['cpu'] / few['cpu']:.2f} of CPU), "
                f"{many[key] / few[key]:.2f} times the memory"
            )
        for count in arguments.peers:
            for way in ("plain", "nnunetv2"):
                keep = ("--keep", f"{folder}/{count}.npz") if way == "plain" else ()
                found, own = apart(arguments, way, count, *keep), results.get(count)
                if found and own:
                    print(
                        f"{count} prompts: {found['seconds'] / own['seconds']:.1f} times as fast as {way}, "
                        f"1/{found['peak_gb'] / own['peak_gb']:.1f} of its memory"
                        + (f", DSC at least {found['dsc']:.5f}" if "dsc" in found else "")
                    )


if __name__ == "__main__":
    main()
