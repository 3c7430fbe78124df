"""Drills: faults made on purpose, in any number, with figures.

Each is a script (``python -m tests.drills.NAME --help``) whose seed fixes what it does, and a test that runs a few of
its faults. ``--record`` puts the figures of a run into ``benchmarks/results/drills.txt``.
"""
