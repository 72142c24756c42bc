"""``python -m conresnet worker``: the engine's process, for a program that talks to it."""

import click

from conresnet.worker.server import serve


@click.command()
def worker() -> int:
    """Serve requests on standard input until it closes.

    A program starts this, not a person: it writes requests and reads events, one JSON object per line, as described
    in conresnet.worker.protocol.
    """
    return serve()
