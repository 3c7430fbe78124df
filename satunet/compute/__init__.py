"""Where to compute: devices and precision, rank and world."""
