"""Training images made of label maps, crops at any spacing, and several sources in one training."""
