"""``python -m conresnet.worker``, with ``--remote`` for a client on another computer."""

import sys

from conresnet.worker.server import serve

if __name__ == "__main__":
    sys.exit(serve(remote="--remote" in sys.argv[1:]))
