"""`python -m pathfm` is `pathfm`."""

from __future__ import annotations

import sys

from pathfm.cli import main

if __name__ == "__main__":
    sys.exit(main())
