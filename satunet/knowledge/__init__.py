"""The knowledge tree of anatomy: importers, queries, links to classes, and the understanding of prompts."""
