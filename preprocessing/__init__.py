"""From raw scans and a plan to normalised scans on disk."""
