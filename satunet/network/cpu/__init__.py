"""Fast prediction and training steps of the network on a CPU."""
