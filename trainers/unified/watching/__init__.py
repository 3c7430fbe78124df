"""What is told about a training while it runs."""
