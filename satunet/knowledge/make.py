"""Building a tree with its links from sources in one call, or loading one that was built before."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from satunet.errors import KnowledgeError
from satunet.knowledge.build import Imported, assemble
from satunet.knowledge.file import default_tree_path, load_tree
from satunet.knowledge.link import Link, add_links, link_classes
from satunet.knowledge.sources.labelspace import import_catalogue, import_label_space, scans_by_class
from satunet.knowledge.sources.obo import import_obo
from satunet.knowledge.sources.ontologies import import_ontology
from satunet.knowledge.sources.table import import_table
from satunet.knowledge.sources.umls import import_umls
from satunet.knowledge.tree import KnowledgeTree

if TYPE_CHECKING:
    from satunet.labels import LabelSpace

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Built:
    """A tree, the links of its classes, and notes on what was left out."""

    tree: KnowledgeTree
    links: tuple[Link, ...]
    notes: tuple[str, ...] = ()

    @property
    def linked(self) -> float:
        """Share of the classes that have a link, 0 to 1; 0 if there are no classes."""
        return sum(link.term is not None for link in self.links) / max(1, len(self.links))


def build_tree(
    *,
    ontologies: Sequence[str] = ("UBERON", "MONDO"),
    obo: Sequence[Path] = (),
    umls: Path | None = None,
    tables: Sequence[Path] = (),
    space: LabelSpace | None = None,
    store: Path | None = None,
    licence: str = "as its owner says",
    lenient: bool = False,
) -> Built:
    """Build a tree.

    Args:
        ontologies: Ontologies from the package ``cellxgene-ontology-guide``: ``UBERON``, ``MONDO``.
        obo: OBO files.
        umls: Folder with RRF files.
        tables: CSV, TSV, JSON or JSON-lines files.
        space: Label space of the classes; that of SAT-DS if not given.
        store: Folder of preprocessed scans of that label space, for links from classes to scans.
        licence: Licence of the OBO files and tables.
        lenient: Whether to leave out contradictory parts with a note instead of raising.

    Raises:
        KnowledgeError: A source cannot be read or contradicts itself.
        EnvironmentProblemError: A package is missing.
    """
    if space is None:
        classes = import_catalogue()
    else:
        classes = import_label_space(space, scans_by_class(space, store) if store is not None else None)
    imports: list[Imported] = [classes, *(import_ontology(name) for name in ontologies)]
    imports += [import_obo(path, licence=licence) for path in obo]
    imports += [import_umls(umls)] if umls is not None else []
    imports += [import_table(path, licence=licence) for path in tables]
    names = [s.name for imported in imports for s in imported.sources]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise KnowledgeError(f"two sources have the name {twice[0]!r}; rename one of the files")
    first = assemble(imports, lenient=lenient)
    links = link_classes(first.tree)
    add_links(imports, links)
    # Links lead only to existing terms, so everything left out now was already left out, and logged, the first time.
    done = assemble(imports, lenient=lenient)
    notes = (*(n for imported in imports for n in imported.notes), *done.dropped)
    return Built(tree=done.tree, links=tuple(links), notes=notes)


def load_or_build(path: Path | None = None) -> KnowledgeTree:
    """The tree in a file if one is given, else the one at the default path, else a tree of SAT-DS's classes alone.

    Raises:
        KnowledgeError: The given file cannot be used.
    """
    if path is not None:
        return load_tree(path)
    if default_tree_path().is_file():
        return load_tree(default_tree_path())
    return build_tree(ontologies=()).tree
