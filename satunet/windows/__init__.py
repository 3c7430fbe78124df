"""Probabilities of many prompts over a whole scan in bounded memory; knows no stage."""
