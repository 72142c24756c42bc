"""The commands of ``python -m conresnet``, one file each; `conresnet.command_line` loads one when it is called."""
