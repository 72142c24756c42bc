"""``python -m conresnet``."""

import sys


def _run() -> int:
    try:
        # Importing takes long enough for a Ctrl-C.
        from conresnet.cli.main import main

        return main()
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(_run())
