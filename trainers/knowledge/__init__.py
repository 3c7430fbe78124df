"""Knowledge pre-training: stage 1, text with text (:mod:`.text`); stage 2, atlas with text (:mod:`.atlas`)."""
