"""How long work is done: files that appear whole, workers, progress and its summary."""
