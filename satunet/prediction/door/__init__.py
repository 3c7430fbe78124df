"""What was asked for becomes jobs, before work begins: scans, prompts, modality, and whether it can be done."""
