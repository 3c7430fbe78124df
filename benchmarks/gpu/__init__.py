"""What satunet does on a GPU, beside SAT's own graph: see :mod:`gpu.__main__`."""
