"""``python -m conresnet_training``."""

import sys

from conresnet.__main__ import run

# Data loading starts further processes, which import this file under another name.
if __name__ == "__main__":
    sys.exit(run("conresnet_training.cli"))
