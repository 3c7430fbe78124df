"""Training of the text-prompted network."""
