"""`python -m convserve.cli` is the program `convserve`."""

import sys

from convserve.cli import main

if __name__ == "__main__":
    sys.exit(main())
