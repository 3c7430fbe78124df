"""``satunet doctor``: does this installation work?"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from satunet.cli.options import Verbose


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Check the installation: torch, nnunetv2, the text encoder, nnU-Net's folders, free disk."""

    verbose: Verbose = False

    def run(self) -> int:
        """Print one line per check; returns 1 if something must be repaired."""
        from satunet.cli.environment import check_environment

        issues = check_environment()
        for issue in issues:
            sys.stdout.write(f"{issue.severity}: {issue.message}\n")
        broken = any(issue.severity == "error" for issue in issues)
        if not broken:
            sys.stdout.write("everything that satunet needs works\n")
        return 1 if broken else 0
