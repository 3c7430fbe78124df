"""Ways to damage bytes, by a generator that a seed fixes."""

from __future__ import annotations

import random
import re

_NUMBERS = [
    b"-1",
    b"0",
    b"99999999",
    b"nan",
    b"1e308",
    b"-1e308",
    b"1e-300",
    b"4294967296",
    b"18446744073709551616",
    b"",
    b"x",
]
_BYTES = [0, 1, 255, 127, 128, 48, 57, 45]
WAYS = (
    "bit", "bit", "bits", "byte", "bytes", "cut", "head", "head", "insert", "delete", "zero", "number", "number",
    "line", "swap", "grow",
)  # fmt: skip


def mutate(content: bytes, header: int, rng: random.Random) -> tuple[str, bytes]:
    """Damage some bytes.

    Args:
        content: A file.
        header: Bytes at its beginning that are hit more often.
        rng: Decides.

    Returns:
        What was done, and the damaged bytes.
    """
    way = rng.choice(WAYS)
    b = bytearray(content)
    n = len(b)
    head = max(1, min(header, n))
    if way == "bit":
        b[rng.randrange(n)] ^= 1 << rng.randrange(8)
    elif way == "bits":
        for _ in range(rng.randint(2, 16)):
            b[rng.randrange(n)] ^= 1 << rng.randrange(8)
    elif way == "byte":
        b[rng.randrange(n)] = rng.randrange(256)
    elif way == "bytes":
        start = rng.randrange(n)
        for i in range(start, min(n, start + rng.randint(1, 16))):
            b[i] = rng.choice([*_BYTES, rng.randrange(256)])
    elif way == "cut":
        b = b[: rng.randrange(n)]
    elif way == "head":
        b[rng.randrange(head)] = rng.choice([*_BYTES, rng.randrange(256)])
    elif way == "insert":
        at = rng.randrange(n)
        b[at:at] = rng.randbytes(rng.randint(1, 8))
    elif way == "delete":
        at = rng.randrange(n)
        del b[at : at + rng.randint(1, 8)]
    elif way == "zero":
        at = rng.randrange(n)
        b[at : at + 64] = bytes(len(b[at : at + 64]))
    elif way == "grow":
        b += rng.randbytes(rng.choice([1, 8, 4096]))
    elif way == "swap":
        i, j = sorted((rng.randrange(head), rng.randrange(head)))
        width = min(rng.randint(1, 8), j - i)
        b[i : i + width], b[j : j + width] = b[j : j + width], b[i : i + width]
    else:
        b = _text(b, head, way, rng)
    return way, bytes(b)


def _text(b: bytearray, head: int, way: str, rng: random.Random) -> bytearray:
    """Damage to what can be read: a number, or a whole line."""
    pattern = rb"[-+]?\d[\d.eE+-]*" if way == "number" else rb"[^\n]*\n"
    for _ in range(rng.randint(1, 2)):
        found = list(re.finditer(pattern, bytes(b[:head])))
        if not found:
            break
        hit = rng.choice(found)
        instead = rng.choice(_NUMBERS) if way == "number" else rng.choice([b"", hit.group() * 2, b"\n", b"a: b = c\n"])
        b[hit.start() : hit.end()] = instead
    return b
