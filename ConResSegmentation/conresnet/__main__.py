"""``python -m conresnet``."""

import sys
from importlib import import_module


def run(module: str) -> int:
    """Run ``main`` of a module, which takes long enough to import for a Ctrl-C, and return the exit status."""
    try:
        return import_module(module).main()
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(run("conresnet.cli.main"))
