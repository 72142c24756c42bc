"""The commands of ``python -m conresnet_training``, one module each, imported when the command is called."""
