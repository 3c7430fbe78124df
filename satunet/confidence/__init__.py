"""What a mask is worth: an estimate of its Dice, and of the structure not being there, from what prediction has anyway."""
