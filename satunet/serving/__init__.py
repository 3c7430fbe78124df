"""Prediction over HTTP: the same scan jobs as elsewhere, with a scan's features kept in memory for the next prompt."""
