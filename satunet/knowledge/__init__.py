"""The knowledge tree of anatomy: importers, queries, links to classes, and the understanding of prompts."""

from satunet.knowledge.build import assemble
from satunet.knowledge.file import load_tree, save_tree
from satunet.knowledge.tree import KnowledgeTree, Relation, Source, Term

__all__ = ["KnowledgeTree", "Relation", "Source", "Term", "assemble", "load_tree", "save_tree"]
