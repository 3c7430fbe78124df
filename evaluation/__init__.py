"""Metrics, scoring, benchmark and report."""
