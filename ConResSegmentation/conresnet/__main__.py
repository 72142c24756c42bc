"""``python -m conresnet``."""

import sys

from conresnet.command_line import main

if __name__ == "__main__":
    sys.exit(main())
