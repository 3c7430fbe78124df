"""One plan for all datasets."""
