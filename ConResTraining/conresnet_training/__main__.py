"""``python -m conresnet_training``."""

import sys

from conresnet_training.cli.main import main

# Data loading starts further processes, which import this file under another name.
if __name__ == "__main__":
    sys.exit(main())
