"""``python -m minires`` is the program ``minires``."""

import sys

from minires.cli import main

if __name__ == "__main__":
    sys.exit(main())
