"""One canonical name for the many spellings of a structure.

A canonical name is lower-case American English with the side in front: ``Hippocampus_L``, ``Left Hippocampus``,
``hippocampus (left)`` and ``hippocampus on the left side`` are all ``left hippocampus``. The rules are:

1. words: underscores, hyphens, brackets and CamelCase separate words, and case is dropped;
2. synonymous words and phrases get one spelling (tables below);
3. a side anywhere in the name moves to the front; a lone ``l`` or ``r`` counts as a side only at the beginning or end,
   so that a letter within a name, or in the vertebra ``L1``, does not;
4. where the side is part of a structure's identity ("left atrium", "right ventricle"), it stays in the base name: the
   two atria are different structures, not two sides of one structure, and are never united;
5. a structure in SAT-DS gets its name there ("urinary bladder", "cervical vertebrae 1 (c1)"), so that label spaces and
   results can be compared with the published ones.

Rejected: fuzzy matching while merging datasets. A wrong merge trains two structures as one. Names that the rules do not
match stay separate; prompts may be matched more freely (:mod:`satunet.prompts.matching`).
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

from satunet.datasets.catalogue import load_catalogue

SIDES = ("left", "right")

_SIDE_WORDS = {
    "left": "left", "lt": "left", "lh": "left", "lft": "left", "sinistra": "left", "sin": "left",
    "right": "right", "rt": "right", "rh": "right", "rgt": "right", "dextra": "right", "dex": "right",
}  # fmt: skip
_LETTER_SIDES = {"l": "left", "r": "right"}

_WORDS = {
    # abbreviations that atlases use
    "inf": "inferior", "sup": "superior", "lat": "lateral", "med": "medial", "ant": "anterior", "post": "posterior",
    "mid": "middle", "vent": "ventricle", "supp": "supplementary", "orb": "orbital", "oper": "opercular",
    "tri": "triangular", "triangul": "triangular", "wm": "white matter", "gm": "grey matter", "cerebelum": "cerebellum",
    "precuneous": "precuneus", "ventrical": "ventricle", "supramar": "supramarginal", "parahip": "parahippocampal", "plan": "planum",
    "tempo": "temporale", "cingul": "cingulate", "fusifor": "fusiform", "3rd": "third", "4th": "fourth",
    "ventraldc": "ventral diencephalon", "dc": "diencephalon", "cc": "corpus callosum", "ofc": "orbitofrontal cortex",
    "ivc": "inferior vena cava", "svc": "superior vena cava", "lad": "left anterior descending artery",
    # spelling
    "tumour": "tumor", "tumours": "tumor", "tumors": "tumor", "oesophagus": "esophagus", "oedema": "edema",
    "gray": "grey", "haemorrhage": "hemorrhage", "haematoma": "hematoma", "ischaemic": "ischemic",
    "peritumoural": "peritumoral", "centre": "center", "colour": "color",
    # plurals of structures that label maps contain as one structure
    "hippocampi": "hippocampus", "amygdalae": "amygdala", "thalami": "thalamus", "kidneys": "kidney", "lungs": "lung",
    "ventricles": "ventricle", "femora": "femur", "femurs": "femur", "eyes": "eye", "ribs": "rib", "lesions": "lesion",
    "metastases": "metastasis", "nodules": "nodule", "cysts": "cyst", "glands": "gland", "lobes": "lobe",
    "adrenals": "adrenal gland", "clavicula": "clavicle", "clavicles": "clavicle", "scapulae": "scapula", "humeri": "humerus", "putamina": "putamen", "caudates": "caudate",
}  # fmt: skip

# Words → canonical words, applied to the name without its side; longer phrases take precedence.
_PHRASES = {
    "accumbens area": "nucleus accumbens", "accumbens nucleus": "nucleus accumbens", "accumbens": "nucleus accumbens",
    "caudate nucleus": "caudate", "nucleus caudatus": "caudate", "globus pallidus": "pallidum",
    "thalamus proper": "thalamus", "brain stem": "brainstem", "inferior lateral ventricle": "inferior lateral ventricle",
    "ventral dc": "ventral diencephalon", "cerebrospinal fluid": "csf", "cerebral cortex": "cerebral cortex",
    "cerebellum cortex": "cerebellar cortex", "cerebellum exterior": "cerebellar cortex",
    "cerebellum white matter": "cerebellar white matter", "supplementary motor area": "supplementary motor cortex",
    "juxtapositional lobule cortex formerly supplementary motor cortex": "supplementary motor cortex",
    "heart myocardium": "myocardium", "gall bladder": "gallbladder", "wind pipe": "trachea", "food pipe": "esophagus",
    "uterine cervix": "cervix", "urinary bladder": "bladder", "suprarenal gland": "adrenal gland",
    "colon cancer primaries": "colon cancer", "blood pool": "blood pool", "optic chiasma": "optic chiasm", "parotid": "parotid gland", "adrenal": "adrenal gland", "lacrimal": "lacrimal gland",
    "submandibular": "submandibular gland", "upper lung lobe": "lung upper lobe", "lower lung lobe": "lung lower lobe",
    "precentral": "precentral gyrus", "postcentral": "postcentral gyrus", "lingual": "lingual gyrus",
    "fusiform": "fusiform gyrus", "angular": "angular gyrus", "supramarginal": "supramarginal gyrus",
    "supra marginal": "supramarginal gyrus", "parahippocampal": "parahippocampal gyrus",
    "para hippocampal": "parahippocampal gyrus", "insular cortex": "insula", "precuneus cortex": "precuneus",
    "middle lung lobe": "lung middle lobe", "intervertebral discs": "intervertebral disc",
}  # fmt: skip

_LONGEST_FIRST = tuple(sorted(_PHRASES.items(), key=lambda item: len(item[0]), reverse=True))

_FILLERS = {"the", "of", "in", "on", "at", "a", "an", "side", "sided"}
_WHOLE = {"whole", "entire"}
_LESION_HEADS = {"tumor", "lesion", "cancer", "carcinoma", "neoplasm", "mass", "edema"}

# Structures whose name includes a side: the left atrium is not the left one of a pair of equal atria.
_INTRINSIC = re.compile(
    r"^(?:heart )?(?:atrium|ventricle|ventricular .*|atrial appendage|heart atrium|heart ventricle|auricle heart"
    r"|ventricle cavity|ventricle myocardium|ventricle blood pool|anterior descending artery|lobe liver"
    r"|(?:lateral|medial) (?:inferior |superior )?segment liver|colon|gastric artery|gastric vein)$"
)

_LEVEL = re.compile(r"^(?:vertebrae? )?([ctls])\s?(\d{1,2})(?: vertebrae?)?$")
_LEVEL_OF_REGION = re.compile(r"^(cervical|thoracic|lumbar|sacral) vertebrae? (\d{1,2})(?: [ctls]\d{1,2})?$")
_DISC = re.compile(r"^(?:intervertebral |vertebral )?disc (?:between )?([ctl]\d{1,2}) (and )?([ctls]\d{1,2}|sacrum)$")
_REGIONS = {"c": "cervical", "t": "thoracic", "l": "lumbar", "s": "sacral"}

# Neuromorphometrics puts an abbreviation before each cortical name ("Right_ACgG_anterior_cingulate_gyrus").
_REDUNDANT_ABBREVIATION = re.compile(r"^[A-Z][A-Za-z]{0,6}[A-Z]?$")


@dataclass(frozen=True, kw_only=True)
class NormalizedName:
    """Canonical name with its components.

    Attributes:
        canonical: Canonical name, side included.
        base: Name without its side.
        side: ``"left"``, ``"right"`` or ``None``.
    """

    canonical: str
    base: str
    side: str | None


@lru_cache(maxsize=65536)
def normalize_name(text: str) -> NormalizedName:
    """The canonical form of a class name or prompt.

    Args:
        text: Name in any spelling.

    Returns:
        The canonical form; normalising it again changes nothing. An empty text gives an empty name.
    """
    side, base = _key(text)
    published = _published_names()
    whole = f"{side} {base}".strip() if side else base
    canonical = published.get(whole, whole)
    if side is None or not base or base in SIDES or _INTRINSIC.match(base):
        return NormalizedName(canonical=canonical, base=canonical, side=None)
    return NormalizedName(canonical=canonical, base=published.get(base, base), side=side)


def other_side(side: str) -> str:
    """The opposite side: ``"left"`` for ``"right"`` and vice versa."""
    return SIDES[1 - SIDES.index(side)]


@lru_cache(maxsize=1)
def _published_names() -> dict[str, str]:
    """Result of rules 1 to 4 for a name in SAT-DS → that name."""
    names = {}
    for name in load_catalogue().class_names:
        side, base = _key(name)
        names[f"{side} {base}" if side else base] = name
        if side and name.startswith(f"{side} "):  # SAT-DS names left and right, but not the structure as a whole
            names.setdefault(base, name.removeprefix(f"{side} "))
    return names


def _key(text: str) -> tuple[str | None, str]:
    """Side and base name by rules 1 to 4."""
    words, side = _take_side(_words(text))
    base = _base(words)
    # The result of one rule may be the input of another ("caudate nucleus nucleus"): repeat until nothing changes.
    while (again := _base(base.split())) != base:
        base = again
    return side, base


def _base(words: list[str]) -> str:
    words = [w for word in words for w in _WORDS.get(word, word).split()]
    # "on the left hand side" is not about the hand; "bones of the hand" is.
    words = [w for w, after in zip(words, [*words, ""][1:], strict=True) if (w, after) != ("hand", "side")]
    # The whole liver is the liver, but the whole tumor is more than the tumor: it includes edema and necrosis.
    idle = _FILLERS if _LESION_HEADS & set(words) else _FILLERS | _WHOLE
    return _vertebra(" ".join(_phrases([w for w in words if w not in idle] or words)))


def _words(text: str) -> list[str]:
    plain = unicodedata.normalize("NFKD", text)
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    plain = re.sub(r"[^\w\s]|_", " ", plain.replace("&", " and ").replace("+", " and "))
    tokens = plain.split()
    shouted = all(t.isupper() for t in tokens if t.isalpha())
    if len(tokens) >= 3 and tokens[0].lower() in SIDES and not shouted:
        # Only an abbreviation in mixed case, directly after the side, that consists of initials of the words after it.
        short, rest = tokens[1], "".join(tokens[2:]).lower()
        if _REDUNDANT_ABBREVIATION.match(short) and sum(c.isupper() for c in short) >= 1 and len(short) <= 6:
            initials = {w[0].lower() for w in tokens[2:]}
            if (
                short[0].lower() in initials
                and short.lower() not in rest[: len(short) - 1]
                and any(c.isupper() for c in short[1:])
            ) or (len(short) <= 4 and short.lower() == rest[: len(short)]):
                tokens = [tokens[0], *tokens[2:]]
    joined = " ".join(re.sub(r"(?<=[a-z]{2})(?=[A-Z][a-z])", " ", token) for token in tokens)
    words = joined.lower().split()
    if words and words[0] == "ctx":  # FreeSurfer's cortical labels: ctx_lh_…
        words = [*words[1:2], "cortex", *words[2:]] if len(words) > 1 and words[1] in _SIDE_WORDS else words
    return words


def _take_side(words: list[str]) -> tuple[list[str], str | None]:
    found = [(i, _SIDE_WORDS[w]) for i, w in enumerate(words) if w in _SIDE_WORDS]
    if not found and len(words) > 1:
        ends = [(i, _LETTER_SIDES[words[i]]) for i in (len(words) - 1, 0) if words[i] in _LETTER_SIDES]
        found = ends[:1]
    sides = {side for _, side in found}
    if len(sides) != 1:
        return words, None
    positions = {i for i, _ in found}
    return [w for i, w in enumerate(words) if i not in positions], sides.pop()


def _phrases(words: list[str]) -> list[str]:
    text = " ".join(words)
    for phrase, meaning in _LONGEST_FIRST:
        if phrase == meaning or phrase not in text:  # most do not occur, and this test is fast
            continue
        # "accumbens" becomes "nucleus accumbens" only if it is not that already; else it would grow with each pass.
        grown = phrase in meaning and _whole(meaning).search(text)
        if not grown:
            text = _whole(phrase).sub(meaning, text, count=1)
    return text.split()


@lru_cache(maxsize=1024)
def _whole(words: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\S){re.escape(words)}(?!\S)")


def _vertebra(base: str) -> str:
    match = _LEVEL.match(base)
    if match and (base.startswith("vertebra") or base.endswith(("vertebra", "vertebrae")) or match[1] in "cl"):
        return f"{_REGIONS[match[1]]} vertebrae {int(match[2])} {match[1]}{int(match[2])}"
    match = _LEVEL_OF_REGION.match(base)
    if match:
        letter = match[1][0]
        return f"{match[1]} vertebrae {int(match[2])} {letter}{int(match[2])}"
    match = _DISC.match(base)
    if match:
        below = "sacrum" if match[3] in ("sacrum", "s1") else _vertebra(f"vertebra {match[3]}")
        return f"intervertebral disc between {_vertebra(f'vertebra {match[1]}')} and {below}"
    return base
