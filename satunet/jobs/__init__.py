"""Tools for long jobs: files that appear whole, workers, progress and summary, stamps, records."""
