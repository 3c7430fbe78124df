"""From fingerprints to plans: one for all datasets, and one per dataset for the specialist nnU-Nets."""
