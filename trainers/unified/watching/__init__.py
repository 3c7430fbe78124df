"""Reports about a training while it runs."""
