"""Masks of a scan on its own grid: means of models, what each mask is worth, and which are kept."""
