"""``python -m satunet``: the command line."""

from satunet.cli import script

if __name__ == "__main__":
    script()
