"""What a user's words mean to a model, with knowledge: synonyms, groups, sides and other languages.

The steps, the first that finds something wins:

1. the prompt names a class, in any spelling (:func:`satunet.prompts.match_prompt`);
2. it is a synonym of one: "shoulder blade", "renal tumor", "IVC"; from our table of names, and from the knowledge tree
   if one was built;
3. it stands for several classes that the model knows: "kidneys" where only left and right are known, "abdominal organs";
   each becomes a prompt of its own;
4. it is a synonym but for a letter or two;
5. it is a word of another language: nothing is segmented, and the class is suggested;
6. the text encoder says what is near (:func:`satunet.prompts.match_prompt`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from satunet.knowledge.concepts import split_side
from satunet.knowledge.make import default_tree
from satunet.knowledge.names import load_names
from satunet.knowledge.sources.labelspace import PREFIX, import_label_space
from satunet.knowledge.tree import SAME, KnowledgeTree, name_key
from satunet.labels import LabelSpace, normalize_name
from satunet.prompts.matching import Encoder, PromptMatch, match_prompt, same_but_for_spelling


class PromptReader:
    """Understands prompts for one label space.

    Args:
        space: The classes the model knows.
        tree: Knowledge tree; the one in the default place, if one was built, if not given.
    """

    def __init__(self, space: LabelSpace, tree: KnowledgeTree | None = None) -> None:
        self.space = space
        self._tree = tree
        self._names = load_names()
        self._synonyms = _synonyms_of(space)

    def read(self, prompt: str, encoder: Encoder | None = None) -> list[PromptMatch]:
        """What a prompt means: one match, or one for each class it stands for.

        Args:
            prompt: The user's words.
            encoder: Text encoder for prompts that nothing else explains; without it they are ``"unknown"``.
        """
        plain = match_prompt(prompt, self.space)
        if plain.status == "known":
            return [plain]
        found = self._by_synonym(prompt)
        if found is not None:
            return [found]
        several = self._members(prompt)
        if several:
            return [
                PromptMatch(prompt=name, class_name=name, status="known", similarity=1.0, expanded_from=prompt)
                for name in several
            ]
        spelled = self._by_spelling(prompt)
        if spelled is not None:
            return [spelled]
        foreign = self._foreign(prompt)
        if foreign is not None:
            return [foreign]
        match = plain if encoder is None else match_prompt(prompt, self.space, encoder=encoder)
        if match.status == "unknown" and not match.nearest:
            match = replace(match, nearest=self._nearest_spelling(prompt))
        return [match]

    def _by_synonym(self, prompt: str) -> PromptMatch | None:
        for words in self._wordings(prompt):
            name = self._synonyms.get(name_key(words))
            if name is None:
                canonical = normalize_name(words).canonical
                name = canonical if canonical in self.space else self._synonyms.get(name_key(canonical))
            if name is not None:
                return PromptMatch(prompt=prompt, class_name=name, status="known", similarity=1.0,
                                   note=f"{prompt!r} is {name!r}")  # fmt: skip
        return self._by_tree(prompt)

    def _by_tree(self, prompt: str) -> PromptMatch | None:
        """A class that the tree says is the same thing, with the prompt's own side."""
        tree = self._tree or default_tree()
        if tree is None:
            return None
        side, base = split_side(prompt)
        for words, prefix in ((prompt, ""), (base, f"{side} " if side else "")):
            for term in tree.find(words):
                same = [term.id, *tree.tails(term.id, (SAME,)), *tree.heads(term.id, (SAME,))]
                for name in (i.removeprefix(PREFIX) for i in same if i.startswith(PREFIX)):
                    canonical = normalize_name(f"{prefix}{name}").canonical
                    if canonical in self.space:
                        return PromptMatch(prompt=prompt, class_name=canonical, status="known", similarity=1.0,
                                           note=f"{prompt!r} is {canonical!r} ({term.id})")  # fmt: skip
        return None

    def _wordings(self, prompt: str) -> Iterable[str]:
        """The prompt with adjectives as nouns, with our names for it, with its side in front."""
        yield prompt
        side, base = split_side(normalize_name(prompt).canonical)
        front = f"{side} " if side else ""
        for words in (base, _singular(base)):
            name = self._names.class_of.get(name_key(words))
            if name is not None:
                yield f"{front}{name}"
            nouns = " ".join(self._names.adjectives.get(w, w) for w in words.split())
            if nouns != words:
                yield f"{front}{nouns}"
                if (name := self._names.class_of.get(name_key(nouns))) is not None:
                    yield f"{front}{name}"
            yield f"{front}{words}"

    def _members(self, prompt: str) -> list[str]:
        """Classes that a prompt stands for, as far as the model knows them."""
        key = name_key(prompt)
        group = next(
            (self._names.group_of[k] for k in (key, f"{key}s", _singular(key)) if k in self._names.group_of), ""
        )
        names = self._names.groups.get(group)
        if names is None:
            side, _ = split_side(key)
            # "kidneys": both sides; a prompt with a side is never answered by the other.
            names = () if side else tuple(dict.fromkeys(normalize_name(w).base for w in self._wordings(prompt)))
            return next((both for name in names if len(both := self._sides(name)) == 2), [])
        found: list[str] = []
        for name in names:
            canonical = normalize_name(name).canonical
            found += [canonical] if canonical in self.space else self._sides(name)
        return list(dict.fromkeys(found))

    def _sides(self, base: str) -> list[str]:
        both = [normalize_name(f"{side} {base}").canonical for side in ("left", "right")]
        return [name for name in both if name in self.space]

    def _by_spelling(self, prompt: str) -> PromptMatch | None:
        side, _ = split_side(prompt)
        others = [key for key in self._synonyms if split_side(key)[0] == side]
        found = same_but_for_spelling(name_key(prompt), others)
        if found is None:
            return None
        name = self._synonyms[found]
        return PromptMatch(prompt=prompt, class_name=name, status="known", similarity=1.0,
                           note=f"{prompt!r} is read as {found!r}, {name!r}")  # fmt: skip

    def _foreign(self, prompt: str) -> PromptMatch | None:
        words = name_key(prompt).split()
        sides = {self._names.side_of[w] for w in words if w in self._names.side_of}
        rest = " ".join(w for w in words if w not in self._names.side_of)
        meaning = self._names.meaning_of.get(rest)
        if meaning is None or len(sides) > 1:
            return None
        name, language = meaning
        side = next(iter(sides), None)
        wanted = [normalize_name(f"{side} {name}" if side else name).canonical]
        known = [n for n in wanted if n in self.space] or ([] if side else self._sides(name))
        if not known:
            note = f"{prompt!r} is {language} for {wanted[0]!r}, which the model does not know"
            return PromptMatch(prompt=prompt, class_name=None, status="unknown", note=note)
        note = f"{prompt!r} is {language}; ask for {' and '.join(map(repr, known))}"
        near = tuple((n, 1.0) for n in known)
        return PromptMatch(prompt=prompt, class_name=None, status="unknown", nearest=near, note=note)

    def _nearest_spelling(self, prompt: str, count: int = 3) -> tuple[tuple[str, float], ...]:
        from rapidfuzz import fuzz, process

        side, _ = split_side(prompt)
        other = {"left": "right", "right": "left"}.get(side or "")
        names = [c.name for c in self.space.classes if other is None or other not in c.name.split()]
        found = process.extract(name_key(prompt), names, scorer=fuzz.token_sort_ratio, limit=count)
        return tuple((name, round(score / 100, 4)) for name, score, _ in found)


def read_prompts(
    prompts: Sequence[str], space: LabelSpace, encoder: Encoder | None = None, tree: KnowledgeTree | None = None
) -> list[PromptMatch]:
    """Matches of all prompts in order; a prompt that stands for several classes gives one for each."""
    reader = PromptReader(space, tree)
    return [match for prompt in prompts for match in reader.read(prompt, encoder)]


def _synonyms_of(space: LabelSpace) -> dict[str, str]:
    """Key of every other name of a class → class; a name that two classes have is none."""
    found: dict[str, set[str]] = {}
    for term, _ in import_label_space(space).terms:
        if term.id.startswith(PREFIX):
            for name in term.synonyms:
                found.setdefault(name_key(name), set()).add(term.name)
    own = {name_key(c.name) for c in space.classes}
    return {key: next(iter(names)) for key, names in found.items() if len(names) == 1 and key not in own}


def _singular(words: str) -> str:
    return words[:-1] if words.endswith("s") and not words.endswith(("ss", "us", "is")) else words
