"""What was found in a scan: masks on its own grid, means of models, what is kept and what it is worth."""
