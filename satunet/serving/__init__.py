"""Prediction over HTTP: a way to the same scan jobs, with the features of a scan kept for the next prompt."""
