"""The knowledge tree of anatomy: importers, queries, links to the label space's classes, and retrieval measures."""
