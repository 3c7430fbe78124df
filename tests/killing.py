"""Processes that kill themselves."""

from __future__ import annotations

BEFORE_RENAME = """
import os, pathlib, signal, sys
countdown = [int(sys.argv[1])]
replace = pathlib.Path.replace
def dying_replace(self, target):
    if countdown[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    countdown[0] -= 1
    return replace(self, target)
pathlib.Path.replace = dying_replace
"""
"""Start of a program: SIGKILL instead of the rename whose number, from 0 on, is the first argument."""
