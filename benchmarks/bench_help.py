"""How long ``satunet --help`` takes, against importing torch, which it must not do."""

from __future__ import annotations

import subprocess
import sys

from common import compare, header, seconds


def main() -> None:
    header("tyro", "torch")
    ours = seconds(
        lambda: subprocess.run([sys.executable, "-m", "satunet", "--help"], stdout=subprocess.DEVNULL, check=True), 5
    )
    peer = seconds(lambda: subprocess.run([sys.executable, "-c", "import torch"], check=True), 3)
    compare("answer", ours, peer, "import torch")


if __name__ == "__main__":
    main()
