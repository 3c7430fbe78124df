"""Conclusions from the scores of competitors: means, intervals, differences and their tests, as rows of tables."""
