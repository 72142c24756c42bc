"""``python -m conresnet.importing CHECKPOINT [PACKAGE SETTINGS.json]``: the import as Slicer runs it.

Without a package, it prints the arguments of the network in the checkpoint, as JSON.
Slicer's Python has no click, which ``python -m conresnet import`` needs. The settings are those of its ``--settings``.
It ends with 0, or with 2 and one sentence on stderr.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from conresnet.errors import as_user_error
from conresnet.importing import import_checkpoint, network_arguments
from conresnet.messages import sentence
from conresnet.package.schema import load_json


def main(arguments: Sequence[str]) -> int:
    """Import as the arguments say; returns the exit status."""
    checkpoint, *more = map(Path, arguments)
    try:
        if not more:
            print(json.dumps(network_arguments(checkpoint)))
            return 0
        output, settings = more
        _package, average = import_checkpoint(checkpoint, load_json(settings.read_bytes(), str(settings)), output)
    except Exception as error:
        mistake = as_user_error(error)
        if mistake is None:
            raise
        print(mistake.message, file=sys.stderr)
        return 2
    if average:
        print(sentence("import-average", {"place": average, "path": checkpoint}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
