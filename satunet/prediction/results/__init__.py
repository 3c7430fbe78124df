"""What a prediction leaves on disk: where it goes, what is written, and what earlier results say."""
