"""Measures of two masks: overlap, surfaces, lesions."""
