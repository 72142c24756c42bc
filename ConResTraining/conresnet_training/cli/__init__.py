"""The commands of ``python -m conresnet_training``; a command's module is imported when the command is called."""
