"""The meaning of a user's words in a label space."""

from satunet.prompts.matching import PromptMatch, Reading
from satunet.prompts.reader import PromptReader

__all__ = ["PromptMatch", "PromptReader", "Reading"]
