"""The engine's process: it stays warm, answers requests on standard input, and ends when its client ends.

``python -m conresnet.worker`` starts it and needs no command line library; ``python -m conresnet worker`` is the same.
The messages are described in `conresnet.worker.protocol`.
"""
