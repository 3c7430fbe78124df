"""A plug-in for napari: it segments the displayed scan by text, with a satunet server, and shows masks as a layer."""
