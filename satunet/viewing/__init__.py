"""Showing scans and masks: pictures (:mod:`.preview`) and pages (:mod:`.page`)."""
