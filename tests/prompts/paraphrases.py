"""Ways to say a class: wordings, cases, joints and misspellings, from its name alone.

What they mean is known by construction: the class they were made of. Nothing of the reader under test is used.
"""

from __future__ import annotations

import random
import string
from collections.abc import Iterator, Sequence

from satunet.labels import ClassInfo

_FRAMES = (
    "{}", "the {}", "{}.", "segment the {}", "please segment the {}", "mask of the {}", "segmentation of the {}",
    "contour the {}", "show me the {}", "normal {}", " {} ", "({})",
)  # fmt: skip


def paraphrases(name: str, side: str | None, base: str, rng: random.Random) -> Iterator[str]:
    """Wordings of a class, in endless order.

    Args:
        name: The class.
        side: Its side, if a name has one in front.
        base: The name without it.
        rng: Where choices come from.
    """
    while True:
        words = name
        if side is not None:
            short = {"left": ("lt", "L", "Lt."), "right": ("rt", "R", "Rt.")}[side]
            words = rng.choice((
                name, f"{base} {side}", f"{base}, {side}", f"{base} ({side})", f"{side}-sided {base}",
                f"{base} on the {side} side", f"{base} of the {side} side", f"{rng.choice(short)} {base}",
                f"{base} {short[1]}", f"{base} {short[0]}",
            ))  # fmt: skip
        words = rng.choice(_FRAMES).format(words)
        case = rng.choice((str, str, str.upper, str.lower, str.title, str.capitalize))
        joint = rng.choice((" ", " ", " ", "_", "-", "  "))
        yield case(words).strip().replace(" ", joint)


def misspelled(text: str, rng: random.Random) -> str:
    """A text with one letter more, less, another, doubled, or two letters swapped; digits and ends stay."""
    places = [i for i in range(1, len(text) - 1) if text[i].isalpha() and text[i - 1].isalpha()]
    if not places:
        return text
    i = rng.choice(places)
    letter = rng.choice(string.ascii_lowercase)
    kind = rng.choice(("more", "less", "other", "double", "swap"))
    if kind == "more":
        return text[:i] + letter + text[i:]
    if kind == "less":
        return text[:i] + text[i + 1 :]
    if kind == "other":
        return text[:i] + letter + text[i + 1 :]
    if kind == "double":
        return text[:i] + text[i] + text[i:]
    return text[:i] + text[i + 1] + text[i] + text[i + 2 :] if text[i + 1].isalpha() else text


def generated(classes: Sequence[ClassInfo], count: int, rng: random.Random) -> Iterator[tuple[str, str, bool]]:
    """Different prompts of classes in turn, every second one misspelled.

    Yields:
        Prompt, class that it is of, and whether it was misspelled.
    """
    wordings = [
        paraphrases(c.name, c.side if c.side and c.name.startswith(f"{c.side} ") else None, c.base, rng)
        for c in classes
    ]
    seen: set[str] = set()
    number = 0
    while len(seen) < count:
        which, number = number % len(classes), number + 1
        prompt, spelled = next(wordings[which]), number // len(classes) % 2 == 1
        prompt = misspelled(prompt, rng) if spelled else prompt
        if prompt not in seen:
            seen.add(prompt)
            yield prompt, classes[which].name, spelled
