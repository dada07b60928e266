"""``python -m onpolicy``."""

import sys

from onpolicy.cli import main

if __name__ == "__main__":
    sys.exit(main())
