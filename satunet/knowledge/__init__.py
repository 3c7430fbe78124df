"""The knowledge tree of anatomy: importers, queries, links to the classes of the label space, retrieval measures."""
