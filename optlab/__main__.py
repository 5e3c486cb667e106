"""`python -m optlab` and the console script `optlab`."""

import sys

from optlab.cli import main

if __name__ == "__main__":
    sys.exit(main())
