"""Before work begins, a call becomes jobs: scans, prompts and modality are decided, and limits are checked."""
