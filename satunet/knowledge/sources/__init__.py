"""Importers: each reads one kind of source into :class:`satunet.knowledge.build.Imported`."""
