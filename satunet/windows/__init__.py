"""Probabilities of many prompts over a whole scan in bounded memory; independent of all stages."""
