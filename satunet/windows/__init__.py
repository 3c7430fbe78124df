"""Probabilities of many prompts over a whole scan, in bounded memory; imports none of the stages."""
