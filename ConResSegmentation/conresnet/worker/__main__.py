"""``python -m conresnet.worker``."""

import sys

from conresnet.worker.server import serve

if __name__ == "__main__":
    sys.exit(serve())
