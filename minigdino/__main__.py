"""Run the command line: `python -m minigdino` is the same as `minigdino`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
