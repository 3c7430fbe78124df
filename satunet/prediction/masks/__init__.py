"""Masks of a scan on its own grid: means over models, the confidence of each mask, and which masks are kept."""
