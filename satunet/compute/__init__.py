"""Devices and precision, rank and world size."""
