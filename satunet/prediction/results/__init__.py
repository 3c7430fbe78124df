"""Results of a prediction on disk: their places, how they are written, and what earlier results say."""
