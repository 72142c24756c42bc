"""``python -m conresnet worker``: the engine's process, for programs."""

import click

from conresnet.worker.server import serve


@click.command()
def worker() -> int:
    """Serve requests on standard input until it closes.

    This is for programs: they write requests and read events, one JSON object per line, as described in
    conresnet.worker.protocol.
    """
    return serve()
