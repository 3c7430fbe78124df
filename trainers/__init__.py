"""Training: the text-prompted network, and the specialist nnU-Nets it is compared with."""
