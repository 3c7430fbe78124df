"""A plug-in of napari: words on the scan that is shown, masks as a layer; a satunet server does the work."""
