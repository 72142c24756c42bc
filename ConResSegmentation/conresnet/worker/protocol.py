"""The messages between the engine's process and its client, on the same computer or on another. Standard library only.

One message per line: a JSON object in UTF-8 that ends with "\n". The client writes requests to the engine's standard
input and reads events from its standard output; the engine's standard error is its log. The engine ends when its
standard input closes.

Events without an id concern the engine:

    {"event": "hello", "protocol": 4, "version": "0.1.0", "pid": 4711, "python": "3.12.10", "torch": "2.13.0" or null,
     "session": path or null, "models": null or {"hippocampus": its description's digest}}
                                           first, immediately; pid is that of the interpreter itself, not of a launcher
    {"event": "ready"}                     torch is loaded; earlier requests wait
    {"event": "error", ...}                as below; the engine cannot work, or a line was not a request

Requests carry an id, a whole number that the client chooses and that all events in reply carry. A segment request is
`conresnet.request.SegmentRequest.to_dict`; any of its options may be left out:

    {"request": "segment", "id": 1, "model": "name or path", "channels": [{"npy": path, "grid": Grid.to_dict(),
     "name": "what messages call it"}], "options": {"roi": BoxROI.to_dict(), "maps": ["residual"], "device": "auto",
     "precision": "auto", "tiling": "fitted", "threads": 4}}
    {"request": "devices", "id": 2}
    {"request": "release", "id": 1}        the client has read the arrays of request 1; no reply
    {"request": "cancel"}                  all requests, or with an id that one; no reply of its own
    {"request": "shutdown"}                no reply; the same as closing standard input

Arrays are .npy files: those of request 1 are in the folder "1" of the session folder, where the client also puts the
channels before it asks. Each request ends with exactly one of done, devices, cancelled and error:

    {"event": "progress", "id": 1, "phase": "...", "fraction": 0.4, "seconds_left": 12.3 or null}
    {"event": "array", "id": 1, "name": "labels", "npy": path, "shape": [...], "dtype": "uint8"}   readable as it grows
    {"event": "done", "id": 1, "labels": path, "regions": path or null, "maps": {"residual": path}, "report": {...}}
    {"event": "devices", "id": 2, "devices": [{"name": "cuda:0", "title": "..."}, ...]}
    {"event": "cancelled", "id": 1}
    {"event": "error", "id": 1, "code": "...", "message": "...", "values": {}, "ours": false, "log": null}

Paths may be relative to the session folder. If the session of the hello is null, the client is on another computer:
each side has its own session folder, and files are sent through the pipe before a message names them, as described in
`conresnet.worker.blocks`. The client sends the channels, and a model (or a model's locator) that the worker
does not have in the same version, as "models/name/file"; names of images and files are not sent. The phase
"receiving" means that the results are being transferred.

    {"request": "block", "id": 1, "file": "1/channel0.npy", "offset": 0, "data": "..."}   no reply unless it fails
    {"event": "block", "id": 1, "file": "1/labels.npy", "offset": 0, "data": "..."}       again where it has changed

Labels are uint8 [k, j, i], maps float16 [c, k, j, i]; where segments overlap, regions are uint8 [b, k, j, i] for
`conresnet.inference.labels.region_mask`. A progress event's phase is "loading" while the model is read, then one that
`conresnet.inference.progress.Progress` lists. An error's code and values are for translation; "ours" means that it is a
bug in the engine, and "log" holds the traceback.
"""

import json
from collections.abc import Iterator

PROTOCOL = 4
"""Incremented when a message changes in a way that the other side would misread."""
MODELS_FOLDER = "models"
"""Subfolder of the worker's session folder for models sent by a client on another computer."""


class ProtocolError(Exception):
    """A line that is not a message."""


def encode(message: dict) -> bytes:
    """The line for a message. Characters outside ASCII are escaped, so that undecodable file names survive."""
    return json.dumps(message, separators=(",", ":")).encode("ascii") + b"\n"


def decode(line: bytes) -> dict:
    """The message in a line.

    Raises:
        ProtocolError: it is not a JSON object in UTF-8.
    """
    try:
        message = json.loads(line.decode("utf-8"))
    except ValueError as error:
        raise ProtocolError(f"not JSON in UTF-8: {line[:200]!r}") from error
    except RecursionError:
        raise ProtocolError(f"nested too deeply: {line[:200]!r}") from None
    if not isinstance(message, dict):
        raise ProtocolError(f"not a JSON object: {line[:200]!r}")
    return message


class LineSplitter:
    """Cuts a stream of bytes that arrives in pieces into lines."""

    def __init__(self):
        self._pieces: list[bytes] = []

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Add what arrived; yield the lines that are now complete, without their ends, leaving out empty ones."""
        *complete, rest = data.split(b"\n")
        for end in complete:
            line = b"".join([*self._pieces, end]).rstrip(b"\r")
            self._pieces.clear()
            if line.strip():
                yield line
        if rest:
            self._pieces.append(rest)
