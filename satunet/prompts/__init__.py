"""What a user's words mean in a label space."""

from satunet.prompts.matching import PromptMatch, match_prompt
from satunet.prompts.reader import PromptReader

__all__ = ["PromptMatch", "PromptReader", "match_prompt"]
