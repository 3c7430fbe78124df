"""Fingerprints of datasets, which merge."""
