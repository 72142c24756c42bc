"""``python -m conresnet``."""

import sys
from importlib import import_module


def run(module: str) -> int:
    """Import a module, run its ``main``, and return the exit status, also for a Ctrl-C during the slow import."""
    try:
        return import_module(module).main()
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
    finally:
        # After a KeyboardInterrupt inside a text that runs by exec, as of dataclasses in torch, CPython ends by SIGINT
        # and not with our status, even if it was handled. Running any other text resets that.
        exec("")


if __name__ == "__main__":
    sys.exit(run("conresnet.cli"))
