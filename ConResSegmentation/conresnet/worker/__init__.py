"""The engine's process: it keeps the last model ready, answers requests on standard input, and ends with its client.

``python -m conresnet.worker`` starts it without a command line library; ``python -m conresnet worker`` is the same.
The messages are described in `conresnet.worker.protocol`.
"""
