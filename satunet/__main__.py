"""``python -m satunet``: the command line."""

from satunet.cli import main

if __name__ == "__main__":
    main()
