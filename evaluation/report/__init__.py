"""Tables, charts and pictures of a benchmark."""
