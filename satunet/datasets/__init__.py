"""nnU-Net datasets: raw folders, paths, the catalogue of SAT-DS, the memory that cases need."""
