"""The engine that runs the network fast on a CPU."""
