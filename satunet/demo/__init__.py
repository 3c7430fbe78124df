"""Data and a run for a first look: real brain templates and atlases, and two small synthetic datasets for tests."""
