"""Confidence of masks: estimates of the Dice, and of the structure's absence, from by-products of the prediction."""
