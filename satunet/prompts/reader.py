"""The meaning of a user's words to a model, decided here and nowhere else.

A prompt is parsed into side, level and words (:mod:`satunet.prompts.parsing`). Then it is checked, in this order, and
the first success decides, whether

1. its side and words are those of a class or synonym, in any order and form: "tumour of the kidney";
2. it stands for several classes that the model knows: "both kidneys", "L1-L5", "abdominal organs";
3. it is a list: "liver and left kidney";
4. it is another name of a class in a knowledge tree that the user has built;
5. it is a word in another language: nothing is segmented, but the class is suggested;
6. steps 1 to 3 succeed after misspellings are corrected (:mod:`satunet.prompts.spelling`);
7. it is a class with a description that does not change its meaning: "large liver tumor" is similar to a class.

Every word counts: "bladder wall" is not the bladder, "no pleural effusion" is not an effusion, and "liver cyst" is not
a cyst elsewhere, because a word remains that no class has. The refusal says what kind of word it is (a negation, a
device, a part, …). The text encoder is used only for prompts without any known word, among the classes that their side
allows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property

from satunet.knowledge.names import load_names
from satunet.knowledge.tree import SAME, KnowledgeTree, name_key
from satunet.labels import LabelSpace, normalize_name
from satunet.prompts.conjunction import read_list
from satunet.prompts.index import ClassIndex
from satunet.prompts.levels import vertebrae_between
from satunet.prompts.matching import Encoder, PromptMatch, Reading, Status
from satunet.prompts.nearness import ClassVectors, allowed_classes, nearest_by_spelling
from satunet.prompts.parsing import SEPARATORS, Clause, clean_text, mark_tokens, read_clause, read_name, read_tokens
from satunet.prompts.spelling import Speller, anatomy_words, common_words
from satunet.prompts.vocabulary import load_vocabulary

SIMILAR_FROM = 0.85
"""Cosine similarity from which a text without any known word is taken for a class. Measured on the development half of
``tests/prompts/labelled_prompts.tsv`` with both shipped encoders: wrong structures reach 0.81 ("endocardium" to
"myocardium", "bladderwrack" to "urinary bladder"), and correct ones are no higher ("clavical" 0.77 and 0.84)."""
CLASS_PREFIX = "class:"
_NO_STRUCTURE = {"negation", "uncertainty", "relation", "measurement", "device"}
_REFUSED = {
    "negation": "{word!r} says what is not there, or not wanted",
    "uncertainty": "{word!r} leaves open what to segment",
    "relation": "{word!r} says where something is, not what it is",
    "measurement": "{word!r} makes it a measurement or a figure of speech, not a structure",
    "device": "{word!r} is a device or a procedure, and the model has no class for it",
    "finding": "{word!r} is a finding, and the model has no class for it",
    "part": "{word!r} makes it a part of a structure, and the model has no class for it",
    "other": "the model has no class for {word!r}",
}


class PromptReader:
    """Reads prompts for one label space.

    Args:
        space: Label space of the model.
        tree: Knowledge tree; if not given, the tree at the default path, if there is one.
    """

    def __init__(self, space: LabelSpace, tree: KnowledgeTree | None = None) -> None:
        self.space = space
        self._tree = tree
        self._names = load_names()
        self._asked: tuple[object, ClassVectors] | None = None
        self._index = ClassIndex(space)
        named = [(read_name(word), group) for word, group in self._names.group_of.items()]
        self._groups = {clause.key: (group, clause.plural) for clause, group in named}

    def read(self, prompt: str, encoder: Encoder | Callable[[], Encoder] | None = None) -> list[PromptMatch]:
        """The meaning of a prompt as matches, one per class that it stands for; see :meth:`interpret`."""
        return self.interpret(prompt, encoder).matches()

    def interpret(self, prompt: str, encoder: Encoder | Callable[[], Encoder] | None = None) -> Reading:
        """The meaning of a prompt.

        Args:
            prompt: Words of the user.
            encoder: Text encoder for prompts that nothing else explains, or a function that loads it; without an
                encoder, such prompts are ``"unknown"``.
        """
        tokens = read_tokens(prompt)
        found = self._exactly(prompt, tokens)
        if found is not None:
            return found
        clause = read_clause(tokens)
        if "?" in prompt and len(tokens) > 0:
            return self._unknown(prompt, clause, _REFUSED["uncertainty"].format(word="?"))
        found = self._by_words(prompt, tokens) or self._by_tree(prompt, clause) or self._foreign(prompt)
        if found is not None:
            return found
        found = self._corrected(prompt)
        if found is not None:
            return found
        likeliest = self._speller.correct(clean_text(prompt))[:1]
        spelled = read_clause(mark_tokens(likeliest[0])) if likeliest else clause
        return (
            self._described(prompt, spelled)
            or self._refused(prompt, clause)
            or self._refused(prompt, spelled)
            or self._near(prompt, spelled, encoder)
        )

    # ---- by words -----------------------------------------------------------------------------------------------

    def _exactly(self, prompt: str, tokens: Sequence[str]) -> Reading | None:
        """The reading of a prompt that is exactly the name of a class."""
        if "?" in prompt or set(tokens) & {*SEPARATORS, "and"}:
            name = prompt if prompt in self.space else ""  # not normalised, because separators mean more than spaces
        else:
            name = normalize_name(prompt).canonical
        if name not in self.space or read_clause(tokens).side not in (None, read_name(name).side):
            return None
        return Reading(prompt=prompt, status="known", classes=(name,), similarity=1.0)

    def _by_words(self, prompt: str, tokens: Sequence[str]) -> Reading | None:
        one = self._one(prompt, tokens)
        several = read_list(tokens, self._classes_of, self._index)
        if one is not None and several is not None and several.classes and set(one.classes) != set(several.classes):
            both = " and ".join(map(repr, several.classes))
            reason = f"it may mean {one.classes[0]!r}, or {both}: ask for each separately"
            return self._unknown(prompt, read_clause(tokens), reason)
        if one is not None:
            return one
        if several is None:
            return None
        if several.reason:
            return self._unknown(prompt, read_clause(tokens), several.reason)
        status: Status = "several" if len(several.classes) > 1 else "known"
        return Reading(prompt=prompt, status=status, classes=several.classes, similarity=1.0,
                       reason=f"{prompt!r} is {' and '.join(map(repr, several.classes))}")  # fmt: skip

    def _one(self, prompt: str, tokens: Sequence[str]) -> Reading | None:
        clause = read_clause(tokens)
        classes = self._classes_of(clause)
        if not classes:
            twin = self._index.find_twin(clause, tokens)
            classes = () if twin is None else (twin,)
        if not classes:
            return None
        said = " and ".join(map(repr, classes))
        return Reading(prompt=prompt, status="several" if len(classes) > 1 else "known", classes=classes,
                       similarity=1.0, reason=f"{prompt!r} is {said}")  # fmt: skip

    def _classes_of(self, clause: Clause) -> tuple[str, ...]:
        """Classes that one clause names or stands for; empty if none."""
        if clause.side == "mixed" or not clause.words:
            return ()
        if clause.side == "both":
            pair = self._index.sides(clause)
            whole = None if pair else self._index.find_clause(replace(clause, side=None))
            return pair or ((whole,) if whole is not None else ())
        found = self._index.find_clause(clause)
        if found is not None:
            return (found,)
        if any(w.startswith("range:") for w in clause.words):
            return self._range(clause)
        name, plural = self._groups.get(clause.key, ("", False))
        if name:  # "abdominal organ", in the singular, does not mean all of them
            return self._members(name) if clause.plural or not plural else ()
        if clause.side is not None:
            return ()
        pair = self._index.sides(clause)
        # The left and right kidney make up "kidney"; the left and right atrium are different structures.
        return pair if all(self.space.info(name).side is not None for name in pair) else ()

    def _range(self, clause: Clause) -> tuple[str, ...]:
        if len(clause.words) != 1:
            return ()
        parts = clause.words[0].split(":")
        if parts[1] == "rib":
            keys = [f"rib:{n}" for n in range(int(parts[2]), int(parts[3]) + 1)]
        else:
            keys = [f"vertebra:{level}" for level in vertebrae_between(parts[1], parts[2])]
        found = [self._index.find((clause.side, frozenset((key,)))) for key in keys]
        return tuple(name for name in found if name is not None) if all(found) else ()

    def _members(self, group: str) -> tuple[str, ...]:
        """Classes of a group that the model knows."""
        found: list[str] = []
        for name in self._names.groups[group]:
            clause = read_name(name)
            known = self._index.find_clause(clause)
            found += [known] if known is not None else self._index.sides(clause)
        return tuple(dict.fromkeys(found))

    def _corrected(self, prompt: str) -> Reading | None:
        """The meaning of a prompt with its misspelled words corrected; ``None`` if no correction names a class."""
        sides = load_vocabulary().side_of
        right = sum(self._index.has_word(w) and w not in sides for w in read_tokens(prompt))
        for boldness in range(min(right, 2) + 1):
            found: dict[tuple[str, ...], Reading] = {}
            for text in self._speller.correct(clean_text(prompt), boldness=boldness):
                tokens = mark_tokens(text)
                reading = self._exactly(text, tokens) or self._by_words(text, tokens)
                if reading is not None and reading.classes:
                    found.setdefault(reading.classes, reading)
            if len(found) > 1:
                choices = " or ".join(repr(reading.prompt) for reading in found.values())
                return self._unknown(prompt, read_clause(read_tokens(prompt)), f"it may be a misspelling of {choices}")
            for classes, reading in found.items():
                meant = " and ".join(map(repr, classes))
                said = f"{prompt!r} is read as {reading.prompt!r}"
                reason = said if meant == repr(reading.prompt) else f"{said}, {meant}"
                return replace(reading, prompt=prompt, reason=reason)
        return None

    @cached_property
    def _speller(self) -> Speller:
        return Speller({*self._index.words, *self._index.spellings})

    def _described(self, prompt: str, clause: Clause) -> Reading | None:
        """The reading of a class with words that describe it without changing its meaning."""
        described = clause.kinds.get("descriptor", ())
        if set(clause.kinds) - {"descriptor", "part", "finding"} or not (described or clause.sized):
            return None
        lemmas = {load_vocabulary().lemma(w) for w in described}
        rest = replace(clause, words=tuple(w for w in clause.words if w not in lemmas))
        classes = self._classes_of(rest)
        if len(classes) != 1:
            return None
        words = ", ".join(map(repr, described)) or "its size"
        return Reading(prompt=prompt, status="similar", classes=classes, similarity=None, nearest=((classes[0], 1.0),),
                       reason=f"{classes[0]!r}, without regard to {words}")  # fmt: skip

    # ---- other sources ------------------------------------------------------------------------------------------

    def _by_tree(self, prompt: str, clause: Clause) -> Reading | None:
        """The reading of a prompt that is another name of a class in the tree, with the prompt's own side."""
        from satunet.knowledge.file import default_tree

        tree = self._tree or default_tree()
        if tree is None or clause.side in ("both", "mixed") or _NO_STRUCTURE & set(clause.kinds):
            return None
        sides = load_vocabulary().side_of
        base = " ".join(w for w in name_key(prompt).split() if sides.get(w) is None)
        front = f"{clause.side} " if clause.side else ""
        for words, prefix in ((prompt, ""), (base, front)):
            for term in tree.find(words):
                same = [term.id, *tree.tails(term.id, (SAME,)), *tree.heads(term.id, (SAME,))]
                for name in (i.removeprefix(CLASS_PREFIX) for i in same if i.startswith(CLASS_PREFIX)):
                    found = self._index.find_clause(read_name(f"{prefix}{name}"))
                    if found is not None:
                        return Reading(prompt=prompt, status="known", classes=(found,), similarity=1.0,
                                       reason=f"{prompt!r} is {found!r} ({term.id})")  # fmt: skip
        return None

    def _foreign(self, prompt: str) -> Reading | None:
        """The reading of a word in another language: nothing is segmented, but the class is suggested."""
        words = name_key(prompt).split()
        side_of = load_vocabulary().side_of
        sides = {side_of[w] for w in words if w in side_of}
        meaning = self._names.meaning_of.get(" ".join(w for w in words if w not in side_of))
        if meaning is None or len(sides) > 1:
            return None
        name, language = meaning
        side = next(iter(sides), None)
        wanted = replace(read_name(name), side=side)
        known = self._classes_of(wanted)
        if not known:
            asked = f"{side} {name}" if side else name
            note = f"{prompt!r} is {language} for {asked!r}, which the model does not know"
            return Reading(prompt=prompt, status="unknown", reason=note)
        note = f"{prompt!r} is {language}; ask for {' and '.join(map(repr, known))}"
        return Reading(prompt=prompt, status="unknown", nearest=tuple((n, 1.0) for n in known), reason=note)

    # ---- prompts that nothing explains --------------------------------------------------------------------------

    def _refused(self, prompt: str, clause: Clause) -> Reading | None:
        """The refusal of a prompt with known words, if no class has all of its words."""
        for kind, reason in _REFUSED.items():
            if kind in clause.kinds:
                return self._unknown(prompt, clause, reason.format(word=clause.kinds[kind][0]))
        if not clause.words:
            return self._unknown(prompt, clause, "it does not name a structure")
        known = [w for w in clause.words if w in self._index.words or ":" in w]
        if clause.side == "mixed" or known:
            what = "it names both sides of one structure" if clause.side == "mixed" else "no class has all of its words"
            return self._unknown(prompt, clause, what)
        return None

    def _near(self, prompt: str, clause: Clause, encoder: Encoder | Callable[[], Encoder] | None) -> Reading:
        names = allowed_classes(clause, self.space)
        if encoder is None or not names:
            return self._unknown(prompt, clause, "")
        if not self._may_be_a_structure(clause):
            return self._unknown(prompt, clause, "no class has this name")
        nearest = self._vectors(encoder).nearest(" ".join(prompt.lower().split()), names)
        best = nearest[0][1]
        if best >= SIMILAR_FROM:
            return Reading(prompt=prompt, status="similar", classes=(nearest[0][0],), similarity=best, nearest=nearest,
                           reason=f"close to {nearest[0][0]!r} ({best:.2f})")  # fmt: skip
        return Reading(prompt=prompt, status="unknown", similarity=best, nearest=nearest,
                       reason="no class of the model is close to it")  # fmt: skip

    def _vectors(self, given: Encoder | Callable[[], Encoder]) -> ClassVectors:
        """Embeddings of the classes, kept for the next prompt with the same encoder."""
        before = self._asked
        if before is not None and before[0] == given:
            return before[1]
        encoder: Encoder = given() if callable(given) else given
        vectors = (
            before[1] if before is not None and before[1].encoder is encoder else ClassVectors(self.space, encoder)
        )
        self._asked = (given, vectors)
        return vectors

    def _may_be_a_structure(self, clause: Clause) -> bool:
        """Whether to use the encoder: not for codes, common words, and words that begin with the word of a class.

        An encoder reads pieces of words: to it, "cheeky" and "bladderwrack" are a cheek and a bladder.
        """
        if any(len(w) < 4 or not w.isalpha() for w in clause.words):
            return False
        made = any(w[:n] in self._index.words for w in clause.words for n in range(4, len(w)))
        one = len(clause.words) == 1 and bool({*clause.words} & (common_words() | anatomy_words()))
        return not made and not one

    def _unknown(self, prompt: str, clause: Clause, reason: str) -> Reading:
        nearest = nearest_by_spelling(prompt, clause, self.space)
        return Reading(prompt=prompt, status="unknown", nearest=nearest, reason=reason)


def read_prompts(
    prompts: Sequence[str], space: LabelSpace, encoder: Encoder | None = None, tree: KnowledgeTree | None = None
) -> list[PromptMatch]:
    """Matches of all prompts, in order; a prompt that stands for several classes gives one match per class."""
    reader = PromptReader(space, tree)
    return [match for prompt in prompts for match in reader.read(prompt, encoder)]
