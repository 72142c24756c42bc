"""``python -m conresnet``."""

import sys

from conresnet.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
