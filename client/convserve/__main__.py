"""`python -m convserve` is the program `convserve`."""

import sys

from convserve.cli import main

if __name__ == "__main__":
    sys.exit(main())
