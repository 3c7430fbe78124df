"""Trained networks as folders: reading, writing, importing and describing them."""
