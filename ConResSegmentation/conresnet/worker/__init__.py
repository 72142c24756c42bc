"""The engine's process: it stays warm, answers requests on standard input, and goes when its client goes.

``python -m conresnet.worker`` starts it and needs no command line library; ``python -m conresnet worker`` is the same.
What is said is in `conresnet.protocol`. Importing this loads no torch.
"""

from conresnet.worker.server import serve

__all__ = ["serve"]
