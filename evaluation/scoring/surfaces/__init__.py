"""Surfaces of masks and distances between them."""
