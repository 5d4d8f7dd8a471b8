"""``python -m scdataloader``: the command line, where its script is not on the path."""

import sys

from scdataloader.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
