"""``python -m cortex`` is the command ``cortex``."""

import sys

from cortex.cli.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
