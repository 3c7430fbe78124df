"""Confidence of masks: estimates of their Dice and of the structure's absence, from by-products of the prediction."""
