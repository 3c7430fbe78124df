"""A bit flipped in every kind of file that satunet writes: whoever reads it says so, and names the file.

    python -m tests.drills.flips --flips 2000 --repairs 20 --record
    python -m tests.drills.flips --every "mask, manifest" "model, model.json" --record     # each bit of these, once

What is read after a flip is what was written (the bit was padding, or how JSON is laid out), an error that names the file, or
something else: that is a miss, but for the files that carry no digest because people edit them. Then files of a store and of a
prediction are damaged, and the command that made them is run again: all is as it was.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import logging
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.drills.children import Figures, limit_memory, refusal, say, try_all
from tests.drills.record import finish
from tests.drills.stages import set_environment, stages
from tests.drills.trees import digest

CHILD = [sys.executable, "-m", "tests.drills.flips", "--child"]
GOOD = ("found", "harmless", "not covered", "repaired")
STORE = "Dataset900_Unified/satunetPlans_3d_fullres"
SCAN = "Dataset901_SyntheticCT__case_00__0000"


@dataclass(frozen=True, kw_only=True)
class Written:
    """A file that satunet wrote.

    Attributes:
        kind: What it is.
        file: The file.
        read: Gives what it says, as something that can be compared.
        covered: Whether a digest covers it.
    """

    kind: str
    file: Path
    read: Callable[[], Any]
    covered: bool = True


def drill(flips: int, repairs: int, seed: int = 0, world: Path | None = None) -> Figures:
    """Flip bits, one at a time.

    Args:
        flips: How many that are read.
        repairs: How many that a command repairs.
        seed: Of the draw.
        world: An example (:func:`tests.drills.stages.make_world`), which is damaged; one is made if not given.
    """
    with _example(world) as example:
        return try_all([*CHILD, str(example), str(seed), str(flips), ""], flips + repairs, Figures(good=GOOD))


def every_bit(kinds: Sequence[str], world: Path | None = None) -> Figures:
    """Flip each bit of small files, one at a time.

    Args:
        kinds: Kinds of files, of those of :func:`written`.
        world: As for :func:`drill`.
    """
    with _example(world) as example:
        set_environment(example)
        bits = sum(8 * each.file.stat().st_size for each in _of_kinds(written(example), kinds))
        command = [*CHILD, str(example), "0", str(bits), ";".join(kinds)]
        return try_all(command, bits, Figures(good=GOOD), at_once=bits)


@contextlib.contextmanager
def _example(world: Path | None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as scratch:
        if world is None:
            world = Path(scratch) / "run"
            subprocess.run([sys.executable, "-m", "tests.drills.stages", str(world)], check=True, capture_output=True)
        yield world


def _of_kinds(known: list[Written], kinds: Sequence[str]) -> list[Written]:
    named = {each.kind: each for each in known}
    if other := [kind for kind in kinds if kind not in named]:
        raise SystemExit(f"{other[0]!r} is no kind of file; allowed are {', '.join(map(repr, named))}")
    return [named[kind] for kind in kinds]


def written(work: Path) -> list[Written]:
    """Every kind of file, in an example."""
    return [*_of_store(work), *_of_models(work), *_of_results(work)]


def _of_store(work: Path) -> list[Written]:
    import numpy as np

    from satunet.jobs.files import read_json
    from satunet.jobs.records import load_json, to_plain
    from satunet.labels import LabelSpace
    from satunet.plan import UnifiedPlan
    from satunet.planners.fingerprint.dataset import DatasetFingerprint
    from satunet.preprocessing.store.index import ScanIndex
    from satunet.preprocessing.store.scans import INDEX, ScanStore
    from satunet.trainers.unified.watching.statistics import read_progress

    unified = work / "preprocessed" / "Dataset900_Unified"
    store, own = work / "preprocessed" / STORE, work / "preprocessed" / "Dataset901_SyntheticCT"
    fold = next(iter(sorted((work / "results").glob("*/*/fold_0"))))

    def fingerprint() -> Any:
        file = own / "dataset_fingerprint.json"
        return to_plain(DatasetFingerprint.of_file(load_json(file), file))

    def locations() -> Any:
        return {label: places.tolist() for label, places in ScanStore(store).locations(SCAN).items()}

    def scans() -> Any:
        return {scan: to_plain(ScanStore(store).record(scan)) for scan in ScanStore(store).scan_ids}

    def index() -> Any:
        found = ScanIndex.of(ScanStore(store))
        return [found[number] for number in range(len(found))], found.contents

    def plain(file: Path) -> Callable[[], Any]:
        return lambda: _named(read_json, file)

    return [
        Written(kind="store, image", file=store / f"{SCAN}.b2nd",
                read=lambda: np.asarray(ScanStore(store).image(SCAN)[:]).tobytes()),
        Written(kind="store, labels", file=store / f"{SCAN}_seg.b2nd",
                read=lambda: np.asarray(ScanStore(store).labels(SCAN)[:]).tobytes()),
        Written(kind="store, locations", file=store / f"{SCAN}_locations.npz", read=locations),
        Written(kind="store, record", file=store / f"{SCAN}.json", read=scans),
        Written(kind="store, manifest", file=store / "manifest.json", read=scans),
        Written(kind="store, index", file=store / INDEX, read=index),
        Written(kind="label space", file=unified / "label_space.json",
                read=lambda: to_plain(LabelSpace.load(unified / "label_space.json"))),
        Written(kind="fingerprint", file=own / "dataset_fingerprint.json", read=fingerprint, covered=False),
        Written(kind="fingerprint of a case", file=own / "fingerprint_cases" / "case_00.json",
                read=plain(own / "fingerprint_cases" / "case_00.json")),
        Written(kind="record of a conversion", file=work / "raw/Dataset007_Small/.conversion/case_00.json",
                read=plain(work / "raw/Dataset007_Small/.conversion/case_00.json")),
        Written(kind="plan", file=unified / "satunetPlans.json", covered=False,
                read=lambda: UnifiedPlan.load(unified / "satunetPlans.json").to_nnunet()),
        Written(kind="splits", file=unified / "splits_final.json", read=plain(unified / "splits_final.json"), covered=False),
        Written(kind="progress of a training", file=fold / "progress.jsonl", covered=False,
                read=lambda: read_progress(fold / "progress.jsonl")),
    ]  # fmt: skip


def _of_models(work: Path) -> list[Written]:
    from satunet.jobs.files import read_json
    from satunet.jobs.records import to_plain
    from satunet.models.checkpoints import hash_weights, load_checkpoint, network_weights
    from satunet.models.folder import ModelFolder
    from satunet.models.trained_scans import TrainedScans
    from satunet.text import TextBank

    model = work / "exported"
    result = next(iter(sorted((work / "results").glob("*/*/fold_0")))).parent

    def whole() -> Any:
        loaded = ModelFolder.load(model)
        return loaded.identity, to_plain(loaded.space), loaded.card

    def trained() -> Any:
        return sorted(TrainedScans.load(model / "trained_scans.json").names)

    def checkpoint(file: Path) -> Callable[[], Any]:
        return lambda: hash_weights(network_weights(load_checkpoint(file), source=file))

    names = ("model.json", "plans.json", "label_space.json", "text_bank.safetensors", "weights.safetensors")
    bank = result / "text_bank.safetensors"
    return [
        *(Written(kind=f"model, {name}", file=model / name, read=whole) for name in names),
        Written(kind="model, trained_scans.json", file=model / "trained_scans.json", read=trained),
        *(
            Written(kind=f"training, {file.name}", file=file, read=checkpoint(file))
            for file in sorted((result / "fold_0").glob("checkpoint_*.pth"))
        ),
        Written(kind="training, text bank", file=bank, read=lambda: TextBank.load(bank).digest),
        Written(kind="training, split.json", file=result / "fold_0" / "split.json",
                read=lambda: _named(read_json, result / "fold_0" / "split.json")),
        Written(kind="training, training_config.json", file=result / "fold_0" / "training_config.json",
                read=lambda: _named(read_json, result / "fold_0" / "training_config.json")),
    ]  # fmt: skip


def _of_results(work: Path) -> list[Written]:
    from satunet.evaluation.scoring.scores import Evaluation
    from satunet.images.image import read_image, read_label_map
    from satunet.jobs.files import read_json

    def scores() -> Any:
        found = Evaluation.load(work / "scores")
        return repr(found.rows), found.classes, found.cases, found.failures, found.rules

    def label_map(file: Path) -> Callable[[], Any]:
        return lambda: read_label_map(file).array.tobytes()

    out = work / "out" / "case_02"
    mask, legend = out / "liver.nii.gz", work / "maps" / "case_02.json"
    runs = next(iter(sorted((work / "bench").rglob("runs.json"))))
    probability = out / "liver_probability.nii.gz"
    manifests = [("mask, manifest", out / "manifest.json"), ("label map, legend", legend),
                 ("benchmark, runs", runs), ("benchmark, tables", work / "bench" / "benchmark.json")]  # fmt: skip
    return [
        Written(kind="mask", file=mask, read=label_map(mask)),
        Written(kind="label map", file=work / "maps" / "case_02.nii.gz", read=label_map(work / "maps/case_02.nii.gz")),
        Written(kind="probability", file=probability, read=lambda: read_image(probability).array.tobytes()),
        Written(kind="scores, summary.json", file=work / "scores" / "summary.json", read=scores),
        Written(kind="scores, per_case.csv", file=work / "scores" / "per_case.csv", read=scores),
        *(Written(kind=kind, file=file, read=functools.partial(_named, read_json, file)) for kind, file in manifests),
    ]


def _named(read: Callable[[Path], Any], file: Path) -> Any:
    """Readers turn ``ValueError``, whose text names the file, into errors of their own."""
    from satunet.errors import UserError
    from satunet.jobs.files import digest_of

    try:
        content = read(file)
    except ValueError as error:
        raise UserError(str(error)) from error
    # A bit of the digest's own key leaves it as a key that nobody asks for; nothing else is changed.
    digests = (
        [k for k, v in content.items() if isinstance(v, str) and len(v) == 64] if isinstance(content, dict) else []
    )
    for key in digests:
        rest = {k: v for k, v in content.items() if k != key}
        if digest_of(rest) == content[key]:
            return rest
    return content


def _child(world: Path, seed: int, flips: int, every: str, first: int, end: int) -> None:
    set_environment(world)
    known = written(world)
    if every:  # one after the other, not drawn
        known = _of_kinds(known, every.split(";"))
        places = [(each, bit) for each in known for bit in range(8 * each.file.stat().st_size)]
    sound = {each.file: each.file.read_bytes() for each in known}
    said = {each.kind: repr(each.read()) for each in known}
    if first < flips:
        limit_memory()
    logging.disable(logging.CRITICAL)
    for n in range(first, end):
        rng = random.Random(f"{seed}-{n}")
        if n >= flips:
            _repair(n, world, rng)
            continue
        each, bit = places[n] if every else (known[n % len(known)], None)
        way = _flip(each.file, rng, bit)
        say(n, each.kind, way, functools.partial(_outcome, each, said[each.kind]))
        each.file.write_bytes(sound[each.file])


def _flip(file: Path, rng: random.Random, place: int | None = None) -> str:
    content = bytearray(file.read_bytes())
    at, bit = divmod(place, 8) if place is not None else (rng.randrange(len(content)), rng.randrange(8))
    content[at] ^= 1 << bit
    file.write_bytes(content)
    return f"bit {bit} of byte {at}"


def _outcome(each: Written, said: str) -> tuple[str, str]:
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            found = repr(each.read())
    except BaseException as error:
        outcome, told = refusal(error, (each.file.name, str(each.file.parent)))
        return ("found" if outcome == "refused" else outcome), told
    if found == said:
        return "harmless", ""
    return ("missed" if each.covered else "not covered"), ""


def _repair(n: int, world: Path, rng: random.Random) -> None:
    """Damage a file that a command made, run the command again, and compare all that it reads then."""
    from satunet.cli import run

    store, out = world / "preprocessed" / STORE, world / "out" / "case_02"
    names = sorted(store.glob("*__*.*")) if n % 2 else sorted(out.glob("*.*"))
    command = next(s for s in stages(world) if s.name == ("preprocess" if n % 2 else "predict"))
    of_time = command.name == "preprocess" and n % 4 == 1
    file = rng.choice(names)
    before = {path: _said(path) for path in names}
    status = file.stat()
    way = f"{_flip(file, rng)} of {file.name}"
    if of_time and file.suffix != ".json":  # as a disk loses a bit: only --verify, which reads all, can tell
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
        way += ", its time kept"

    def attempt() -> tuple[str, str]:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            if of_time:
                run((*command.arguments, "--verify"))
            code = run(command.arguments)
        other = [path.name for path, content in before.items() if _said(path) != content]
        if code != 0 or other:
            return "not repaired", f"code {code}, {', '.join(other)} differ"
        return "repaired", ""

    say(n, f"made again by {command.name}", way, attempt)


def _said(file: Path) -> Any:
    """What a file says, without times."""
    from satunet.preprocessing.store.arrays import open_array

    return open_array(file)[:].tobytes() if file.suffix == ".b2nd" else digest(file)


def main() -> int:
    """Run the drill from the command line."""
    if sys.argv[1:2] == ["--child"]:
        _child(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5], int(sys.argv[6]), int(sys.argv[7]))
        return 0
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--flips", type=int, default=600)
    parser.add_argument("--repairs", type=int, default=8)
    parser.add_argument("--every", nargs="+", metavar="KIND", help="instead, every bit of files of these kinds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--world", type=Path, help="an example that was made before, which is damaged")
    parser.add_argument("--record", action="store_true", help="put the figures into benchmarks/results/drills.txt")
    options = parser.parse_args()
    begin = time.monotonic()
    if options.every:
        figures = every_bit(options.every, options.world)
        title, what = "Every bit of small files", f"{sum(figures.counts.values())} flips"
    else:
        figures = drill(options.flips, options.repairs, options.seed, options.world)
        title, what = "Flipped bits", f"{options.flips} flips and {options.repairs} repairs, seed {options.seed}"
    for n, what in sorted(figures.bad.items())[:100]:
        print(f"  flip {n}: {what}")
    return finish(what, begin, figures.lines(), bad=bool(figures.bad), title=title if options.record else None)


if __name__ == "__main__":
    sys.exit(main())
