"""``python -m conresnet.worker``: what Slicer runs in the engine's Python, which has no click.

- Without arguments, the engine's process, see ``conresnet.worker``; with ``--remote`` for a client on another computer.
- ``import CHECKPOINT`` prints the arguments of the network in a checkpoint, as JSON; ``import CHECKPOINT PACKAGE
  SETTINGS.json`` makes a package from it. The settings are those of ``python -m conresnet import --settings``.
- ``catalog ADDRESS`` prints a catalog in one line; ``download ADDRESS SHA256 SIZE`` prints "received total" in bytes,
  line by line, and then the path of the file.

All except the engine's process end with status 0, or with 2 and one sentence on stderr.
"""

import json
import sys
from pathlib import Path

from conresnet.errors import as_user_error


def _import(checkpoint: str, *more: str) -> None:
    from conresnet.importing import import_checkpoint, network_arguments
    from conresnet.messages import sentence
    from conresnet.package.schema import load_json

    if not more:
        print(json.dumps(network_arguments(Path(checkpoint))))
        return
    output, settings = map(Path, more)
    chosen = load_json(settings.read_bytes(), str(settings))
    _package, average = import_checkpoint(Path(checkpoint), chosen, output)
    if average:
        print(sentence("import-average", {"place": average, "path": checkpoint}))


def _catalog(address: str) -> None:
    from conresnet.package.download import catalog_text, read_catalog

    print(catalog_text(read_catalog(address)))


def _download(url: str, sha256: str, size: str) -> None:
    from conresnet.package.download import download

    shown = -1

    def report(have: int, total: int) -> None:
        nonlocal shown
        if total and 100 * have // total != shown:
            shown = 100 * have // total
            print(have, total, flush=True)

    print(download(url, sha256=sha256, size=int(size), on_progress=report))


_COMMANDS = {"import": _import, "catalog": _catalog, "download": _download}


def main(arguments: list[str]) -> int:
    """Run one command, and return the exit status."""
    if not arguments or arguments == ["--remote"]:
        from conresnet.worker.server import serve

        return serve(remote=bool(arguments))
    try:
        _COMMANDS[arguments[0]](*arguments[1:])
    except Exception as error:
        mistake = as_user_error(error)
        if mistake is None:
            raise
        print(mistake.message, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
