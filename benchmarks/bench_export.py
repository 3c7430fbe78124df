"""From probabilities to masks on disk: satunet against nnunetv2's resample-and-export of the same structures.

Both start from what their engine hands over: ours the probabilities of each prompt inside its box, nnunetv2 the logits
of all classes on the whole grid. Structures are ellipsoids of realistic extent. nnunetv2's logits of 117 classes on a
512 × 512 × 300 scan would be 37 GB; the peer is measured on a smaller grid, ours on both.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
from common import compare, header, nnunet_case

from satunet.geometry import Grid
from satunet.images.image import Image, read_label_map, write_label_map
from satunet.network.config import NetworkConfig
from satunet.plan import UnifiedPlan
from satunet.prediction.masks.boxed import restore_box
from satunet.preprocessing.transform import ScanGeometry, preprocess_image
from satunet.types import Box

CLASSES = 117
THREADS = 2
"""Of both sides."""


def structures(shape: tuple[int, ...], count: int) -> list[tuple[Box, np.ndarray]]:
    """Boxes and probabilities of ellipsoids side by side, so that no two overlap."""
    rng = np.random.default_rng(0)
    cells = int(np.ceil(count ** (1 / 3)))
    found = []
    for k in range(count):
        place = np.unravel_index(k, (cells, cells, cells))
        low = [int(n * p / cells) for n, p in zip(shape, place, strict=True)]
        high = [int(n * (p + 1) / cells) for n, p in zip(shape, place, strict=True)]
        x, y, z = (slice(a, b) for a, b in zip(low, high, strict=True))
        axes = [np.linspace(-1, 1, b - a) for a, b in zip(low, high, strict=True)]
        radii = rng.uniform(0.6, 0.95, 3)
        distance = sum((a / r) ** 2 for a, r in zip(np.meshgrid(*axes, indexing="ij"), radii, strict=True))
        found.append(((x, y, z), (1 / (1 + np.exp(8 * (distance - 1)))).astype(np.float32)))
    return found


def ours(geometry: ScanGeometry, scan: Image, found: list[tuple[Box, np.ndarray]], folder: Path) -> None:
    def one(item: tuple[int, tuple[Box, np.ndarray]]) -> None:
        number, (box, values) = item
        mask = restore_box(values, box, geometry)
        write_label_map(folder / f"{number}.nii.gz", mask.full, like=scan)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(one, enumerate(found, start=1)))


def peer(geometry: ScanGeometry, found: list[tuple[Box, np.ndarray]], folder: Path, threads: int) -> Callable[[], None]:
    """nnunetv2's function as its predictor calls it, with the axes (z, y, x); its logits are there before it is timed."""
    from nnunetv2.inference.export_prediction import export_prediction_from_logits

    shape = geometry.shape[::-1]
    logits = np.zeros((len(found) + 1, *shape), dtype=np.float32)
    for k, ((x, y, z), values) in enumerate(found, start=1):
        logits[k] = -20
        logits[k, z, y, x] = (20 * (values - 0.5)).transpose(2, 1, 0)
    spacing = [float(s) for s in geometry.spacing_mm[::-1]]
    original = [float(s) for s in geometry.original.spacing_mm[::-1]]
    whole = geometry.original.shape[::-1]
    plans, dataset = nnunet_case(
        spacing,
        (32, 32, 32),
        len(found),
        resampling_fn_probabilities="resample_data_or_seg_to_shape",
        resampling_fn_probabilities_kwargs={"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None},
    )
    properties = {
        "spacing": original,
        "shape_before_cropping": whole,
        "bbox_used_for_cropping": [[0, n] for n in whole],
        "shape_after_cropping_and_before_resampling": whole,
        "sitk_stuff": {"spacing": original[::-1], "origin": (0.0, 0.0, 0.0), "direction": tuple(np.eye(3).ravel())},
    }
    configuration = plans.get_configuration("3d_fullres")

    def export() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            export_prediction_from_logits(
                logits,
                properties,
                configuration,
                plans,
                dataset,
                str(folder / "nnunet"),
                False,
                num_threads_torch=threads,
            )

    return export


def case(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> tuple[ScanGeometry, Image]:
    network = NetworkConfig.auto(
        features_per_stage=(8, 16), strides=((1, 1, 1), (2, 2, 2)), kernel_sizes=((3, 3, 3),) * 2, text_dim=24
    )
    plan = UnifiedPlan(spacing_mm=(1.5, 1.5, 1.5), patch_size=(32, 32, 32), network=network)
    affine = np.diag([*spacing, 1.0])
    scan = Image(array=np.ones(shape, np.int16), grid=Grid(shape=shape, affine=affine))
    return preprocess_image(scan, modality="ct", plan=plan).geometry, scan


def measure(shape: tuple[int, int, int], spacing: tuple[float, float, float], *, with_peer: bool) -> None:
    geometry, scan = case(shape, spacing)
    found = structures(geometry.shape, CLASSES)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        started = time.perf_counter()
        ours(geometry, scan, found, folder)
        own = time.perf_counter() - started
        size = sum(file.stat().st_size for file in folder.iterdir()) / 2**20
        print(f"{CLASSES} masks, {geometry.shape} → {shape}: satunet {own:.1f} s, {size:.1f} MB of files")
        if not with_peer:
            return
        export = peer(geometry, found, folder, THREADS)
        started = time.perf_counter()
        export()
        theirs = time.perf_counter() - started
        labels = np.asarray(nib.load(folder / "nnunet.nii.gz").dataobj)
        scores = []
        for k in range(1, CLASSES + 1):
            mask, other = read_label_map(folder / f"{k}.nii.gz").array > 0, labels == k
            scores.append(2 * (mask & other).sum() / (mask.sum() + other.sum()))
    print(f"DSC between both: mean {np.mean(scores):.4f}, least {np.min(scores):.4f}")
    compare(f"{CLASSES} masks on {shape}", own, theirs, "nnunetv2")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="the small grid alone")
    arguments = parser.parse_args()
    header("numpy", "nnunetv2", "isal")
    measure((170, 170, 100), (2.4, 2.4, 3.0), with_peer=True)
    if not arguments.quick:
        measure((512, 512, 300), (0.8, 0.8, 1.0), with_peer=False)
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GB")


if __name__ == "__main__":
    main()
