"""`python -m optlab` and the console script `optlab`."""

import gc
import sys

from optlab.cli import main

# An interruption that comes during a collection is lost in a callback of JAX, which cannot raise.
# Leaving out the many objects of the imports makes collections short.
gc.freeze()

if __name__ == "__main__":
    sys.exit(main())
