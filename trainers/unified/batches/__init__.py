"""What a step sees: draws, crops, augmentation."""
