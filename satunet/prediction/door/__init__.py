"""A call becomes jobs before work begins: scans, prompts, modality, and checks whether it can be done."""
