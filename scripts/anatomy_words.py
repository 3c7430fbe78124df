"""Write ``satunet/prompts/anatomy_words.txt``: words that must not be taken for a misspelled name of a class.

Needs the extra ``knowledge``. Words are those of names and synonyms in UBERON and MONDO that lie within two edits of a
word that classes of SAT-DS are called by, and are not one of these. A word of one or two names may be a slip of theirs.
"""

from __future__ import annotations

import re
from pathlib import Path

from rapidfuzz.distance import OSA

from satunet.knowledge.sources.ontologies import import_ontology
from satunet.labels import catalogue_space
from satunet.prompts.index import ClassIndex
from satunet.prompts.spelling import Speller, common_words

OUTPUT = Path(__file__).parents[1] / "satunet" / "prompts" / "anatomy_words.txt"
HEADER = """\
# Words of anatomy and disease that are within two edits of words that classes are called by, and are other words.
# From names in UBERON (CC-BY-3.0) and MONDO (CC-BY-4.0); written by scripts/anatomy_words.py.
"""


def main() -> None:
    """Write the file."""
    index = ClassIndex(catalogue_space())
    speller = Speller({*index.words, *index.spellings})
    targets = sorted(w for w in {*index.words, *index.spellings} if w.isalpha() and w.isascii() and len(w) >= 4)
    found: dict[str, int] = {}
    for source in ("UBERON", "MONDO"):
        for term, _ in import_ontology(source).terms:
            for name in (term.name, *term.synonyms):
                for word in re.findall(r"[a-z]{4,}", name.lower()):
                    found[word] = found.get(word, 0) + 1
    near = [w for w in sorted(found)
            if found[w] >= 3 and not speller.known(w) and w not in common_words() and any(w[0] in t[:2] and OSA.distance(w, t, score_cutoff=2) <= 2 for t in targets)]  # fmt: skip
    lines = [" ".join(near[i : i + 12]) for i in range(0, len(near), 12)]
    OUTPUT.write_text(HEADER + "\n".join(lines) + "\n", encoding="utf-8")
    print(f"{OUTPUT}: {len(near)} of {len(found)} words")


if __name__ == "__main__":
    main()
