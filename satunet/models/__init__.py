"""A trained network as a folder: reading, writing, importing, describing."""
