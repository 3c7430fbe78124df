"""Damaged images: no crash, no hang, no traceback, and no other voxels where a checksum covers them.

    python -m tests.drills.fuzz_images --mutations 20000 --record

Each mutation is fixed by the seed and its number.
"""

from __future__ import annotations

import argparse
import functools
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tests.drills.children import Figures, limit_memory, refusal, say, try_all
from tests.drills.image_seeds import Seed, make_seeds, packed_again, unpacked
from tests.drills.mutations import mutate
from tests.drills.record import record

CHILD = [sys.executable, "-m", "tests.drills.fuzz_images", "--child"]


def drill(mutations: int, seed: int = 0, folder: Path | None = None) -> Figures:
    """Damage and read ``mutations`` images."""
    with tempfile.TemporaryDirectory() as scratch:
        return try_all([*CHILD, str(folder or scratch), str(seed)], mutations, Figures())


def _child(work: Path, seed: int, first: int, end: int) -> None:
    limit_memory()
    seeds = make_seeds(work / f"seeds{first}")
    originals = {s: _content(s) for s in seeds}
    sound = {s: s.damaged.read_bytes() for s in seeds}
    for n in range(first, end):
        rng = random.Random(f"{seed}-{n}")
        chosen = rng.choices(seeds, weights=[s.share for s in seeds])[0]
        way, content = mutate(unpacked(chosen, sound[chosen]), chosen.header, rng)
        chosen.damaged.write_bytes(packed_again(chosen, content))
        say(n, chosen.kind, way, functools.partial(_outcome, chosen, originals[chosen]))
        chosen.damaged.write_bytes(sound[chosen])
    shutil.rmtree(work / f"seeds{first}")


def _content(seed: Seed) -> list[tuple[np.ndarray, np.ndarray]]:
    """Voxels and affines of what is at a seed's place."""
    from satunet.images.dicom import find_series, read_series
    from satunet.images.image import read_grid, read_image, read_label_map

    if seed.path.is_dir():
        images = [read_series(series) for series in find_series(seed.path)]
    else:
        images = [read_image(seed.path)]
        assert read_grid(seed.path).shape == images[0].grid.shape
        if "scaled" not in seed.path.name:
            read_label_map(seed.path)
    return [(image.array, image.grid.affine) for image in images]


def _outcome(seed: Seed, original: list[tuple[np.ndarray, np.ndarray]]) -> tuple[str, str]:
    try:
        found = _content(seed)
    except BaseException as error:
        return refusal(error, (str(seed.path),))
    if not found:
        return "refused", "nothing found"
    same = len(found) == len(original) and all(
        a.shape == b.shape and np.array_equal(a, b) for (a, _), (b, _) in zip(found, original, strict=True)
    )
    if not same:
        return ("checksum missed" if seed.covered else "other voxels"), ""
    moved = any(not np.allclose(a, b, atol=1e-3, rtol=1e-4) for (_, a), (_, b) in zip(found, original, strict=True))
    return ("other place" if moved else "same"), ""


def main() -> int:
    """Run the drill from the command line."""
    if sys.argv[1:2] == ["--child"]:
        _child(Path(sys.argv[2]), *map(int, sys.argv[3:6]))
        return 0
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mutations", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", action="store_true", help="put the figures into benchmarks/results/drills.txt")
    options = parser.parse_args()
    begin = time.monotonic()
    figures = drill(options.mutations, options.seed)
    lines = [f"{options.mutations} mutations, seed {options.seed}, {time.monotonic() - begin:.0f} s", *figures.lines()]
    print("\n".join(lines))
    for n, what in sorted(figures.bad.items())[:100]:
        print(f"  mutation {n}: {what}")
    if options.record:
        record("Damaged images", lines)
    return 1 if figures.bad else 0


if __name__ == "__main__":
    sys.exit(main())
