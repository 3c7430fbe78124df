"""Levels of the spine, numbers of ribs and segments of the liver, as people write them.

Each becomes one token: ``vertebra:l3``, ``disc:l4:l5``, ``rib:5``, ``segment:8``. A range becomes ``range:l1:l5`` or
``range:rib:3:5``; ``pair:l4:l5`` may mean a disc, a motion segment, or two vertebrae.
"""

from __future__ import annotations

import re

LEVELS = {"c": 7, "t": 13, "l": 6, "s": 5}
REGIONS = {"cervical": "c", "thoracic": "t", "dorsal": "t", "lumbar": "l", "sacral": "s"}
LETTERS = {**{letter: letter for letter in LEVELS}, "th": "t", "d": "t", "hwk": "c", "bwk": "t", "lwk": "l", "swk": "s"}
_ORDER = [f"{letter}{n}" for letter, most in (("c", 7), ("t", 12), ("l", 5), ("s", 1)) for n in range(1, most + 1)]
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh",
             "twelfth", "thirteenth")  # fmt: skip
_CARDINALS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_ROMAN = {
    "i": 1,
    "ii": 2,
    "iii": 3,
    "iv": 4,
    "v": 5,
    "vi": 6,
    "vii": 7,
    "viii": 8,
    "ix": 9,
    "x": 10,
    "xi": 11,
    "xii": 12,
}

_DISC = re.compile(r"\b(?:discs?|disks?|intervertebral|ivd|discus|interspace)\b")
_RIB = re.compile(r"(?<![\w:])ribs?(?![a-z:])")
_RIB_RANGE = re.compile(r"(?<![\w:.])#?(\d{1,2}) ?(?:-|to) ?#?(\d{1,2})(?![\w:.])")
_RIB_NUMBER = re.compile(r"(?<![\w:.])#?(\d{1,2})(?![\w:.])")
_LETTER = r"(?<![\w:.])(hwk|bwk|lwk|swk|th|[ctdls])[ .-]?"
_PAIR = re.compile(rf"{_LETTER}(\d{{1,2}}) ?([-/]|to|bis) ?(th|[ctdls])?[ .-]?(\d{{1,2}})(?![\w:])")
_ONE = re.compile(rf"{_LETTER}(\d{{1,2}})(?![\w:])")
_REGION = "|".join(REGIONS)
_OF_REGION = re.compile(rf"\b({_REGION}) (?:vertebrae?|vertebral|vertebra level|spine) ?#?(\d{{1,2}})(?![\w:])")
_REGION_NUMBER = re.compile(rf"\b({_REGION}) (\d{{1,2}})(?![\w:])")
_ORDINAL_OF_REGION = re.compile(rf"#(\d{{1,2}}) ({_REGION}) vertebrae?\b")
_TWO = re.compile(r"vertebra:([a-z]\d+) ?(?:and|/|-|,)? ?(?:vertebra:([a-z]\d+)|(?:the )?(sacrum))")
_CARDINAL = re.compile(rf"\b(vertebrae?|ribs?|segments?|{_REGION}) ({'|'.join(_CARDINALS)})\b")
_SEGMENT = re.compile(r"\bsegments? ([ivx]{1,4}|\d)([ab])?(?![\w:])")


def mark_levels(text: str) -> str:
    """Replace levels by tokens.

    Args:
        text: Lower-case text without brackets, with single spaces between words.
    """
    text = re.sub(r"\b(\d{1,2})(?:st|nd|rd|th)\b", r"#\1", text)
    text = re.sub(r"\b(" + "|".join(_ORDINALS) + r")\b", lambda m: f"#{_ORDINALS.index(m[1]) + 1}", text)
    text = re.sub(r"(?<=\d) (?:through|thru|until|up to) (?=\S*\d)", " to ", text)
    text = _CARDINAL.sub(lambda m: f"{m[1]} {_CARDINALS.index(m[2]) + 1}", text)
    if _RIB.search(text):
        return _ribs(text)
    if re.search(r"\b(?:liver|hepatic|couinaud)\b", text):
        text = _SEGMENT.sub(_segment, text)
    return _spine(text)


def vertebrae_between(first: str, last: str) -> tuple[str, ...]:
    """Levels from the first to the last, both included; empty if they are unknown or in the wrong order."""
    if first not in _ORDER or last not in _ORDER or _ORDER.index(first) > _ORDER.index(last):
        return ()
    return tuple(_ORDER[_ORDER.index(first) : _ORDER.index(last) + 1])


def region_of(level: str) -> str:
    """Region of a level: ``"lumbar"`` for ``"l3"``."""
    return next(region for region, letter in REGIONS.items() if letter == level[0])


def _segment(match: re.Match[str]) -> str:
    number = _ROMAN.get(match[1]) or (int(match[1]) if match[1].isdigit() else 0)
    return f"segment:{number}{match[2] or ''}" if 1 <= number <= 8 else match[0]


def _ribs(text: str) -> str:
    text = re.sub(r"\b(ribs?)(?=\d)", r"\1 ", text)
    text = re.sub(r"\b(ribs? (?:left |right )?)([ivx]{1,4})\b", lambda m: m[1] + str(_ROMAN.get(m[2], m[2])), text)

    def numbered(match: re.Match[str]) -> str:
        return f"rib:{int(match[1])}" if 1 <= int(match[1]) <= 12 else f"rib {match[1]}"

    def ranged(match: re.Match[str]) -> str:
        first, last = int(match[1]), int(match[2])
        return f"range:rib:{first}:{last}" if 1 <= first < last <= 12 else match[0]

    marked = _RIB_RANGE.sub(ranged, text)
    if marked == text:
        marked = _RIB_NUMBER.sub(numbered, text)
    return " ".join(_RIB.sub(" ", marked).split()) if re.search(r"rib:\d", marked) else text


def _spine(text: str) -> str:
    disc = _DISC.search(text) is not None
    vertebra = "vertebra" in text

    def level(letter: str, number: str) -> str | None:
        letter = LETTERS[letter]
        return f"{letter}{int(number)}" if 1 <= int(number) <= LEVELS[letter] else None

    def pair(match: re.Match[str]) -> str:
        first, last = level(match[1], match[2]), level(match[4] or match[1], match[5])
        if first is None or last is None or (match[1] == "d" and not vertebra):
            return match[0]
        if disc:
            return f"disc:{first}:{last}"
        close = len(vertebrae_between(first, last)) <= 2 or match[3] == "/"
        return f"pair:{first}:{last}" if close and not vertebra else f"range:{first}:{last}"

    def one(match: re.Match[str]) -> str:
        found = level(match[1], match[2])
        return match[0] if found is None or (match[1] == "d" and not vertebra) else f"vertebra:{found}"

    text = _PAIR.sub(pair, text)
    for pattern, letter, number in ((_OF_REGION, 1, 2), (_REGION_NUMBER, 1, 2), (_ORDINAL_OF_REGION, 2, 1)):
        text = pattern.sub(lambda m, a=letter, b=number: _named(m, a, b), text)  # type: ignore[misc]
    text = _ONE.sub(one, text)
    text = re.sub(r"(vertebra:\w+)(?: \1\b)+", r"\1", text)
    if disc:
        text = _TWO.sub(lambda m: f"disc:{m[1]}:{'s1' if m[3] else m[2]}", text)
        text = text.replace("lumbosacral", "disc:l5:s1")
    return text


def _named(match: re.Match[str], region: int, number: int) -> str:
    letter = REGIONS[match[region]]
    right = 1 <= int(match[number]) <= LEVELS[letter]
    return f"vertebra:{letter}{int(match[number])}" if right else match[0]
